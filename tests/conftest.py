"""Switches of the test suite.

--slow           also run the tests marked `slow`
--update-golden  write the files under tests/golden, and outputs in tests/filetests, anew instead of comparing with them
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ppuc.ir import plugins

os.environ["PPUC_CACHE_DIR"] = ""  # what earlier runs found must not decide what a test sees

GOLDEN = Path(__file__).parent / "golden"


# Machines that run the suite are shared: how long an example took says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden is for people: in CI golden files are only compared")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("name.txt", text)` fails with a diff when `text` differs from tests/golden/name.txt."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        want = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != want:
            names = (f"tests/golden/{name}", "now")
            diff = difflib.unified_diff(want.splitlines(), text.splitlines(), *names, lineterm="")
            pytest.fail("\n".join([*diff, "", "if this is meant: pytest --update-golden"]), pytrace=False)

    return compare


Offered = Callable[..., None]
"""`offered("ppuc.ops", snake="package:SNAKE")`: makes these entry points of a group all that are installed."""


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Offered:
    """Entry points of packages that are not there."""

    def offer(group: str, **points: str) -> None:
        every = EntryPoints(EntryPoint(name, value, group) for name, value in points.items())
        monkeypatch.setattr(plugins, "_installed", lambda: every)

    return offer


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels are joined, so that what is between them is in memory."""
    monkeypatch.setattr("ppuc.compiler.passes.grouping.cascade.Cascading.build", lambda self: self.graph)

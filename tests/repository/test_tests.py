"""Tests lie in the folder of their subject."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_file_is_in_a_folder() -> None:
    assert not [path.name for path in TESTS.glob("*.py") if path.name != "conftest.py"], "see CONTRIBUTING.md, Tests"

"""The store of search results on disk: records read back equal, and a damaged file never changes a program."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from ppuc.compiler.lowering import search_store
from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.records import decoded, encoded
from ppuc.compiler.lowering.search_store import SearchStore, key_of
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir import user_cache
from ppuc.ir.kernel import Kernel
from ppuc.ir.module import Module
from ppuc.ir.text import print_module
from ppuc.targets.description import load_target, override
from tests.ir.text_strategies import kernels
from tests.support.pass_graphs import Sketch, module_of

TINY = load_target("ppu-tiny")


def compiled() -> Module:
    """A network with a product, a softmax, a convolution and a pool."""
    s = Sketch()
    y = s.softmax(s.matmul(s.param(40, 48), s.weight(48, 24)))
    z = s.op("relu", s.conv(s.param(1, 8, 12, 12), 8, 3))
    module = replace(module_of(s.graph(y, z)), target=TINY.name, target_hash=TINY.hash)
    return Run(TINY, PIPELINE).run(module)


@given(kernels())
def test_kernels_come_back_equal(kernel: Kernel) -> None:
    assert decoded(encoded(kernel)) == kernel


def test_records_refuse_what_no_kernel_contains() -> None:
    with pytest.raises(TypeError, match="set"):
        encoded((1, {2}))
    with pytest.raises(KeyError):
        decoded('{"Popen": ["rm"]}')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_second_compilation_does_not_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled()

    def searched(*_: object) -> None:
        raise AssertionError("a search ran")

    monkeypatch.setattr("ppuc.compiler.lowering.kernel_cache.lower_group", searched)
    monkeypatch.setattr("ppuc.compiler.lowering.kernel_cache.searched_group", searched)
    assert print_module(compiled()) == print_module(first)


def test_programs_do_not_depend_on_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = compiled()
    monkeypatch.setenv(user_cache.VARIABLE, "")
    assert user_cache.user_cache() is None
    assert print_module(compiled()) == print_module(stored)


def test_failures_are_kept_with_their_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = override(TINY, "l1.bytes=256")
    s = Sketch()
    body = s.graph(s.matmul(s.param(64, 64), s.param(64, 64)))
    names = {v.name: v.name for v in (*body.params, *body.results)}
    reasons = []
    for _ in range(2):
        with pytest.raises(NotFusable) as caught:
            KernelCache(small).kernel("matmul", "kernel", body, names, ())
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1] != ""


@pytest.mark.parametrize("damage", [b"", b"not a database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_costs_time_only(folder: Path, damage: bytes) -> None:
    first = compiled()
    for file in folder.iterdir():
        file.write_bytes(damage)
    assert print_module(compiled()) == print_module(first)


def test_a_damaged_record_is_searched_for_again(folder: Path) -> None:
    first = compiled()
    with sqlite3.connect(folder / "tilings.sqlite") as connection:
        connection.execute("update outcomes set text = substr(text, 1, length(text) / 2)")
    connection.close()
    assert print_module(compiled()) == print_module(first)


def test_a_folder_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = SearchStore(tmp_path / "file" / "cache")
    store.put("key", "text")
    assert store.get("key") is None


def test_keys_tell_targets_apart() -> None:
    assert key_of(TINY) == key_of(load_target("ppu-tiny"))
    assert key_of(TINY) != key_of(override(TINY, "l2.latency_ns=999"))


def test_a_store_that_is_locked_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SearchStore(folder).put("a", "kept")
    path = folder / "tilings.sqlite"
    before = path.stat().st_ino

    def locked(_: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(search_store, "_connected", locked)
    assert SearchStore(folder).get("a") is None
    assert path.stat().st_ino == before

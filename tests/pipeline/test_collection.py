"""Garbage is collected rarely while a model is compiled, and as before afterwards."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.compiler.pipeline.collection import COLLECT_AFTER, rare_collections
from ppuc.ir.errors import ModelError
from ppuc.targets.description import load_target
from tests.support.small_models import mlp

OPTIONS = CompileOptions(target=load_target("ppu-tiny"), dims={"N": 3})


def test_thresholds_change_for_a_compilation_only() -> None:
    before, seen = gc.get_threshold(), set()
    watch = Instrumentation(progress=lambda what, number, total: seen.add(gc.get_threshold()))
    compile_model(mlp(), OPTIONS, watch)
    assert seen == {COLLECT_AFTER}
    assert gc.get_threshold() == before


def test_thresholds_return_after_an_error() -> None:
    before = gc.get_threshold()
    with pytest.raises(ModelError):
        compile_model(mlp(), replace(OPTIONS, dims={}))
    assert gc.get_threshold() == before


def test_collections_that_the_caller_disabled_stay_disabled() -> None:
    before, seen = gc.get_threshold(), set()
    watch = Instrumentation(progress=lambda what, number, total: seen.add(gc.get_threshold()[0]))
    gc.set_threshold(0)
    try:
        compile_model(mlp(), OPTIONS, watch)
    finally:
        gc.set_threshold(*before)
    assert seen == {0}


def test_overlapping_compilations_restore_the_thresholds() -> None:
    """Threads may leave in the order in which they entered."""
    before = gc.get_threshold()
    first, second = rare_collections(), rare_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == COLLECT_AFTER
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before

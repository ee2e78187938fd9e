"""Products that are repeated without pause find their left operand in a cached l2."""

from __future__ import annotations

from typing import Any

import pytest

from ppuc.compiler.predict.case import Case
from ppuc.compiler.predict.prediction import Predictor
from ppuc.targets.description import load_target, override

A100 = load_target("a100-class")


def predicted(m: int, n: int, k: int, *changes: str, machine: str = "a100-class") -> dict[str, Any]:
    target = load_target(machine)
    return Predictor(override(target, *changes) if changes else target, intervals=False).predict(
        Case("gemm", (m, n, k), "bf16"), "here"
    )


def test_only_weights_and_results_move_where_l2_holds_a_run() -> None:
    m, n, k = 4096, 64, 2048
    moved, left = 2 * (m * k + n * k + m * n), 2 * m * k
    assert moved < A100.l2.bytes
    kept = predicted(m, n, k)
    assert kept["hbm_bytes"] == pytest.approx(moved - left, rel=0.1)
    lost = predicted(m, n, k, f"l2.bytes={moved - 1}")
    assert lost["hbm_bytes"] == pytest.approx(moved, rel=0.1)
    assert kept["us"] < 0.9 * lost["us"]


def test_programs_without_a_cache_are_as_they_are() -> None:
    m, n, k = 64, 64, 256
    assert predicted(m, n, k, machine="ppu-tiny")["hbm_bytes"] >= 2 * (m * k + n * k + m * n)

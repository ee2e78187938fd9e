"""Granules of the hazard checker: the pieces of tensors that accesses are recorded for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppuc.ir.program import Copy
from ppuc.targets.description import load_target
from ppuc.targets.simulator.decode import flatten
from ppuc.targets.simulator.hazards import HazardChecker
from tests.support.simulator_programs import RELU, Gemm, copy_program, gemm_program

VECTORS = {RELU.name: RELU}
TINY = load_target("ppu-tiny")


@pytest.mark.parametrize(
    ("rows", "cols", "granule"),
    [
        (8, 12, 12),  # boxes are whole rows
        (8, 16, 16),
    ],
)
def test_granules_of_rows(rows: int, cols: int, granule: int) -> None:
    program = copy_program(rows, cols, 4)
    checker = HazardChecker(program, flatten(program, program.segments[0], {}, TINY))
    assert checker._state.t_gran[:, 0].tolist() == [granule]


@pytest.mark.parametrize(("n", "granule"), [(64, 16), (48, 16), (40, 8), (33, 1)])
def test_granules_are_as_large_as_steps_of_loops_allow(n: int, granule: int) -> None:
    """Stores of tiles of 16 columns, at multiples of 16, cut off at the last column."""
    program = gemm_program(Gemm(32, n, 32))
    checker = HazardChecker(program, flatten(program, program.segments[0], VECTORS, TINY))
    assert checker._state.t_gran[:, 0].tolist() == [granule]


def test_a_copy_of_a_part_makes_granules_smaller() -> None:
    program = copy_program(8, 12, 4)
    segment = replace(program.segments[0], copies=(Copy(0, "y", "x", 4, 24),))
    checker = HazardChecker(program, flatten(program, segment, {}, TINY))
    sizes = {t.name: int(g) for t, g in zip(checker._tracked, checker._state.t_gran[:, 0], strict=True)}
    assert sizes["y"] == 4

"""Prices of vector programs: the simulator's cycles for whole tiles, and kernels priced as the simulator times them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.tiling.vector_work import NO_WORK, vector_work
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.types import DType, Space
from ppuc.targets.description import load_target
from ppuc.targets.vector_cost import vec_cost

M890 = load_target("zhenwu-m890")
CHAINS = (("relu",), ("erf",), ("tanh", "exp"), ("sigmoid", "reciprocal", "abs"), ("sqrt", "reduce_sum"))


@pytest.mark.parametrize("ops", CHAINS, ids="-".join)
@given(st.tuples(st.integers(1, 70), st.integers(1, 300)))
def test_the_price_of_a_whole_tile_is_the_simulators(ops: tuple[str, ...], shape: tuple[int, int]) -> None:
    """Up to a cycle for each lane and special function operation of a step, which is rounded up to whole cycles."""
    builder = ProgramBuilder()
    x = builder.step("add", builder.param(DType.F32), builder.param(DType.BF16))
    for op in ops:
        x = builder.step(op, x, ints=(1,) if op.startswith("reduce") else ())
    out = (shape[0], 1) if ops[-1].startswith("reduce") else shape
    program = builder.finish("p", [(x, DType.BF16)])
    spaces = [Space.ACC, Space.L1]
    work = vector_work(program, [shape, (1, shape[1])], [out], spaces, M890)
    cycles = vec_cost(program, [shape, (1, shape[1])], [out], spaces).cycles(shape, M890)
    issue = cost.overhead_clk(M890)
    assert abs(work.clk(shape) - issue - float(cycles)) <= 2 * len(program.steps)


def test_moving_elements_takes_the_vector_engine_no_time() -> None:
    assert NO_WORK.clk((64, 64)) == 0


def test_steps_on_rows_cost_less_than_steps_on_elements() -> None:
    builder = ProgramBuilder()
    x = builder.param(DType.F32)
    rows = builder.step("exp", builder.step("reduce_max", x, ints=(1,)))
    program = builder.finish("p", [(rows, DType.F32)])
    work = vector_work(program, [(32, 512)], [(32, 1)], [Space.L1], M890)
    lanes, sfu = M890.vector.lanes, M890.vector.sfu_per_clk
    expected = math.log2(512) + 32 * 512 / lanes + np.maximum(32 / lanes, 1) + 32 / sfu
    assert work.clk((32, 512)) == pytest.approx(expected + cost.overhead_clk(M890), abs=2)


@pytest.mark.parametrize(("rows", "columns"), [(3, 1344), (16, 16), (128, 2)])
def test_a_transpose_moves_every_element_once(rows: int, columns: int) -> None:
    """Its tile and its result have different sizes along the same axis: neither is the other's extent."""
    builder = ProgramBuilder()
    turned = builder.step("transpose", builder.param(DType.F32), ints=(1, 0))
    program = builder.finish("p", [(turned, DType.F32)])
    whole = vec_cost(program, [(rows, columns)], [(columns, rows)])
    extents = (max(rows, columns),) * 2
    elements = rows * columns
    lanes, moved = math.ceil(elements / M890.vector.lanes), 2 * elements * 4 / M890.l1.bytes_per_clk
    assert whole.cycles(extents if rows != columns else (rows, columns), M890) == max(lanes, moved)

"""Vector steps fused into one lane operation compute the same as the separate steps."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.kernel import Buffer, Vec
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram
from ppuc.ir.vector_steps import VecPlan

X = np.array([-np.inf, -7.5, -0.0, 0.0, 1 / 3, 6.0, 1e30, np.inf, np.nan], np.float32)


def steps(program: VectorProgram) -> list[str]:
    return [s.op for s in program.steps if s.op != "const"]


def run(program: VectorProgram, *arrays: np.ndarray) -> np.ndarray:
    ins = [Buffer(f"i{n}", DType.F32, a.shape, Space.L1) for n, a in enumerate(arrays)]
    outs = [Buffer("o", DType.F32, arrays[0].shape, Space.L1)]
    plan = VecPlan(Vec("p", ("o",), tuple(b.name for b in ins)), program, ins, outs, {})
    (out,) = plan.compute([a.view(np.uint32) for a in arrays], [])
    return out.view(np.float32)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("ops", "want"),
    [
        ((("max", -1.0), ("min", 6.0)), ["clip"]),
        ((("min", 6.0), ("max", -1.0)), ["clip"]),
        ((("relu", 0.0), ("min", 6.0)), ["clip"]),
        ((("relu", 0.0), ("min", -6.0)), ["relu", "min"]),
        ((("max", 6.0), ("min", -1.0)), ["max", "min"]),
        ((("max", 6.0), ("max", 7.0)), ["max", "max"]),
    ],
)
def test_bounds(ops: tuple[tuple[str, float], ...], want: list[str], swapped: bool) -> None:
    b = ProgramBuilder()
    x, expected = b.param(DType.F32), X
    for op, number in ops:
        if op == "relu":
            x, expected = b.step("relu", x), np.maximum(expected, 0)
            continue
        args = (x, b.const(number, DType.F32))
        x = b.step(op, *(args[::-1] if swapped else args))
        expected = (np.minimum if op == "min" else np.maximum)(expected, np.float32(number))
    program = b.finish("p", [(x, DType.F32)])
    assert steps(program) == want
    np.testing.assert_array_equal(run(program, X), expected)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sum_of_a_product(swapped: bool) -> None:
    rng = np.random.default_rng(0)
    x, y, z = (rng.standard_normal(64).astype(np.float32) for _ in range(3))
    b = ProgramBuilder()
    p, q, r = (b.param(DType.F32) for _ in range(3))
    args = (b.step("mul", p, q), r)
    program = b.finish("p", [(b.step("add", *(args[::-1] if swapped else args)), DType.F32)])
    assert steps(program) == ["mac"]
    np.testing.assert_array_equal(run(program, x, y, z), x * y + z)


def test_what_is_read_twice_is_kept() -> None:
    b = ProgramBuilder()
    x = b.param(DType.F32)
    square = b.step("mul", x, x)
    low = b.step("max", x, b.const(0.0, DType.F32))
    high = b.step("min", low, b.const(1.0, DType.F32))
    results = [(b.step("add", square, high), DType.F32), (square, DType.F32), (low, DType.F32)]
    assert steps(b.finish("p", results)) == ["mul", "max", "min", "add"]


def test_a_value_added_to_itself() -> None:
    b = ProgramBuilder()
    x = b.param(DType.F32)
    square = b.step("mul", x, x)
    program = b.finish("p", [(b.step("add", square, square), DType.F32)])
    np.testing.assert_array_equal(run(program, X), X * X + X * X)

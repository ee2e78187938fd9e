"""Products with weights in blocks against the bodies of their groups.

The kernel widens each weight as the body does, to the bit; so the error is that of the sum."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.kernel import Load, Vec
from ppuc.ir.ops.base import OPS
from ppuc.ir.ops.blocks import UnblockAttrs, in_halves
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.view import ReshapeAttrs, TransposeAttrs
from ppuc.ir.types import DType, TensorType
from tests.support.group_kernels import TARGETS, UNIT, Body, kernel_of, run

CODES = {
    "i8": (DType.I8, None),
    "u8": (DType.U8, None),
    "f8": (DType.F8E4M3, None),
    "i4": (DType.U8, DType.I8),
    "f4": (DType.U8, DType.F4E2M1),
}


def parameter(value: Value, seed: int) -> np.ndarray:
    """Any codes, positive scales from 1/16 to 1."""
    rng, dtype, dims = np.random.default_rng(seed), value.type.dtype, value.type.dims
    if dtype.is_integer:
        return rng.integers(0, 256, dims).astype(np.uint8).view(dtype.numpy)
    if dtype is DType.F8E4M3:
        return np.asarray(rng.standard_normal(dims).astype(np.float32).astype(dtype.numpy))
    return np.exp2(rng.integers(-4, 1, dims)).astype(dtype.numpy)


def body_of(
    codes: str, m: int, k: int, n: int, block: int, *, dtype: DType = DType.BF16, scale: DType = DType.F32,
    zero: bool = False, heads: int = 0, turned: bool = False,
) -> Graph:  # fmt: skip
    """x[m, k] . unblock(...)[k, n] in f32; `heads`: the result as [heads, m, n / heads]; `turned`: x lies as [k, m]."""
    stored, halves = CODES[codes]
    b = Body()
    x = b.param(*((k, m) if turned else (m, k)), dtype=dtype)
    left = b.op("transpose", x, attrs=TransposeAttrs((1, 0))) if turned else x
    operands = [b.param(k if halves is None else k // 2, n, dtype=stored), b.param(k // block, n, dtype=scale)]
    operands += [b.param(k // block, n, dtype=DType.U8)] if zero else []
    weights = b.op("unblock", *operands, attrs=UnblockAttrs(dtype, block, halves))
    y = b.op("matmul", left, weights, attrs=MatmulAttrs(out=None if dtype is DType.F32 else DType.F32))
    y = b.op("relu", y)
    if heads:
        y = b.op("reshape", y, attrs=ReshapeAttrs((m, heads, n // heads)))
        y = b.op("transpose", y, attrs=TransposeAttrs((1, 0, 2)))
    return b.graph(y)


def check(body: Graph, target: str, tilings: int = 3) -> None:
    feeds = {p.name: parameter(p, i) for i, p in enumerate(body.params)}
    x = body.params[0]
    feeds[x.name] = np.random.default_rng(9).standard_normal(x.type.dims).astype(x.type.dtype.numpy)
    (want,) = run_graph(body, feeds).values()
    unblock = next(op for op in body.ops if op.name == "unblock")
    (wide,) = run_graph(Graph("w", body.params, unblock.results, body.ops), feeds).values()
    left, right = (np.abs(a.astype(np.float64)) for a in (feeds[x.name], wide))
    bound = 2 * (len(wide) + 2) * UNIT[DType.F32] * left.max() * right.sum(0).max()
    for rank in range(tilings):
        try:
            kernel, vectors = kernel_of(body, target, rank)
        except NotFusable:
            if rank == 0:
                raise
            break
        (got,) = run(body, kernel, vectors, feeds)
        assert np.abs(got.astype(np.float64) - want).max() <= bound
        assert sum(isinstance(s, Vec) for _, s in kernel.statements()) == 2
        assert sum(isinstance(s, Load) for _, s in kernel.statements()) == len(body.params)
    assert np.abs(want).max() > 100 * bound


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("n", [31, 32, 33, 257])
def test_products(codes: str, n: int, target: str) -> None:
    check(body_of(codes, 5, 192, n, 32), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("codes", ["i8", "i4"])
def test_zero_points(codes: str, target: str) -> None:
    check(body_of(codes, 3, 128, 40, 16, zero=True), target)
    check(body_of("u8", 17, 96, 33, 48, zero=True, dtype=DType.F32), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [DType.BF16, DType.F16, DType.F8E4M3, DType.F8E8M0], ids=str)
def test_scales_of_any_float(scale: DType, target: str) -> None:
    check(body_of("f4", 4, 14 * 32, 65, 16, scale=scale), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("codes", ["i8", "i4"])
def test_operands_and_results_through_views(codes: str, target: str) -> None:
    check(body_of(codes, 6, 320, 48, 32, heads=3), target)
    check(body_of(codes, 40, 320, 48, 40, turned=True), target)


@pytest.mark.parametrize("codes", CODES)
def test_the_record_says_what_it_means(codes: str) -> None:
    """Against numbers written out one by one."""
    stored, halves = CODES[codes]
    rng = np.random.default_rng(3)
    numbers = rng.integers(-7, 8, (8, 3)).astype(np.float32)
    if halves is DType.F4E2M1:
        numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, -6], np.float32).reshape(8, 1) * np.ones((1, 3), np.float32)
        raw = numbers.astype(DType.F4E2M1.numpy).view(np.uint8)
    else:
        numbers = np.abs(numbers) if codes == "u8" else numbers
        raw = numbers.astype(np.int8 if halves is not None else stored.numpy)
    held = in_halves(raw.view(np.uint8)) if halves is not None else raw
    scale = np.array([[1, 2, 4], [0.5, 8, 16]], np.float32)
    reference, attrs = OPS["unblock"].reference, UnblockAttrs(DType.F32, 4, halves)
    assert reference is not None
    (got,) = reference(attrs, held, scale)
    np.testing.assert_array_equal(got, numbers * np.repeat(scale, 4, 0))
    (type,) = OPS["unblock"].infer(attrs, [TensorType(DType.of(held.dtype), held.shape), TensorType(DType.F32, (2, 3))])
    assert type == TensorType(DType.F32, (8, 3))


@pytest.mark.parametrize(
    ("shapes", "attrs"),
    [
        (((8, 3), (3, 3)), UnblockAttrs(DType.F32, 4)),
        (((8, 3), (2, 3)), UnblockAttrs(DType.F32, 3)),
        (((8, 3), (2, 3), (1, 3)), UnblockAttrs(DType.F32, 4)),
        (((8, 3), (4, 3)), UnblockAttrs(DType.F32, 4, DType.F8E4M3)),
        (((8, 3), (2, 3)), UnblockAttrs(DType.I8, 4)),
    ],
)
def test_types_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], attrs: UnblockAttrs) -> None:
    dtypes = (DType.U8, DType.F32, DType.U8)
    with pytest.raises(ValueError, match=r"unblock|four bits|does not fit|zero points"):
        OPS["unblock"].infer(attrs, [TensorType(d, s) for d, s in zip(dtypes, shapes, strict=False)])

"""Elementwise, reducing, matmul and convolution kernels against the bodies of their groups.

Sizes lie one below, at and one above what tiles are cut at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ppuc.compiler.lowering.kernels.conv import ConvLowering
from ppuc.compiler.lowering.kinds import check_group
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.kernel import Load, Loop, Mma
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs, CumsumAttrs, ReduceAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.types import DType
from tests.support.group_kernels import TARGETS, Body, check, feeds_of, kernel_of, run, target_of

TINY = "ppu-tiny"
EDGES = (1, 31, 32, 33, 255, 256, 257, 4095, 4097)
pytestmark = pytest.mark.parametrize("target", TARGETS)


def reduce(kind: str, *axes: int) -> ReduceAttrs:
    return ReduceAttrs(kind, axes, True)


# -- elementwise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16, DType.I64, DType.BOOL], ids=str)
def test_elementwise(size: int, dtype: DType, target: str) -> None:
    b = Body()
    x, y = b.param(size, dtype=dtype), b.param(1, dtype=dtype)
    if dtype is DType.BOOL:
        check(b.graph(b.op("not", b.op("and", x, y))), target)
    else:
        check(b.graph(b.op("max", b.op("add", x, y), b.number(0, dtype))), target)


@pytest.mark.parametrize("shape", [(33, 31), (5, 1, 257), (2, 3, 4, 5, 6), (1, 1, 7)])
def test_operands_are_broadcast(shape: tuple[int, ...], target: str) -> None:
    """Along the last axis, along all others, and against a higher rank."""
    b = Body()
    x, row, column = b.param(*shape), b.param(shape[-1]), b.param(*shape[:-1], 1)
    y = b.op("mul", b.op("add", x, row), column)
    check(b.graph(b.op("sub", y, b.param(3, *shape))), target)


def test_operands_are_read_through_views(target: str) -> None:
    b = Body()
    x = b.op("transpose", b.param(40, 17, 3), attrs=TransposeAttrs((1, 2, 0)))
    y = b.op("slice", b.param(17, 6, 80), attrs=SliceAttrs((16, 0, 1), (17, 3, 40), (-1, 2, 2)))
    z = b.op("reshape", b.param(17 * 3, 40), attrs=ReshapeAttrs((17, 3, 40)))
    check(b.graph(b.op("add", b.op("mul", x, y), z)), target)


def test_results_are_stored_through_views(target: str) -> None:
    """A residual that is added after the reshape and transpose is read through both."""
    b = Body()
    x, residual = b.param(6, 10, 33), b.param(33, 60)
    y = b.op("reshape", b.op("relu", x), attrs=ReshapeAttrs((60, 33)))
    y = b.op("transpose", y, attrs=TransposeAttrs((1, 0)))
    check(b.graph(b.op("sub", y, residual)), target)


@pytest.mark.parametrize("rank", [2, 3])
def test_pads_are_read_as_they_are(rank: int, target: str) -> None:
    """The second operand may have a higher rank than the padded one."""
    b = Body()
    x = b.op("pad", b.param(19, 9), attrs=PadAttrs((2, 0), (1, 5), (0, 0), 1.5))
    check(b.graph(b.op("min", b.op("neg", x), b.param(*(1, 22, 14)[3 - rank :]))), target)


def test_a_broadcast_pad_is_refused(target: str) -> None:
    b = Body()
    x = b.op("pad", b.param(9), attrs=PadAttrs((2,), (1,), (0,), 0.0))
    with pytest.raises(NotFusable, match="a padded operand is broadcast or reshaped"):
        check_group(b.graph(b.op("add", x, b.param(5, 12))), target_of(target))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16], ids=str)
@pytest.mark.parametrize("size", [31, 32, 4097])
def test_copies_that_only_widen(size: int, dtype: DType, target: str) -> None:
    b = Body()
    x = b.op("transpose", b.param(3, size, dtype=dtype), attrs=TransposeAttrs((1, 0)))
    check(b.graph(b.op("cast", x, attrs=CastAttrs(DType.F32))), target)


def test_groups_of_immediates(target: str) -> None:
    """Nothing to load: the result is a number wherever it is stored."""
    b = Body()
    x = b.op("expand", b.number(2.5), attrs=ExpandAttrs((5, 40)))
    check(b.graph(b.op("add", b.op("neg", x), b.number(1))), target)


# -- reductions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.I64], ids=str)
def test_reductions(dtype: DType, axes: tuple[int, ...], kind: str, target: str) -> None:
    b = Body()
    x = b.param(3, 2, 5, dtype=dtype)
    check(b.graph(b.op("reduce", x, attrs=reduce(kind, *axes))), target, terms=30)


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("columns", [1, 255, 257, 4095, 4097, 9001])
def test_rows_that_fit_and_rows_that_are_walked_in_chunks(columns: int, rows: int, target: str) -> None:
    """A sum that needs the maximum, and elements that need both: a softmax."""
    b = Body()
    x = b.param(rows, columns)
    e = b.op("exp", b.op("sub", x, b.op("reduce", x, attrs=reduce("max", 1))))
    total = b.op("reduce", e, attrs=reduce("sum", 1))
    kernel = check(b.graph(b.op("div", e, total), total), target, terms=columns)
    loads = [s for _, s in kernel.statements() if isinstance(s, Load)]
    assert len(loads) == (3 if target == TINY and columns > 4000 else 1)


@pytest.mark.parametrize("columns", [1, 40, 4097, 9001])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["max", "min"])
def test_extremes_keep_their_first_or_last_position(kind: str, last: bool, columns: int, target: str) -> None:
    """Small integers repeat, in every chunk."""
    b = Body()
    x = b.param(3, columns, dtype=DType.I32)
    check(b.graph(b.op("argreduce", x, attrs=ArgreduceAttrs(kind, 1, True, last))), target)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(5, 33), (1, 33), (33, 1)])
def test_scans(shape: tuple[int, int], reverse: bool, exclusive: bool, axis: int, target: str) -> None:
    b = Body()
    x = b.param(*shape, dtype=DType.I32)
    y = b.op("cumsum", x, attrs=CumsumAttrs(axis, exclusive, reverse))
    check(b.graph(b.op("add", y, b.number(1, DType.I32))), target)


def test_elements_that_an_operand_repeats_are_not_summed_once(target: str) -> None:
    """A tile holds a broadcast operand once, so a sum of it is refused; its maximum is right."""
    for kind in ("sum", "prod", "max", "min"):
        b = Body()
        x = b.op("expand", b.param(4, 1, 7), attrs=ExpandAttrs((4, 9, 7)))
        body = b.graph(b.op("reduce", b.op("neg", x), attrs=reduce(kind, 1)))
        if kind in ("sum", "prod"):
            with pytest.raises(NotFusable, match="'reduce' along an axis that is broadcast"):
                check_group(body, target_of(target))
        else:
            check(body, target)


def test_a_broadcast_operand_is_summed_with_one_that_is_not(target: str) -> None:
    b = Body()
    x = b.op("expand", b.param(4, 1, 7), attrs=ExpandAttrs((4, 9, 7)))
    y = b.op("mul", x, b.param(9, 1))
    check(b.graph(b.op("reduce", y, attrs=reduce("sum", 1))), target, terms=9)


def test_positions_along_a_broadcast_axis_are_refused(target: str) -> None:
    for name, attrs in (("cumsum", CumsumAttrs(0)), ("argreduce", ArgreduceAttrs("max", 0, True, True))):
        b = Body()
        x = b.op("expand", b.param(1, 7), attrs=ExpandAttrs((4, 7)))
        with pytest.raises(NotFusable, match=f"'{name}' along an axis that is broadcast"):
            check_group(b.graph(b.op(name, b.op("neg", x), attrs=attrs)), target_of(target))


# -- matmul ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16], ids=str)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (15, 17, 16), (16, 16, 17), (33, 31, 65), (1, 129, 40), (70, 3, 7)]
)
def test_matmul(m: int, n: int, k: int, dtype: DType, target: str) -> None:
    b = Body()
    y = b.op("matmul", b.param(m, k, dtype=dtype), b.param(k, n, dtype=dtype))
    check(b.graph(y), target, terms=k)


@pytest.mark.parametrize(("turn_a", "turn_b"), [*itertools.product((False, True), repeat=2)])
def test_transposed_operands(turn_a: bool, turn_b: bool, target: str) -> None:
    b = Body()
    x, y = b.param(*((35, 33) if turn_a else (33, 35))), b.param(*((31, 35) if turn_b else (35, 31)))
    check(b.graph(b.op("matmul", x, y, attrs=MatmulAttrs(turn_a, turn_b))), target, terms=35)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 9, 8), (8, 5)),
        ((9, 8), (3, 8, 5)),
        ((1, 9, 8), (3, 8, 5)),
        ((3, 9, 8), (3, 8, 5)),
        ((2, 1, 9, 8), (1, 3, 8, 5)),
        ((2, 3, 9, 8), (3, 8, 5)),
        ((2, 1, 9, 8), (2, 3, 8, 5)),
        ((7, 1, 8), (7, 8, 1)),
        ((1, 8), (40, 8, 6)),
        ((20, 2, 8), (8, 1)),
    ],
)
def test_batches_are_broadcast(left: tuple[int, ...], right: tuple[int, ...], target: str) -> None:
    b = Body()
    check(b.graph(b.op("matmul", b.param(*left), b.param(*right))), target, terms=8, tilings=12)


def test_integer_products_are_exact(target: str) -> None:
    b = Body()
    x, y = b.param(33, 70, dtype=DType.I8), b.param(70, 17, dtype=DType.I8)
    product = b.op("matmul", x, y, attrs=MatmulAttrs(out=DType.I32))
    check(b.graph(b.op("add", product, b.param(17, dtype=DType.I32))), target)


@pytest.mark.parametrize("rows", [15, 16, 17])
def test_matmul_with_an_epilogue(rows: int, target: str) -> None:
    """Bias, activation, a residual read in the result's shape, and the result stored by heads."""
    b = Body()
    x, w, bias, residual = b.param(2, rows, 24), b.param(24, 32), b.param(32), b.param(2, 4, rows, 8)
    y = b.op("relu", b.op("add", b.op("matmul", x, w), bias))
    heads = b.op("reshape", y, attrs=ReshapeAttrs((2, rows, 4, 8)))
    heads = b.op("transpose", heads, attrs=TransposeAttrs((0, 2, 1, 3)))
    check(b.graph(b.op("add", heads, residual)), target, terms=26, tilings=8)


def test_matmul_with_a_softmax(target: str) -> None:
    """Rows are kept whole in the accumulator."""
    rows = 700 if target == TINY else 3000
    b = Body()
    x = b.op("matmul", b.param(rows, 16), b.param(16, 40))
    e = b.op("exp", b.op("sub", x, b.op("reduce", x, attrs=reduce("max", 1))))
    body = b.graph(b.op("div", e, b.op("reduce", e, attrs=reduce("sum", 1))))
    feeds = feeds_of(body)
    (got,) = run(body, *kernel_of(body, target), feeds)
    (want,) = run_graph(body, feeds).values()
    np.testing.assert_allclose(got, want, rtol=16 * 50 * 2.0**-24, atol=1e-7)


def test_wide_reductions_are_left_to_another_kernel(target: str) -> None:
    for axis, reason in ((1, "1 rows, kept whole, would leave units idle"), (0, "over other axes than the columns")):
        b = Body()
        x = b.op("matmul", b.param(1 + 3 * (1 - axis), 16), b.param(16, 40))
        with pytest.raises(NotFusable, match=reason):
            check_group(b.graph(b.op("reduce", x, attrs=reduce("sum", axis))), target_of(target))


# -- convolution -----------------------------------------------------------------------------------------------------


def conv(
    b: Body, x: tuple[int, ...], w: tuple[int, ...], dtype: DType = DType.F32, *, groups: int = 1, **fields: int
) -> Value:
    """A channels-last convolution, the same along all spatial axes."""
    rank = len(x) - 2
    low, high, stride, dilation = (
        (fields.get(name, default),) * rank
        for name, default in (("low", 0), ("high", 0), ("stride", 1), ("dilation", 1))
    )
    attrs = ConvAttrs(stride, low, high, dilation, groups, "nhwc")
    return b.op("conv", b.param(*x, dtype=dtype), b.param(*w, dtype=dtype), attrs=attrs)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize("channels", [(3, 15), (16, 17), (40, 33)])
@pytest.mark.parametrize("width", [7, 8, 9, 17])
def test_convolution(width: int, channels: tuple[int, int], dtype: DType, target: str) -> None:
    """Few channels are packed with the filter into one long k axis; more are walked tap by tap."""
    b = Body()
    y = conv(b, (1, 9, width, channels[0]), (3, 3, *channels), dtype, low=1, high=1)
    check(b.graph(y), target, terms=9 * channels[0])


@pytest.mark.parametrize("feed", ["taps", "rolled", "packed"])
@pytest.mark.parametrize("fields", [{"stride": 2, "low": 1, "high": 2}, {"dilation": 2, "low": 2, "high": 1}], ids=str)
def test_each_way_to_feed_the_engine(
    feed: str, fields: dict[str, int], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = ConvLowering._best
    monkeypatch.setattr(ConvLowering, "_best", lambda self, tiles, f: best(self, tiles, f) if f == feed else None)
    b = Body()
    y = conv(b, (2, 13, 12, 3), (3, 4, 3, 21), **fields)
    check(b.graph(b.op("relu", y)), target, terms=36)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "fields",
    [{"stride": 2, "low": 1}, {"dilation": 2, "low": 2, "high": 1}, {"stride": 3, "dilation": 2, "high": 4}],
    ids=["strided", "dilated", "both"],
)
def test_convolution_over_any_number_of_axes(fields: dict[str, int], rank: int, target: str) -> None:
    b = Body()
    size = {1: 65, 2: 12, 3: 7}[rank]
    y = conv(b, (2, *(size,) * rank, 6), (*(3,) * rank, 6, 5), DType.F32, **fields)
    check(b.graph(y), target, terms=6 * 3**rank)


@pytest.mark.parametrize(("groups", "channels", "outputs"), [(2, 8, 6), (3, 3, 6), (4, 32, 4), (2, 34, 34)])
def test_grouped_convolution(groups: int, channels: int, outputs: int, target: str) -> None:
    b = Body()
    y = conv(b, (2, 6, 7, channels), (3, 3, channels // groups, outputs), groups=groups, low=1)
    check(b.graph(b.op("relu", b.op("add", y, b.param(outputs)))), target, terms=9 * channels // groups + 1)


def test_convolution_with_an_epilogue(target: str) -> None:
    b = Body()
    y = conv(b, (2, 9, 10, 20), (3, 3, 20, 24), low=1, high=1)
    y = b.op("relu", b.op("add", b.op("add", y, b.param(24)), b.param(2, 9, 10, 24)))
    check(b.graph(b.op("transpose", y, attrs=TransposeAttrs((0, 3, 1, 2)))), target, terms=182)


def test_a_halo_that_l1_hardly_holds(target: str) -> None:
    """Three spatial axes, two groups, dilated: sixteen points at a time would not fit a small l1."""
    b = Body()
    attrs = ConvAttrs((1, 1, 1), (1, 2, 1), (2, 2, 3), (1, 2, 1), 2, "nhwc")
    y = b.op("conv", b.param(1, 5, 9, 2, 32), b.param(3, 2, 4, 16, 4), attrs=attrs)
    check(b.graph(y), target, terms=24 * 16, tilings=1)


def test_the_accumulator_restarts_at_every_tile(target: str) -> None:
    """`mma` begins a sum when all loops of its reduction do."""
    b = Body()
    kernel = check(b.graph(conv(b, (1, 12, 12, 300), (3, 3, 300, 16), low=1, high=1)), target, terms=2700, tilings=1)
    ((loops, mma),) = [(loops, s) for loops, s in kernel.statements() if isinstance(s, Mma)]
    assert set(mma.start) <= {loop.var for loop in loops if isinstance(loop, Loop)}
    assert mma.start

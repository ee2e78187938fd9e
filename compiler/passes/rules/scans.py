"""Splits scans along an axis that exceeds l1 into scans within blocks and a scan of the blocks' totals.

Invariant: integer results are bit-identical. Float sums are reassociated, in f32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ppuc.compiler.passes.rewriter import Walk
from ppuc.compiler.passes.rules.views import reshaped
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.reduction import CumsumAttrs, ReduceAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.types import DType
from ppuc.targets.schema import Target

ROWS_IN_L1 = 8
"""Copies of a row in l1 that a kernel with a scan needs: three slots for each of two operands, two for a result."""


def longest_row(dtype: DType, target: Target) -> int:
    """Length of a scanned axis that is certain to fit l1."""
    return max(2, target.l1.bytes // (ROWS_IN_L1 * max(4, dtype.bytes)))


def block_size(extent: int, longest: int) -> int:
    """A power of two near the square root of `extent`, so that blocks and totals are alike, but not above `longest`."""
    return min(1 << math.isqrt(max(extent - 1, 1)).bit_length(), 1 << (longest.bit_length() - 1))


def split_scans(target: Target) -> Callable[[Walk, Op], Value | None]:
    """The rule for `target`: cumsum(x[n]) -> cumsum(x[m, b]) + exclusive cumsum(sum(x[m, b]))."""

    def split_scan(w: Walk, op: Op) -> Value | None:
        x = op.operands[0]
        assert isinstance(op.attrs, CumsumAttrs)
        extent, longest = x.type.dims[op.attrs.axis], longest_row(x.type.dtype, target)
        if extent <= longest or not x.type.elements:
            return None
        if x.type.dtype in (DType.F16, DType.BF16) or (x.type.dtype.bytes == 1 and x.type.dtype.is_float):
            wide = w.emit("cumsum", w.emit("cast", x, attrs=CastAttrs(DType.F32)), attrs=op.attrs)
            return w.emit("cast", wide, attrs=CastAttrs(x.type.dtype))
        return _in_blocks(w, op, op.attrs, block_size(extent, longest))

    return split_scan


def _in_blocks(w: Walk, op: Op, attrs: CumsumAttrs, block: int) -> Value:
    """Pads the last block with zeros, which change neither the sums before them nor, in reverse, those after."""
    x, dims = op.operands[0], op.result.type.dims
    outer, extent, inner = math.prod(dims[: attrs.axis]), dims[attrs.axis], math.prod(dims[attrs.axis + 1 :])
    blocks = -(-extent // block)
    value, full = reshaped(w, x, (outer, extent, inner)), blocks * block
    if full != extent:
        value = w.emit("pad", value, attrs=PadAttrs((0, 0, 0), (0, full - extent, 0), (0, 0, 0)))
    value = reshaped(w, value, (outer, blocks, block, inner))
    within = w.emit("cumsum", value, attrs=CumsumAttrs(2, attrs.exclusive, attrs.reverse))
    totals = w.emit("reduce", value, attrs=ReduceAttrs("sum", (2,), True))
    carried = w.emit("cumsum", totals, attrs=CumsumAttrs(1, True, attrs.reverse))
    total = reshaped(w, w.emit("add", within, carried), (outer, full, inner))
    if full != extent:
        total = w.emit("slice", total, attrs=SliceAttrs((0, 0, 0), (outer, extent, inner), (1, 1, 1)))
    return reshaped(w, total, dims)

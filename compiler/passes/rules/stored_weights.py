"""Keeps constant weights that the model dequantizes before a product in their storage format.

Supported are numbers of at most 8 bits with scales and zero points per matrix, per row or column, or per block along
the summed dimension. Products of two 8-bit operands are excluded: they need no widening.

Invariant: the weights are bit-identical to the file's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ppuc.compiler.blocks import Weights, emit_weights
from ppuc.compiler.passes.rewriter import Walk
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.quantized import DequantizeAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType

_BYTES = (DType.I8, DType.U8)


def stored_weights(w: Walk, op: Op) -> Value | None:
    """matmul(x, dequantize(const)) -> matmul(x, unblock(const))"""
    attrs = op.attrs
    assert isinstance(attrs, MatmulAttrs)
    value, transposed = op.operands[1], attrs.transpose_b
    turn = w.producer(value, "transpose")
    if turn is not None and turn.attrs.perm == (1, 0):  # type: ignore[attr-defined]
        value, transposed = turn.operands[0], not transposed
    found = w.producer(value, "dequantize")
    if found is None or found.operands[0].type.rank != 2 or not op.operands[0].type.rank:
        return None
    resources = [w.resource(v) for v in found.operands]
    known = [r for r in resources if r is not None]
    if len(known) != len(resources) or found.result.type.dtype is not op.operands[0].type.dtype:
        return None
    weights = _weights(found, known, transposed)
    if weights is None:
        return None
    emitted = emit_weights(w.emit, w.const, weights, found.result.type.dtype)
    if emitted is None:
        return None
    w.absorb(found)
    plain = MatmulAttrs(attrs.transpose_a, False, attrs.out)
    return w.emit("matmul", op.operands[0], emitted, attrs=plain)


def _weights(found: Op, resources: list[Resource], transposed: bool) -> Weights | None:
    """The matrix as [k, n]; `transposed` if the file stores it as [n, k]."""
    attrs = found.attrs
    assert isinstance(attrs, DequantizeAttrs)
    codes, scale, *zero = resources
    dtype = codes.type.dtype
    if dtype.bits > 8 or (dtype.is_integer and dtype not in _BYTES) or scale.type.dtype is DType.F64:
        return None
    rows, columns = codes.type.dims[::-1] if transposed else codes.type.dims
    along = attrs.axis == (1 if transposed else 0)
    if attrs.block and not along:
        return None
    block = attrs.block or (1 if along and scale.type.elements > 1 else rows)
    four = attrs.four or dtype is DType.F4E2M1
    halves = None if not four else DType.F4E2M1 if dtype is DType.F4E2M1 else DType.I8
    unsigned = four and dtype is DType.U8

    def numbers() -> np.ndarray:
        whole = codes.array().T if transposed else codes.array()
        return whole.view(np.uint8) - np.uint8(8) if unsigned else whole

    def by_block(resource: Resource) -> np.ndarray:
        array = resource.array()
        if attrs.block:
            return array.T if transposed else array
        shape = (-1, 1) if along and array.size > 1 else (1, -1)
        return np.broadcast_to(array.reshape(shape), (-(-rows // block), columns))

    points = zero[0] if zero else Resource.of(np.zeros(scale.type.dims, dtype.numpy))
    zeros = _zeros(points, unsigned, by_block) if dtype.is_integer else None
    type = DType.U8 if dtype is DType.U8 and not four else DType.I8
    return Weights(
        rows, columns, block, dtype, numbers, scale.type.dtype, functools.partial(by_block, scale), halves, zeros, type
    )


def _zeros(
    points: Resource, unsigned: bool, by_block: Callable[[Resource], np.ndarray]
) -> Callable[[], np.ndarray] | None:
    """The zero points of the stored numbers. Unsigned 4-bit numbers are stored minus 8, as signed ones."""
    given = points.array()
    if not unsigned:
        return functools.partial(by_block, points) if given.any() else None
    if (given == 8).all():
        return None
    less = Resource.of((given.view(np.uint8) - np.uint8(8)).view(np.int8))
    return functools.partial(by_block, less)

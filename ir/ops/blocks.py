"""Block-quantized weights: blocks along the summed dimension of a product, with one scale per block.

They stay packed until a tile is multiplied: the vector engine widens the tile inside the product's kernel.

4-bit numbers are packed two per byte: the low halves of the bytes of row r are row r of the matrix, the high halves row
r + k / 2. Both halves of a tile of bytes are whole rows, so no interleaving is needed.

Invariant: a weight is code times scale in f32, rounded once to the product's operand format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.numerics import halves
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.elementwise import FLOATS, convert
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder

HALVES = (DType.F4E2M1, DType.I8)
"""Types of 4-bit numbers: floats, or integers from -8 to 7."""


@dataclass(frozen=True, slots=True)
class UnblockAttrs(Attrs):
    """`to` is the float type of the result; `block` rows share a scale. `halves`: the type of the two numbers in each
    byte of codes (None: one number per code)."""

    to: DType
    block: int
    halves: DType | None = None


def _infer(attrs: UnblockAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if not 2 <= len(types) <= 3 or any(t.rank != 2 for t in types) or types[1].dtype not in (*FLOATS, DType.F8E8M0):
        raise ValueError(
            f"unblock takes matrices of codes, float scales and, if any, zero points (got {_listed(types)})"
        )
    codes, scale = types[:2]
    if attrs.halves not in (None, *HALVES) or (attrs.halves is not None and codes.dtype is not DType.U8):
        raise ValueError(
            f"numbers of four bits are {' or '.join(map(str, HALVES))} in u8 (got {attrs.halves} in {codes})"
        )
    if attrs.to not in FLOATS or codes.dtype.bits > 8:
        raise ValueError(f"unblock widens 8 bits or less to a float (got {codes.dtype} to {attrs.to})")
    rows = codes.dims[0] * (1 if attrs.halves is None else 2)
    if attrs.block < 1 or codes.dims[0] % attrs.block or scale.dims != (rows // attrs.block, codes.dims[1]):
        raise ValueError(f"{codes} with a scale for each {attrs.block} of {rows} rows does not fit scales {scale}")
    if len(types) == 3 and (types[2].dims != scale.dims or types[2].dtype.bits > 8):
        raise ValueError(f"zero points should have shape {list(scale.dims)} (got {types[2]})")
    return (TensorType(attrs.to, (rows, codes.dims[1])),)


def _listed(types: Sequence[TensorType]) -> str:
    return ", ".join(map(str, types))


def _reference(
    attrs: UnblockAttrs, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    numbers = codes.astype(np.float32) if attrs.halves is None else halves(codes[None], attrs.halves, 0)
    blocks = numbers.reshape(scale.shape[0], attrs.block, scale.shape[1])
    if zero is not None:
        blocks = blocks - zero.astype(np.float32)[:, None]
    wide: np.ndarray = blocks * scale.astype(np.float32)[:, None]
    return (convert(wide.reshape(-1, scale.shape[1]), attrs.to),)


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, UnblockAttrs)
    codes, *by_block = op.operands
    numbers = c.cast(b, codes, DType.F32)
    if attrs.halves is not None:
        table = b.const(halves(np.arange(16, dtype=np.uint8)[None], attrs.halves, 0)[0], "table")
        high = b("floor", b("mul", numbers, b.scalar(1 / 16, DType.F32)))
        low = b("sub", numbers, b("mul", high, b.scalar(16, DType.F32)))
        both = b("concat", low, high, attrs=ConcatAttrs(0))
        numbers = b("gather", table, c.cast(b, both, DType.I64), attrs=GatherAttrs(0))
    blocks, columns = by_block[0].type.dims
    numbers = c.reshape(b, numbers, (blocks, attrs.block, columns))
    scale, *zero = (c.reshape(b, c.cast(b, v, DType.F32), (blocks, 1, columns)) for v in by_block)
    numbers = b("mul", b("sub", numbers, zero[0]) if zero else numbers, scale)
    return (c.cast(b, c.reshape(b, numbers, op.result.type.dims), attrs.to),)


def in_halves(codes: np.ndarray) -> np.ndarray:
    """u8[k / 2, n] of 4-bit `codes` u8[k, n]."""
    low, high = np.split(codes & np.uint8(15), 2)
    packed: np.ndarray = low | (high << np.uint8(4))
    return packed


register(
    OpDef(
        name="unblock",
        formula="result[k, n] = (codes[k, n] - zero[k / block, n]) * scale[k / block, n]",
        kind=Kind.COMPOSITE,
        operands="codes, scale, zero?",
        attrs=UnblockAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)

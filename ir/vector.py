"""Vector programs: the computation of one `vec` instruction over tiles.

A program is a straight line of steps over tiles of equal rank (axes of size 1 broadcast, reductions keep their axis),
so it fits any tile size. Values inside are f32, i32, i64 or bool (`compute_dtype`); a tile of a narrower type is
widened on reading and rounded once on writing. Only the valid part of a tile is computed; the rest is written as zero,
so a consumer of the whole tile reads neutral padding.

Invariant: steps are in definition-before-use order and every result is the result of a step or a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.ir.types import DType

REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")
"""Steps that combine along `axes` (kept with size 1). argmax and argmin take one axis and return i64 positions."""

STRUCTURAL = ("const", "scalar", "iota", "window", "transpose", "cumsum", "cast", "reshape", "mac", "clip", "halves")
"""Steps other than elementwise ops and reductions."""


def compute_dtype(dtype: DType) -> DType:
    """The vector engine's compute dtype for elements stored as `dtype`."""
    if dtype.is_float:
        return DType.F32
    if dtype in (DType.BOOL, DType.I64):
        return dtype
    return DType.I64 if dtype in (DType.U64, DType.U32) else DType.I32


@dataclass(frozen=True, slots=True)
class Step:
    """`result = op(args)`. Attributes by op:

    elementwise names (`add`, `exp`, ...): none, or `last`-like flags in `ints`
    const: `number`, `dtype`               an immediate
    scalar: `ints = (i,)`                  the statement's i-th scalar operand (an affine of loop variables), i64
    iota: `ints = (axis, size)`            0, 1, ... along `axis`, i64, as long as the argument (a tile) is there, at
    most `size` cast: `dtype`                          rounds to `dtype`; the result is again a compute dtype value
    reduce_*/argmax/argmin: `ints = axes`
    cumsum: `ints = (axis, exclusive, reverse)`
    window: `ints = (rank, *offsets, *strides, *sizes)`   strided sub-box of a tile
    transpose: `ints = permutation`
    mac: `x * y + z`, the product rounded before it is added: one operation of a lane
    clip: `min(max(x, low), high)`, NaN if x is: one operation of a lane (the median of three)
    reshape: `ints = shape`
    halves: `ints = (axis,)`, `dtype`      the two numbers of four bits in each byte, f32: those in the low halves
    before those in the high ones along `axis`, which has one element; f4e2m1, or i8 for two's complement
    """

    result: str
    op: str
    args: tuple[str, ...] = ()
    ints: tuple[int, ...] = ()
    number: float = 0.0
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class VecParam:
    """A tile operand. `whole` tiles are read in full (including the halo); others are clipped to the statement's valid
    extents."""

    name: str
    dtype: DType
    whole: bool = False


@dataclass(frozen=True, slots=True)
class VectorProgram:
    """`vector @name(params) -> (results) { steps }`; `results` are pairs (value name, dtype of the tile it is written
    to)."""

    name: str
    params: tuple[VecParam, ...]
    results: tuple[tuple[str, DType], ...]
    steps: tuple[Step, ...]

"""Arithmetic that no engine of any target supports.

Invariant: all other arithmetic follows the op records exactly, up to the rounding of floats.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.ir.graph import Op
from ppuc.ir.ops import OPS, Kind
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.types import DType


@dataclass(frozen=True, slots=True)
class Objection:
    """Unsupported arithmetic on `dtype`: `what` the op does; `widest` is the nearest supported type."""

    what: str
    dtype: DType
    widest: DType


DOUBLE = Objection("computes in double precision, which no engine supports", DType.F64, DType.F32)
UNSIGNED = Objection(
    "computes on unsigned 64-bit integers, of which engines support only the lower half", DType.U64, DType.I64
)

_MODULAR = frozenset(
    {"add", "bitand", "bitnot", "bitor", "bitxor", "eq", "matmul", "mul", "ne", "select", "shl", "sub"}
)
"""Ops whose results modulo 2**64 do not depend on signedness."""
_MOVING = (Kind.VIEW, Kind.MOVE, Kind.CONSTANT, Kind.STRUCTURE)


def objection(op: Op) -> Objection | None:
    """Why no engine can compute `op`; None if one can."""
    if op.name == "const":
        return None
    types = {v.type.dtype for v in (*op.operands, *op.results)}
    if DType.F64 in types:
        return DOUBLE
    return UNSIGNED if DType.U64 in types and _reads_sign(op) else None


def _reads_sign(op: Op) -> bool:
    """Whether the result of an op on u64 differs from that on i64 with the same bits."""
    if isinstance(op.attrs, CastAttrs):
        return op.operands[0].type.dtype.is_float or op.attrs.to.is_float
    combines = getattr(op.attrs, "reduction", getattr(op.attrs, "kind", ""))
    if op.name in ("reduce", "cumsum") or OPS[op.name].kind in _MOVING:
        return combines in ("max", "min")
    return op.name not in _MODULAR

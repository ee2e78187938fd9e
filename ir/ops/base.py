"""Op records and their registry.

An OpDef holds everything the compiler needs to know about an op, independent of targets: attributes, type inference, a
reference function in numpy, the access pattern (indexing) and, for composites, the decomposition. Invariant: `infer`
agrees with the types of what `reference` returns.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.affine import Affine, var
from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.plugins import Extensible
from ppuc.ir.types import TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


class Kind(enum.Enum):
    """How an op can be lowered; the value appears in the generated reference."""

    ELEMENTWISE = "elementwise"  # result element depends on the same (broadcast) element of each operand
    REDUCTION = "reduction"  # elementwise, then combined along axes with an associative, commutative function
    SCAN = "scan"  # running combination along one axis
    CONTRACTION = "contraction"  # sums of products: runs on the tensor engine
    WINDOW = "window"  # reductions over sliding windows
    VIEW = "view"  # renames elements without moving them: a strided view of the operand
    MOVE = "move"  # moves elements: concat, pad, gather, scatter
    COMPOSITE = "composite"  # has a decomposition into the other kinds
    CONSTANT = "constant"
    STRUCTURE = "structure"  # group, stage, host: added by passes


@dataclass(frozen=True, slots=True)
class IterDim:
    """One dimension of an op's iteration space; `reduced` when results do not depend on it."""

    name: str
    size: int
    reduced: bool = False


@dataclass(frozen=True, slots=True)
class Indexing:
    """Iteration space and, per operand and result, one Affine over iteration-dim names for each tensor dimension.

    A window dimension reads `2 * oh + kh - 1`; a broadcast dimension reads the constant 0.
    """

    dims: tuple[IterDim, ...]
    operands: tuple[tuple[Affine, ...], ...]
    results: tuple[tuple[Affine, ...], ...]

    @property
    def points(self) -> int:
        """Size of the iteration space; for contractions, the number of multiply-accumulates."""
        return math.prod(d.size for d in self.dims)


@dataclass(frozen=True, slots=True)
class OpDef:
    """One op. `formula` is a one-line definition for people; `operands` names them (a trailing `?` marks optional ones,
    `...` variadic ones); functions take the attribute object first."""

    name: str
    formula: str
    kind: Kind
    operands: str
    infer: Callable[[Any, Sequence[TensorType]], tuple[TensorType, ...]]
    reference: Callable[..., tuple[np.ndarray, ...]] | None
    attrs: type[Attrs] = Attrs
    indexing: Callable[[Any, Sequence[TensorType]], Indexing | None] | None = None
    """The access pattern; None for operands and attributes whose access is not affine."""
    decompose: Callable[[Builder, Op], Sequence[Value]] | None = None

    def pattern(self, op: Op) -> Indexing | None:
        """The access pattern of `op`; None if it is not affine."""
        return None if self.indexing is None else self.indexing(op.attrs, [v.type for v in op.operands])


def _record(name: str, found: Any) -> dict[str, OpDef]:
    if not isinstance(found, OpDef):
        raise ValueError("is not a ppuc.ir.ops.OpDef")
    if found.name != name:
        raise ValueError(f"the op's own name is '{found.name}'")
    return {name: found}


OPS: Extensible[str, OpDef] = Extensible("ppuc.ops", _record)
"""Every op record by name: built-in ones, registered by importing `ppuc.ir.ops`, and those that packages register under
the op's name in entry point group `ppuc.ops`."""


def register(record: OpDef) -> OpDef:
    """Add a built-in record to OPS. Raises ValueError if the name is taken."""
    if OPS.holds(record.name):
        raise ValueError(f"op '{record.name}' is defined twice")
    OPS[record.name] = record
    return record


def points(op: Op) -> int:
    """Number of points that `op` computes: multiply-accumulates of a contraction, else the size of its iteration space,
    or the elements of its results."""
    pattern = OPS[op.name].pattern(op)
    return sum(r.type.elements for r in op.results) if pattern is None else pattern.points


def dim_names(rank: int) -> tuple[str, ...]:
    """d0, d1, ... for an iteration space that is the result's shape."""
    return tuple(f"d{i}" for i in range(rank))


def broadcast_access(shape: Sequence[int], out: Sequence[int]) -> tuple[Affine, ...]:
    """The access of an operand of `shape` in an iteration over `out` under numpy broadcasting (size 1 reads index
    0)."""
    names = dim_names(len(out))[len(out) - len(shape) :]
    sizes = out[len(out) - len(shape) :]
    return tuple(Affine() if s == 1 and o != 1 else var(n) for n, s, o in zip(names, shape, sizes, strict=True))

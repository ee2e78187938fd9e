"""Views: ops whose result elements are elements of the operand under another index.

Invariant: no arithmetic and no padding. Every result element is exactly one operand element, so a view only changes
addressing, or at worst takes one copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.ir.affine import Affine, affine, var
from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, broadcast_access, dim_names, register
from ppuc.ir.types import TensorType, broadcast_shapes


@dataclass(frozen=True, slots=True)
class ReshapeAttrs(Attrs):
    """`shape` is the result's shape; its product equals the operand's."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransposeAttrs(Attrs):
    """Result dimension i is operand dimension `perm[i]`."""

    perm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SliceAttrs(Attrs):
    """Per dimension: result index i (below `size`) reads operand index `start + i * step`. Steps may be negative."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpandAttrs(Attrs):
    """`shape` is the result's shape, to which the operand broadcasts."""

    shape: tuple[int, ...]


def _infer_reshape(attrs: ReshapeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if math.prod(attrs.shape) != types[0].elements or any(d < 0 for d in attrs.shape):
        raise ValueError(f"cannot reshape {types[0]} ({types[0].elements} elements) to {list(attrs.shape)}")
    return (TensorType(types[0].dtype, attrs.shape),)


def _infer_transpose(attrs: TransposeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if sorted(attrs.perm) != list(range(types[0].rank)):
        raise ValueError(f"perm {list(attrs.perm)} is not a permutation of the dimensions of {types[0]}")
    return (TensorType(types[0].dtype, tuple(types[0].dims[p] for p in attrs.perm)),)


def _infer_slice(attrs: SliceAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if not len(attrs.starts) == len(attrs.sizes) == len(attrs.steps) == types[0].rank:
        raise ValueError(f"slice needs one start, size and step for each dimension of {types[0]}")
    for dim, (start, size, step, extent) in enumerate(
        zip(attrs.starts, attrs.sizes, attrs.steps, types[0].dims, strict=True)
    ):
        if step == 0:
            raise ValueError(f"slice step of dimension {dim} is zero")
        last = start + (size - 1) * step
        if size < 0 or (size > 0 and not (0 <= start < extent and 0 <= last < extent)):
            raise ValueError(f"slice reads {start}..{last} of dimension {dim} of {types[0]}")
    return (TensorType(types[0].dtype, attrs.sizes),)


def _infer_expand(attrs: ExpandAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if broadcast_shapes(types[0].dims, attrs.shape) != attrs.shape:
        raise ValueError(f"{types[0]} does not broadcast to {list(attrs.shape)}")
    return (TensorType(types[0].dtype, attrs.shape),)


def _slice(attrs: SliceAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    index = []
    for start, size, step in zip(attrs.starts, attrs.sizes, attrs.steps, strict=True):
        stop = start + size * step
        index.append(slice(0, 0) if size == 0 else slice(start, stop if stop >= 0 else None, step))
    return (x[tuple(index)],)


def common_factors(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The coarsest sizes of which both shapes are products of neighbours: `[6, 4]` and `[2, 12]` -> `(2, 3, 4)`; None
    if there are none (`[4, 6]` and `[6, 4]`) or a size is zero."""
    cuts = sorted({math.prod(shape[i:]) for shape in (a, b) for i in range(len(shape) + 1)}, reverse=True)
    if 0 in cuts or any(high % low for high, low in itertools.pairwise(cuts)):
        return None
    return tuple(high // low for high, low in itertools.pairwise(cuts))


def _grouped(shape: Sequence[int], factors: Sequence[int]) -> tuple[Affine, ...]:
    """Each dimension of `shape` as an affine expression over its factors d0, d1, ..."""
    accesses, at = [], 0
    for size in shape:
        names = []
        taken = 1
        while taken < size:
            taken *= factors[at]
            names.append((f"d{at}", factors[at]))
            at += 1
        stride, terms = 1, {}
        for name, factor in reversed(names):
            terms[name] = stride
            stride *= factor
        accesses.append(affine(0, terms))
    return tuple(accesses)


def _index_reshape(attrs: ReshapeAttrs, types: Sequence[TensorType]) -> Indexing | None:
    """None if the two shapes have no common factors: such a reshape is not affine."""
    factors = common_factors(types[0].dims, attrs.shape)
    if factors is None:
        return None
    dims = tuple(IterDim(f"d{i}", size) for i, size in enumerate(factors))
    return Indexing(dims, (_grouped(types[0].dims, factors),), (_grouped(attrs.shape, factors),))


def _over_result(shape: Sequence[int], operand: tuple[Affine, ...]) -> Indexing:
    names = dim_names(len(shape))
    dims = tuple(IterDim(n, s) for n, s in zip(names, shape, strict=True))
    return Indexing(dims, (operand,), (tuple(var(n) for n in names),))


def _index_transpose(attrs: TransposeAttrs, types: Sequence[TensorType]) -> Indexing:
    access = tuple(var(f"d{attrs.perm.index(i)}") for i in range(len(attrs.perm)))
    return _over_result(tuple(types[0].dims[p] for p in attrs.perm), access)


def _index_slice(attrs: SliceAttrs, types: Sequence[TensorType]) -> Indexing:
    access = tuple(
        var(f"d{i}", step) + start for i, (start, step) in enumerate(zip(attrs.starts, attrs.steps, strict=True))
    )
    return _over_result(attrs.sizes, access)


register(
    OpDef(
        name="reshape",
        formula="result = x with the same row-major elements under another shape",
        kind=Kind.VIEW,
        operands="x",
        attrs=ReshapeAttrs,
        infer=_infer_reshape,
        reference=lambda attrs, x: (x.reshape(attrs.shape),),
        indexing=_index_reshape,
    )
)
register(
    OpDef(
        name="transpose",
        formula="result[i0, i1, ...] = x[j...] with j[perm[n]] = i[n]",
        kind=Kind.VIEW,
        operands="x",
        attrs=TransposeAttrs,
        infer=_infer_transpose,
        reference=lambda attrs, x: (x.transpose(attrs.perm),),
        indexing=_index_transpose,
    )
)
register(
    OpDef(
        name="slice",
        formula="result[i...] = x[start + i * step ...]",
        kind=Kind.VIEW,
        operands="x",
        attrs=SliceAttrs,
        infer=_infer_slice,
        reference=_slice,
        indexing=_index_slice,
    )
)
register(
    OpDef(
        name="expand",
        formula="result = x broadcast to shape",
        kind=Kind.VIEW,
        operands="x",
        attrs=ExpandAttrs,
        infer=_infer_expand,
        reference=lambda attrs, x: (np.broadcast_to(x, attrs.shape),),
        indexing=lambda attrs, types: _over_result(attrs.shape, broadcast_access(types[0].dims, attrs.shape)),
    )
)

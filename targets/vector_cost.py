"""The cost of a vector program: lane and special-function operations per element of each step.

The cost is symbolic in the valid extents of the tile's axes: an extent of an intermediate is either a tile axis or a
number (after a window, a reduction, a reshape), so one derivation serves every edge tile and every candidate tile size.

Counts per element: an arithmetic, comparison, selection or rounding operation is one lane operation. A special function
is one lookup in the unit plus the lane operations that reduce the range and correct the result: exp, log, sqrt, rsqrt,
reciprocal and sin take 1 + 1; composites are sums of those (div = reciprocal and a multiply; tanh and sigmoid = exp,
add, reciprocal; pow = log, multiply, exp; erf = exp, reciprocal and a polynomial of degree five). i64 takes twice the
lane operations. Transpose and reshape move each element once, as does a window that cuts the innermost axis; a window
that keeps it whole only changes addresses: its elements cross l1 again without lane operations. Unpacking and widening
a 4-bit number takes one operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.ir.errors import InternalError
from ppuc.ir.ops.elementwise import ELEMENTWISE
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import REDUCTIONS, Step, VectorProgram, compute_dtype
from ppuc.targets.cost import Number
from ppuc.targets.schema import Target

SPECIAL: dict[str, tuple[int, int]] = {
    "exp": (1, 1),
    "expm1": (2, 1),
    "log": (1, 1),
    "log1p": (2, 1),
    "sqrt": (1, 1),
    "rsqrt": (1, 1),
    "reciprocal": (1, 1),
    "div": (2, 1),
    "mod": (4, 1),
    "fmod": (4, 1),
    "pow": (3, 2),
    "sin": (2, 1),
    "cos": (2, 1),
    "tan": (4, 3),
    "asin": (6, 1),
    "acos": (6, 1),
    "atan": (6, 1),
    "sinh": (3, 2),
    "cosh": (3, 2),
    "tanh": (3, 2),
    "asinh": (4, 2),
    "acosh": (4, 2),
    "atanh": (4, 2),
    "erf": (8, 2),
    "sigmoid": (2, 2),
}
"""(lane, special function) operations per element; an elementwise step that is not listed takes (1, 0)."""

_FREE = ("const", "scalar", "iota")
_STRUCTURAL: dict[str, int] = {
    "window": 1,
    "transpose": 1,
    "reshape": 1,
    "cast": 1,
    "cumsum": 2,
    "mac": 1,
    "clip": 1,
    "halves": 1,
}
_TESTS = ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "not", "and", "or", "xor")

Extent = tuple[int, int]
"""(size, axis): the valid extent of tile axis `axis`, or `size` where axis is -1."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of elements: `const` times the valid extents of `axes`."""

    const: int
    axes: tuple[int, ...]

    def of(self, extents: Sequence[Number]) -> Number:
        """Evaluate for the valid extents of the tile's axes."""
        total: Number = self.const
        for a in self.axes:
            total = total * extents[a]
        return total


@dataclass(frozen=True, slots=True)
class Term:
    """One step: operations per element and `tail_clk` cycles that do not depend on the number of elements."""

    count: Count
    lane_ops: int
    sfu_ops: int
    tail_clk: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """One operand: `bytes` per element read or written in `space`."""

    count: Count
    bytes: int
    space: Space
    write: bool


@dataclass(frozen=True, slots=True)
class VecCost:
    """The cost of a vector program, as a function of a tile's valid extents."""

    terms: tuple[Term, ...]
    traffic: tuple[Traffic, ...]

    def cycles(self, extents: Sequence[Number], target: Target) -> Number:
        """Cycles on the vector engine (issue not included): the sum over steps, of lanes and special functions or the
        longer of both, but at least the time that l1 and acc need to deliver the operands."""
        lane, special = 0.0, 0.0
        for t in self.terms:
            own, looked_up = step_clk(
                t.count.of(extents), t.lane_ops, t.sfu_ops, t.tail_clk, target.vector.lanes, target.vector.sfu_per_clk
            )
            lane, special = lane + own, special + looked_up
        total = np.maximum(lane, special) if target.vector.sfu_beside_lanes else lane + special
        rate = {Space.ACC: target.acc.bytes_per_clk}
        moved: Number = sum(
            t.count.of(extents) * t.bytes / rate.get(t.space, target.l1.bytes_per_clk) for t in self.traffic
        )
        return np.maximum(total, moved)


def step_clk(
    elements: Number, lane_ops: int, sfu_ops: int, tail_clk: int, lanes: int, sfu_per_clk: int
) -> tuple[Number, Number]:
    """Cycles of one step on `elements` elements in the lanes, and in the special-function unit."""
    lane = np.ceil(elements * lane_ops / lanes) + tail_clk * np.minimum(elements, 1)
    return lane, np.ceil(elements * sfu_ops / sfu_per_clk)


def vec_cost(
    program: VectorProgram,
    in_shapes: Sequence[tuple[int, ...]],
    out_shapes: Sequence[tuple[int, ...]],
    in_spaces: Sequence[Space] | None = None,
    out_spaces: Sequence[Space] | None = None,
) -> VecCost:
    """Derive the cost of `program` on tiles of these shapes (of equal rank). Spaces default to l1. An axis along which
    operands or results have different sizes, as those of a transpose, is not one of the tile: its size is a number."""
    tiles = [s for p, s in zip(program.params, in_shapes, strict=True) if not p.whole] + list(out_shapes)
    of_tile = [len({n for n in sizes if n != 1}) <= 1 for sizes in zip(*tiles, strict=True)]
    shapes: dict[str, tuple[Extent, ...]] = {}
    dtypes: dict[str, DType] = {}
    traffic: list[Traffic] = []
    for i, (param, shape) in enumerate(zip(program.params, in_shapes, strict=True)):
        shapes[param.name] = tuple(
            (n, a if of_tile[a] and n != 1 and not param.whole else -1) for a, n in enumerate(shape)
        )
        dtypes[param.name] = compute_dtype(param.dtype)
        space = in_spaces[i] if in_spaces else Space.L1
        traffic.append(Traffic(_count(shapes[param.name]), param.dtype.bytes, space, False))
    terms: list[Term] = []
    stored = {param.name: param.dtype.bytes for param in program.params}
    for step in program.steps:
        args = [shapes[a] for a in step.args]
        shapes[step.result], dtypes[step.result] = _result(step, args), _dtype(step, [dtypes[a] for a in step.args])
        if step.op == "window":
            size = stored.get(step.args[0], dtypes[step.result].bytes)
            traffic.append(Traffic(_count(shapes[step.result]), size, Space.L1, False))
        if step.op not in _FREE:
            terms.append(_term(step, args, shapes[step.result], [dtypes[a] for a in step.args]))
    for i, ((_, dtype), shape) in enumerate(zip(program.results, out_shapes, strict=True)):
        extents = tuple((n, a if of_tile[a] and n != 1 else -1) for a, n in enumerate(shape))
        traffic.append(Traffic(_count(extents), dtype.bytes, out_spaces[i] if out_spaces else Space.L1, True))
    return VecCost(tuple(terms), tuple(traffic))


def _count(shape: Sequence[Extent]) -> Count:
    return Count(math.prod(n for n, a in shape if a < 0), tuple(a for _, a in shape if a >= 0))


def _term(step: Step, args: Sequence[tuple[Extent, ...]], result: tuple[Extent, ...], dtypes: Sequence[DType]) -> Term:
    wide = 2 if DType.I64 in dtypes else 1
    if step.op in REDUCTIONS:
        depth = math.prod(args[0][a][0] for a in step.ints)
        ops = 2 if step.op.startswith("arg") else 1
        return Term(_count(args[0]), ops * wide, 0, math.ceil(math.log2(max(depth, 1))))
    if step.op == "window" and _is_address(step, args[0]):
        return Term(_count(result), 0, 0, 0)
    if step.op in _STRUCTURAL:
        return Term(_count(result), _STRUCTURAL[step.op] * wide, 0, 0)
    if step.op not in ELEMENTWISE:
        raise InternalError(f"vector step '{step.op}' has no cost")
    lane, sfu = SPECIAL.get(step.op, (1, 0))
    return Term(_count(result), lane * wide, sfu * wide, 0)


def _is_address(step: Step, whole: Sequence[Extent]) -> bool:
    """Whether a window keeps the innermost axis, which runs over the lanes, whole: it is then a shifted and strided
    read of the tile without lane operations."""
    rank = step.ints[0]
    offset, stride, size = (step.ints[(i + 1) * rank] for i in range(3))
    return offset == 0 and stride == 1 and size == whole[-1][0]


def _result(step: Step, args: Sequence[tuple[Extent, ...]]) -> tuple[Extent, ...]:
    """Shape of a step's result."""
    if step.op in ("const", "scalar"):
        return ()
    if step.op == "iota":
        axis = step.ints[0]
        return tuple(e if a == axis else (1, -1) for a, e in enumerate(args[0]))
    if step.op in REDUCTIONS:
        return tuple((1, -1) if a in step.ints else e for a, e in enumerate(args[0]))
    if step.op == "window":
        rank = step.ints[0]
        return tuple((n, -1) for n in step.ints[1 + 2 * rank : 1 + 3 * rank])
    if step.op == "halves":
        return tuple((2, -1) if a == step.ints[0] else e for a, e in enumerate(args[0]))
    if step.op == "transpose":
        return tuple(args[0][a] for a in step.ints)
    if step.op == "reshape":
        return tuple((n, -1) for n in step.ints)
    return _broadcast(args)


def _broadcast(args: Sequence[tuple[Extent, ...]]) -> tuple[Extent, ...]:
    rank = max((len(a) for a in args), default=0)
    out: list[Extent] = [(1, -1)] * rank
    for shape in args:
        for i, extent in enumerate(shape, rank - len(shape)):
            if out[i] == (1, -1) or (out[i][1] < 0 <= extent[1]):
                out[i] = extent
    return tuple(out)


def _dtype(step: Step, args: Sequence[DType]) -> DType:
    if step.op in ("argmax", "argmin", "scalar", "iota"):
        return DType.I64
    if step.op == "halves":
        return DType.F32
    if step.op in ("const", "cast"):
        assert step.dtype is not None
        return compute_dtype(step.dtype)
    if step.op in _TESTS:
        return DType.BOOL
    return args[1] if step.op == "select" else args[0]


__all__ = ["SPECIAL", "Count", "Term", "Traffic", "VecCost", "step_clk", "vec_cost"]

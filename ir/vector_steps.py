"""The semantics of vec in numpy: the steps of a vector program on tiles.

Values are stacks of tiles, [count, *shape]: the simulator computes many at a time, the kernel interpreter one.

Invariant: the result of a tile does not depend on the others of its stack, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.ir.kernel import Buffer, Vec
from ppuc.ir.numerics import bits_dtype, halves, narrow, widen
from ppuc.ir.ops.elementwise import ELEMENTWISE
from ppuc.ir.tile import AffinePlan, Env, Slots
from ppuc.ir.types import DType
from ppuc.ir.vector import REDUCTIONS, Step, VectorProgram, compute_dtype


def _reduce(op: str, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The reduction of each tile of x, [count, *shape]. Floating-point sums are taken tile by tile: their order depends
    on the array that is summed, and must be that of a single tile."""
    if op in ("reduce_sum", "reduce_prod"):
        add = np.add if op == "reduce_sum" else np.multiply
        return np.stack([add.reduce(tile, axes, x.dtype, keepdims=True) for tile in x])
    if op == "reduce_max":
        return np.maximum.reduce(x, tuple(a + 1 for a in axes), keepdims=True)
    if op == "reduce_min":
        return np.minimum.reduce(x, tuple(a + 1 for a in axes), keepdims=True)
    position = np.argmax if op == "argmax" else np.argmin
    return np.asarray(position(x, axis=axes[0] + 1, keepdims=True), np.int64)


def _cumsum(x: np.ndarray, axis: int, exclusive: int, reverse: int) -> np.ndarray:
    x = np.flip(x, axis) if reverse else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if exclusive:
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total.take(range(x.shape[axis] - 1), axis)], axis)
    return np.flip(total, axis) if reverse else total


def cast_value(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`x` (compute dtype) rounded to `dtype` and widened again."""
    if dtype is DType.BOOL:
        return np.asarray(x != 0)
    if dtype is DType.F32:
        return x.astype(np.float32, copy=False)
    return widen(narrow(x.astype(np.float32) if dtype.is_float else x, dtype), dtype)


class VecPlan:
    """One vec statement: the program's steps over the valid part of its tiles."""

    def __init__(
        self, stmt: Vec, program: VectorProgram, ins: Sequence[Buffer], outs: Sequence[Buffer], slots: Slots
    ) -> None:
        self.program = program
        self.params = [(p.name, b.dtype, p.whole, b.shape) for p, b in zip(program.params, ins, strict=True)]
        self.outs = [(name, b.dtype, b.shape) for (name, _), b in zip(program.results, outs, strict=True)]
        self.scalars = [AffinePlan(s, slots) for s in stmt.scalars]
        self.bounds = [None if b is None else (AffinePlan(b.offset, slots), b.limit) for b in stmt.valid]
        self.whole = all(b is None for b in stmt.valid)

    def compute(self, tiles: Sequence[np.ndarray], env: Env) -> list[np.ndarray]:
        """Run the program on tiles of bits; returns tiles of bits, zero outside the valid extents."""
        limits = [None if b is None else max(0, b[1] - b[0](env)) for b in self.bounds]
        scalars = [s(env) for s in self.scalars]
        return [out[0] for out in self.compute_all(1, [t[None] for t in tiles], limits, scalars)]

    def compute_all(
        self, count: int, tiles: Sequence[np.ndarray], limits: Sequence[int | None], scalars: Sequence[int]
    ) -> list[np.ndarray]:
        """Run the program on `count` tiles of each operand, [count, *shape], that have the same valid extents per axis
        (None: the whole axis) and scalars. Results are those of each tile alone."""
        values: dict[str, np.ndarray] = {}
        for (name, dtype, whole, shape), tile in zip(self.params, tiles, strict=True):
            values[name] = widen(tile if self.whole or whole else tile[_within(limits, shape)], dtype)
        for step in self.program.steps:
            values[step.result] = run_step(step, [values[a] for a in step.args], scalars)
        return [self._output(values[name], dtype, (count, *shape), limits) for name, dtype, shape in self.outs]

    def _output(
        self, value: np.ndarray, dtype: DType, shape: tuple[int, ...], limits: Sequence[int | None]
    ) -> np.ndarray:
        value = value.astype(compute_dtype(dtype).numpy, copy=False) if not dtype.is_float else value
        value = _with_rank(value, len(shape))
        if self.whole:
            return narrow(np.broadcast_to(value, shape), dtype)
        out = np.zeros(shape, bits_dtype(dtype))
        part = out[_within(limits, shape[1:])]
        part[...] = narrow(np.broadcast_to(value[tuple(slice(n) for n in part.shape)], part.shape), dtype)
        return out


def _within(limits: Sequence[int | None], shape: Sequence[int]) -> tuple[slice, ...]:
    """Where tiles of `shape`, [count, *shape], are valid; axes of size 1 broadcast."""
    return (slice(None), *(slice(None, n if s > 1 else None) for n, s in zip(limits, shape, strict=True)))


def _with_rank(value: np.ndarray, rank: int) -> np.ndarray:
    """`value`, [count, *shape] or a number, with axes of size 1 before those of the tile."""
    if value.ndim in (0, rank):
        return value.reshape((1,) * rank) if value.ndim == 0 else value
    return value.reshape(value.shape[:1] + (1,) * (rank - value.ndim) + value.shape[1:])


def run_step(step: Step, args: Sequence[np.ndarray], scalars: Sequence[int]) -> np.ndarray:
    """The result of one vector step on values in compute dtypes: tiles, [count, *shape] ([1, *shape]: the same for
    each), and numbers without axes."""
    op = step.op
    ranks = {x.ndim for x in args if x.ndim}
    if len(ranks) > 1:
        args = [_with_rank(x, max(ranks)) if x.ndim else x for x in args]
    function = ELEMENTWISE.get(op)
    if function is not None:
        if step.ints:
            return np.asarray(function(args[0], bool(step.ints[0]), bool(step.ints[1])))
        return np.asarray(function(*args))
    if op in REDUCTIONS:
        return _reduce(op, args[0], step.ints)
    if op == "const":
        assert step.dtype is not None
        return np.asarray(step.number, compute_dtype(step.dtype).numpy)
    if op == "cast":
        assert step.dtype is not None
        return cast_value(args[0], step.dtype)
    if op == "mac":
        return np.asarray(args[0] * args[1] + args[2])
    if op == "clip":
        return np.asarray(np.minimum(np.maximum(args[0], args[1]), args[2]))
    if op == "scalar":
        return np.asarray(scalars[step.ints[0]], np.int64)
    return _restructured(step, args[0])


def _restructured(step: Step, x: np.ndarray) -> np.ndarray:
    """Steps that move the elements of tiles x, [count, *shape], or count along an axis of theirs."""
    op = step.op
    if op == "halves":
        assert step.dtype is not None
        return halves(x, step.dtype, step.ints[0] + 1)
    if op == "window":
        rank = step.ints[0]
        offsets, strides, sizes = (step.ints[1 + i * rank : 1 + (i + 1) * rank] for i in range(3))
        part = (slice(o, o + (n - 1) * s + 1, s) for o, s, n in zip(offsets, strides, sizes, strict=True))
        return x[(slice(None), *part)]
    if op == "iota":
        axis, size = step.ints[:2]
        return np.arange(min(size, x.shape[axis + 1])).reshape([-1 if i == axis + 1 else 1 for i in range(x.ndim)])
    if op == "transpose":
        return x.transpose(0, *(a + 1 for a in step.ints))
    if op == "reshape":
        return x.reshape(len(x), *step.ints)
    if op == "cumsum":
        axis, exclusive, reverse = step.ints
        return _cumsum(x, axis + 1, exclusive, reverse)
    raise ValueError(f"unknown vector step '{op}'")

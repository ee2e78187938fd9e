"""The semantics of load, store and mma in numpy: one definition for the kernel interpreter and the simulator (of vec:
vector_steps.py).

Statements are compiled once into plans, because a plan runs thousands of times: affines become (constant, (slot,
factor)) over a list of loop values, boxes become strides and clip limits. Memories are flat uint8 arrays; tiles are
arrays of storage bits (`numerics.bits_dtype`).

Invariants: a plan's result depends only on the bytes it reads and the loop values, never on time or on another unit. An
mma tile is one matrix product in f32 (i32 for integers) added to the accumulator, so both executors agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ppuc.ir.affine import Affine
from ppuc.ir.kernel import Buffer, Load, Mma, Param, Store, TileRef, View
from ppuc.ir.numerics import bits_dtype, encode_scalar, narrow, widen
from ppuc.ir.ops.elementwise import ELEMENTWISE
from ppuc.ir.types import DType

Slots = Mapping[str, int]
Env = Sequence[int]


class AffinePlan:
    """An Affine over loop variables with names replaced by positions in the loop-value list."""

    __slots__ = ("const", "terms")

    def __init__(self, expression: Affine, slots: Slots) -> None:
        self.const = expression.const
        self.terms = tuple((slots[n], c) for n, c in expression.terms if not n.startswith("$"))

    def __call__(self, env: Env) -> int:
        total = self.const
        for slot, factor in self.terms:
            total += env[slot] * factor
        return total


class BoxPlan:
    """Reads and writes the boxes of one load or store: the strided sub-box of `view` that a tile of `shape` maps to."""

    def __init__(self, view: View, index: Sequence[Affine], shape: tuple[int, ...], dtype: DType, slots: Slots) -> None:
        self.view, self.shape, self.dtype = view, shape, dtype
        self.bits = bits_dtype(dtype)
        self.offsets = [AffinePlan(e, slots) for e in index]
        self.axes = [e.axes for e in index]
        self.strides = [0] * len(shape)
        self.low, self.high = [], []
        for dim, axes in enumerate(self.axes):
            for a, factor in axes:
                self.strides[a] += factor * view.strides[dim]
            self.low.append(sum(min(0, f * (shape[a] - 1)) for a, f in axes))
            self.high.append(sum(max(0, f * (shape[a] - 1)) for a, f in axes))
        self.byte_strides = tuple(s * dtype.bytes for s in self.strides)

    def place(self, env: Env) -> tuple[list[int], int, bool]:
        """Offsets per view dimension, the flat element offset, and whether the whole box is inside the view."""
        offsets, base, inside = [], self.view.offset, True
        for dim, plan in enumerate(self.offsets):
            at = plan(env)
            offsets.append(at)
            base += at * self.view.strides[dim]
            if at + self.low[dim] < 0 or at + self.high[dim] >= self.view.shape[dim]:
                inside = False
        return offsets, base, inside

    def clip(self, offsets: Sequence[int]) -> list[tuple[int, int]] | None:
        """The range of indices inside the view per tile axis; None if a dimension shared by two tile axes is clipped
        (the rest is no sub-box). An empty range means that nothing is inside."""
        ranges = [(0, n) for n in self.shape]
        for dim, axes in enumerate(self.axes):
            at, size = offsets[dim], self.view.shape[dim]
            if at + self.low[dim] >= 0 and at + self.high[dim] < size:
                continue
            if not axes:
                return [(0, 0)] * len(self.shape)
            if len(axes) > 1:
                return None
            ((a, factor),) = axes
            if factor > 0:
                first, last = -(at // factor), (size - 1 - at) // factor
            else:
                first, last = -((size - 1 - at) // -factor), at // -factor
            lo, hi = ranges[a]
            ranges[a] = (max(lo, first), min(hi, last + 1))
        return ranges

    def window(self, memory: np.ndarray, base: int, ranges: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
        """The box (or its part within `ranges`) as a strided array on `memory`."""
        shape = self.shape
        if ranges is not None:
            shape = tuple(max(0, hi - lo) for lo, hi in ranges)
            base += sum(lo * s for (lo, _), s in zip(ranges, self.strides, strict=True))
        if 0 in shape:
            return np.empty(shape, self.bits)
        return np.ndarray(shape, self.bits, memory, base * self.bits.itemsize, self.byte_strides)

    def flat_index(self, offsets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Element offsets of every tile element, and a mask of those inside: the slow path, for clipped windows."""
        total, inside = np.full((1,) * len(self.shape), self.view.offset), np.ones((1,) * len(self.shape), bool)
        for dim, axes in enumerate(self.axes):
            at = np.full((1,) * len(self.shape), offsets[dim])
            for a, factor in axes:
                at = at + factor * np.arange(self.shape[a]).reshape(
                    [-1 if i == a else 1 for i in range(len(self.shape))]
                )
            inside = inside & (at >= 0) & (at < self.view.shape[dim])
            total = total + at * self.view.strides[dim]
        return np.broadcast_to(total, self.shape), np.broadcast_to(inside, self.shape)

    def span(self, env: Env) -> tuple[int, int]:
        """First and last flat element of the box inside the view's bounds, for counters; (0, -1) if none."""
        offsets, _, inside = self.place(env)
        first = last = self.view.offset
        for dim, stride in enumerate(self.view.strides):
            lo, hi = offsets[dim] + self.low[dim], offsets[dim] + self.high[dim]
            if not inside:
                lo, hi = max(lo, 0), min(hi, self.view.shape[dim] - 1)
                if hi < lo:
                    return 0, -1
            first += stride * (lo if stride >= 0 else hi)
            last += stride * (hi if stride >= 0 else lo)
        return first, last


class LoadPlan:
    """One load statement."""

    def __init__(self, stmt: Load, param: Param, buffer: Buffer, slots: Slots) -> None:
        self.stmt = stmt
        self.box = BoxPlan(param.view, stmt.index, buffer.shape, param.dtype, slots)
        self.pad = encode_scalar(stmt.pad, param.dtype)

    def run(self, memory: np.ndarray, tile: np.ndarray, env: Env, indices: np.ndarray | None = None) -> None:
        """Fill `tile` (bits of the buffer's shape) from `memory`."""
        box = self.box
        offsets, base, inside = box.place(env)
        if indices is not None:
            self._gather(memory, tile, offsets, base, indices)
            return
        if inside:
            tile[...] = box.window(memory, base)
            return
        ranges = box.clip(offsets)
        if ranges is None:
            at, valid = box.flat_index(offsets)
            tile[...] = np.where(valid, memory.view(box.bits)[np.where(valid, at, 0)], box.bits.type(self.pad))
            return
        tile[...] = self.pad
        if all(hi > lo for lo, hi in ranges):
            tile[tuple(slice(lo, hi) for lo, hi in ranges)] = box.window(memory, base, ranges)

    def _gather(
        self, memory: np.ndarray, tile: np.ndarray, offsets: Sequence[int], base: int, indices: np.ndarray
    ) -> None:
        gather = self.stmt.gather
        assert gather is not None
        rows, ok = wrapped(indices, self.box.view.shape[gather.dim])
        table = gather_table(self.box, memory, offsets, base, gather.dim, gather.axis)
        tile[...] = self.pad
        if table is None:
            return
        ranges, view = table
        keep = np.flatnonzero(ok)
        where: list[slice | np.ndarray] = [slice(lo, hi) for lo, hi in ranges]
        where[gather.axis] = keep
        tile[tuple(where)] = np.take(view, rows[keep], axis=gather.axis)


def wrapped(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices with negative ones counted from the end, and a mask of those inside [0, size)."""
    rows = indices.reshape(-1).astype(np.int64)
    rows = np.where(rows < 0, rows + size, rows)
    return rows, (rows >= 0) & (rows < size)


def gather_table(
    box: BoxPlan, memory: np.ndarray, offsets: Sequence[int], base: int, dim: int, axis: int
) -> tuple[list[tuple[int, int]], np.ndarray] | None:
    """The box with tile axis `axis` replaced by the whole view dimension `dim`, and the clip ranges of the other axes.
    None when nothing is inside. The affine offset of `dim` itself is ignored: the index list gives the position."""
    others = [0 if d == dim else o for d, o in enumerate(offsets)]
    ranges = box.clip(others) or []
    if any(hi <= lo for a, (lo, hi) in enumerate(ranges) if a != axis):
        return None
    base -= offsets[dim] * box.view.strides[dim]
    shape, strides = [hi - lo for lo, hi in ranges], list(box.byte_strides)
    base += sum(lo * s for a, ((lo, _), s) in enumerate(zip(ranges, box.strides, strict=True)) if a != axis)
    shape[axis], strides[axis] = box.view.shape[dim], box.view.strides[dim] * box.bits.itemsize
    return ranges, np.ndarray(tuple(shape), box.bits, memory, base * box.bits.itemsize, tuple(strides))


class StorePlan:
    """One store statement."""

    def __init__(self, stmt: Store, param: Param, buffer: Buffer, slots: Slots) -> None:
        self.stmt = stmt
        self.box = BoxPlan(param.view, stmt.index, buffer.shape, param.dtype, slots)

    def run(self, memory: np.ndarray, tile: np.ndarray, env: Env, indices: np.ndarray | None = None) -> None:
        """Write `tile` (bits) to `memory`, clipped at the view's bounds."""
        box = self.box
        offsets, base, inside = box.place(env)
        if indices is not None:
            self._scatter(memory, tile, offsets, base, indices)
        elif inside:
            box.window(memory, base)[...] = tile
        else:
            ranges = box.clip(offsets)
            if ranges is None:
                at, valid = box.flat_index(offsets)
                memory.view(box.bits)[at[valid]] = tile[valid]
            elif all(hi > lo for lo, hi in ranges):
                box.window(memory, base, ranges)[...] = tile[tuple(slice(lo, hi) for lo, hi in ranges)]

    def _scatter(
        self, memory: np.ndarray, tile: np.ndarray, offsets: Sequence[int], base: int, indices: np.ndarray
    ) -> None:
        scatter = self.stmt.scatter
        assert scatter is not None
        rows, ok = wrapped(indices, self.box.view.shape[scatter.dim])
        table = gather_table(self.box, memory, offsets, base, scatter.dim, scatter.axis)
        if table is None:
            return
        ranges, view = table
        view = np.moveaxis(view, scatter.axis, 0)
        source = np.moveaxis(tile[tuple(slice(lo, hi) for lo, hi in ranges)], scatter.axis, 0)
        combine = ELEMENTWISE[self.stmt.combine] if self.stmt.combine else None
        for i in np.flatnonzero(ok):  # in order: a later element overwrites, or combines with, an earlier one
            row = source[i]
            if combine is not None:
                row = narrow(combine(widen(view[rows[i]], self.box.dtype), widen(row, self.box.dtype)), self.box.dtype)
            view[rows[i]] = row


class RefPlan:
    """Reads a tile, or an affine sub-tile of it, as an operand of mma."""

    def __init__(self, ref: TileRef, buffer: Buffer, slots: Slots) -> None:
        self.dtype = buffer.dtype
        self.shape = ref.shape or buffer.shape
        self.box = (
            BoxPlan(View.contiguous(buffer.shape), ref.index, ref.shape, buffer.dtype, slots) if ref.index else None
        )

    def read(self, tile: np.ndarray, env: Env) -> np.ndarray:
        """The operand's bits."""
        if self.box is None:
            return tile
        _, base, _ = self.box.place(env)
        return self.box.window(tile.reshape(-1).view(np.uint8), base)


class MmaPlan:
    """One mma statement."""

    def __init__(self, stmt: Mma, dst: Buffer, a: Buffer, b: Buffer, slots: Slots) -> None:
        self.stmt, self.slots = stmt, slots
        self.a, self.b = RefPlan(stmt.a, a, slots), RefPlan(stmt.b, b, slots)
        self.integer = not a.dtype.is_float
        k = stmt.k_axes
        a_shape, b_shape = self.a.shape, self.b.shape
        self.k = math.prod(a_shape[:k] if stmt.transpose_a else a_shape[-k:])
        self.m = math.prod(a_shape) // max(self.k, 1)
        self.n = math.prod(b_shape) // max(self.k, 1)

    def product(self, a_tile: np.ndarray, b_tile: np.ndarray, env: Env) -> np.ndarray:
        """a . b as [m, n] in f32 (i32 for integers)."""
        return np.asarray(self.products(self.a.read(a_tile, env)[None], self.b.read(b_tile, env)[None])[0])

    def products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The products of `count` pairs of operands (bits, [count, *shape]) as [count, m, n], f32 or i32. Each is the
        same as that of its pair alone: one call of the library for each, on operands laid out alike."""
        a, b = widen(np.ascontiguousarray(a), self.a.dtype), widen(np.ascontiguousarray(b), self.b.dtype)
        a = a.reshape(-1, self.k, self.m).swapaxes(1, 2) if self.stmt.transpose_a else a.reshape(-1, self.m, self.k)
        b = b.reshape(-1, self.n, self.k).swapaxes(1, 2) if self.stmt.transpose_b else b.reshape(-1, self.k, self.n)
        if self.integer:  # exact: products are below 2**16 and f64 holds sums of 2**37 of them
            return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)), np.int32)
        product: np.ndarray = np.matmul(a, b)
        return product

    def commit(self, acc_tile: np.ndarray, product: np.ndarray, start: bool) -> None:
        """Add `product` to the accumulator tile (bits of f32 or i32), or overwrite it when `start`."""
        acc = acc_tile.view(product.dtype).reshape(self.m, self.n)
        if start:
            acc[...] = product
        else:
            acc += product

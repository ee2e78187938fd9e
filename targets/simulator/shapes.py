"""What instructions touch, as arrays: boxes of transfers, valid extents, tensor and vector work.

Invariant: a description depends on the instruction's text only; loop values enter when the event loop evaluates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ppuc.ir.affine import Affine
from ppuc.ir.errors import InternalError
from ppuc.ir.kernel import Bound, Gather, Mma, TileRef, Vec, View
from ppuc.ir.program import Ring
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.cost import channel_weight, drain_clk, mma_shape
from ppuc.targets.schema import Target
from ppuc.targets.simulator.tables import NO_BOUND
from ppuc.targets.vector_cost import Count, vec_cost

MAX_DIMS, MAX_AXES = 8, 8


class Ragged:
    """Rows of a table grouped by owner: `add` rows, then `end` the owner."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: list[tuple[int, ...]] = []
        self.starts = [0]

    def add(self, *row: int) -> None:
        """Append a row to the current owner."""
        self.rows.append(row)

    def end(self) -> None:
        """Close the current owner."""
        self.starts.append(len(self.rows))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(row starts, rows)."""
        return np.array(self.starts, np.int64), np.array(self.rows, np.int64).reshape(len(self.rows), self.width)


class Shapes:
    """Collects descriptions; each method returns the number of the one it adds."""

    def __init__(self, depth: int, vectors: Mapping[str, VectorProgram], target: Target) -> None:
        self.depth, self.vectors, self.target = depth, vectors, target
        self._boxes: list[tuple[np.ndarray, ...]] = []
        self._channels: list[float] = []
        self._copies: list[tuple[int, int, int]] = []
        self._bounds: list[tuple[int, int, int]] = []
        self._bound_coefs: list[list[int]] = []
        self._mma: list[list[int]] = []
        self._vec: list[list[int]] = []
        self._terms: list[list[int]] = []
        self._traffic: list[list[int]] = []

    def box(
        self,
        view: View,
        index: Sequence[Affine],
        tile: tuple[int, ...],
        dtype: DType,
        gather: Gather | None,
        slots: Mapping[str, int],
    ) -> int:
        """The sub-box of `view` that a tile maps onto."""
        if len(index) > MAX_DIMS or len(tile) > MAX_AXES:
            raise InternalError(f"a box of {len(index)} dimensions and {len(tile)} axes; at most {MAX_DIMS}")
        dims, pairs = np.zeros((MAX_DIMS, 5), np.int64), np.full((MAX_DIMS, 4), -1, np.int64)
        coefs, stride = np.zeros((MAX_DIMS, self.depth), np.int64), [0] * len(tile)
        moves: dict[int, tuple[int, int]] = {}
        for d, expression in enumerate(index):
            reach = [f * (tile[a] - 1) for a, f in expression.axes]
            dims[d] = (
                view.shape[d], view.strides[d], expression.const,
                sum(min(0, r) for r in reach), sum(max(0, r) for r in reach),
            )  # fmt: skip
            coefs[d] = self._coefs(expression, slots)
            for a, factor in expression.axes:
                moves[a] = d, factor
                stride[a] += factor * view.strides[d]
            moving = [(a, f) for a, f in expression.axes if tile[a] > 1][:2]
            for i, (a, factor) in enumerate(moving):
                pairs[d, 2 * i : 2 * i + 2] = a, factor
        axes = np.zeros((MAX_AXES, 5), np.int64)
        gathered = gather.axis if gather else -1
        order = sorted(range(len(tile)), key=lambda a: (a == gathered, abs(stride[a]), -a))
        for a, size in enumerate(tile):
            axes[a] = size, stride[a], order[a], *moves.get(a, (-1, 0))
        if gather:
            axes[gathered, 1] = view.strides[gather.dim]
            axes[gathered, 3:] = gather.dim, 1
        head = np.array([len(index), len(tile), dtype.bytes, view.offset, gather.dim if gather else -1, gathered])
        self._boxes.append((head, dims, coefs, pairs, axes))
        self._channels.append(self._channel_weight(tile, stride, order, dtype))
        return len(self._boxes) - 1

    def _channel_weight(self, tile: Sequence[int], stride: Sequence[int], order: Sequence[int], dtype: DType) -> float:
        """cost.channel_weight of the rows of a whole tile."""
        run, pitch, rows = 1, 0, 1
        for a in order:
            if tile[a] == 1 or stride[a] == 0:
                continue
            if not pitch and abs(stride[a]) == run:
                run *= tile[a]
            else:
                pitch, rows = pitch or abs(stride[a]), rows * tile[a]
        return channel_weight(run * dtype.bytes, pitch * dtype.bytes, rows, self.target)

    def copy(self, start: int, count: int, element_bytes: int) -> int:
        """A flat range of a tensor."""
        self._copies.append((start, count, element_bytes))
        return len(self._copies) - 1

    def mma(self, stmt: Mma, a: Ring, b: Ring, slots: Mapping[str, int]) -> int:
        """The valid m, n, k extents of an mma, its fragment and which loops restart it."""
        a_shape, b_shape, k = _shape(stmt.a, a), _shape(stmt.b, b), stmt.k_axes
        m_sizes = a_shape[k:] if stmt.transpose_a else a_shape[:-k]
        k_sizes = a_shape[:k] if stmt.transpose_a else a_shape[-k:]
        n_sizes = b_shape[:-k] if stmt.transpose_b else b_shape[k:]
        sizes = (*m_sizes, *n_sizes, *k_sizes)
        first = self._add_bounds(stmt.valid or (None,) * len(sizes), sizes, slots)
        shape = mma_shape(a.dtype, self.target)
        restart = sum(1 << slots[v] for v in stmt.start)
        self._mma.append(
            [
                first,
                len(m_sizes),
                len(k_sizes),
                shape.m,
                shape.n,
                shape.k,
                shape.ii_clk,
                shape.element_bytes,
                restart,
                len(n_sizes),
                drain_clk(self.target, shape),
            ]
        )
        return len(self._mma) - 1

    def vec(self, stmt: Vec, buffers: Sequence[Ring], slots: Mapping[str, int]) -> int:
        """The valid extents of a vec's tile and the terms of its cost."""
        if stmt.program not in self.vectors:
            raise InternalError(f"no vector program @{stmt.program}")
        program, ins, outs = self.vectors[stmt.program], buffers[: len(stmt.ins)], buffers[len(stmt.ins) :]
        in_shapes, out_shapes = [b.shape for b in ins], [b.shape for b in outs]
        cost = vec_cost(program, in_shapes, out_shapes, [b.space for b in ins], [b.space for b in outs])
        cut = [s for p, s in zip(program.params, in_shapes, strict=True) if not p.whole] + out_shapes
        sizes = tuple(max(s) for s in zip(*cut, strict=True))
        first = self._add_bounds(stmt.valid or (None,) * len(sizes), sizes, slots)
        term, traffic = len(self._terms), len(self._traffic)
        for x in cost.terms:
            self._terms.append([x.count.const, _mask(x.count), x.lane_ops, x.sfu_ops, x.tail_clk])
        for y in cost.traffic:
            where = 2 * (y.space is Space.ACC) + y.write
            self._traffic.append([y.count.const, _mask(y.count), y.bytes, where])
        self._vec.append([first, len(sizes), term, len(self._terms), traffic, len(self._traffic)])
        return len(self._vec) - 1

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields of tables.Code that describe shapes."""
        parts = list(zip(*self._boxes, strict=True)) if self._boxes else [()] * 5
        shapes = ((6,), (MAX_DIMS, 5), (MAX_DIMS, self.depth), (MAX_DIMS, 4), (MAX_AXES, 5))
        names = ("bx", "bx_dim", "bx_coef", "bx_pair", "bx_axis")
        boxes = {
            n: np.array(p, np.int64).reshape(len(self._boxes), *s) for n, p, s in zip(names, parts, shapes, strict=True)
        }
        return boxes | {
            "bx_channels": np.array(self._channels, np.float64),
            "cp": table(self._copies, 3),
            "bd": table(self._bounds, 3),
            "bd_coef": table(self._bound_coefs, self.depth),
            "mma": table(self._mma, 11),
            "vec": table(self._vec, 6),
            "term": table(self._terms, 5),
            "traffic": table(self._traffic, 4),
        }

    def _coefs(self, expression: Affine, slots: Mapping[str, int]) -> list[int]:
        row = [0] * self.depth
        for name, factor in expression.terms:
            if not name.startswith("$"):
                row[slots[name]] += factor
        return row

    def _add_bounds(self, valid: Sequence[Bound | None], sizes: Sequence[int], slots: Mapping[str, int]) -> int:
        first = len(self._bounds)
        for bound, size in zip(valid, sizes, strict=True):
            self._bounds.append((bound.offset.const, bound.limit, size) if bound else (0, NO_BOUND, size))
            self._bound_coefs.append(self._coefs(bound.offset, slots) if bound else [0] * self.depth)
        return first


def table(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Rows as an int64 array [n, width], also when there are none."""
    return np.array(rows, np.int64).reshape(len(rows), width)


def _shape(ref: TileRef, ring: Ring) -> tuple[int, ...]:
    return ref.shape or ring.shape


def _mask(count: Count) -> int:
    """Axes of a count as a mask, two bits an axis, because a product may use an axis twice (an outer product)."""
    mask = 0
    for a in count.axes:
        mask += 1 << (2 * a)
    return mask

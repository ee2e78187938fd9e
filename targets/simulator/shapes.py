"""Work of instructions as arrays: boxes of transfers, valid extents, tensor and vector work.

Invariant: a description depends only on the instruction; the event loop evaluates it for loop values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ppuc.ir.affine import Affine
from ppuc.ir.errors import InternalError
from ppuc.ir.kernel import MAX_TILE_RANK, MAX_VIEW_RANK, Bound, Gather, Mma, TileRef, Vec, View
from ppuc.ir.program import Ring
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.cost import channel_weight, drain_clk, layout_weight, mma_shape
from ppuc.targets.schema import Target
from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator.tables import NO_BOUND
from ppuc.targets.vector_cost import Count, vec_cost

_NO_DIM = (0, 0, 0, 0, 0, -1, -1, -1, -1)

Row = tuple[float, ...]
"""A row of a table, fields in their order."""


class Shapes:
    """Collects descriptions; each method returns the index of the one it adds."""

    def __init__(self, depth: int, vectors: Mapping[str, VectorProgram], target: Target) -> None:
        self.depth, self.vectors, self.target = depth, vectors, target
        self._boxes: list[Row] = []
        self._dims: list[Row] = []
        self._axes: list[Row] = []
        self._coefs: list[list[list[int]]] = []
        self._copies: list[Row] = []
        self._extents: list[Row] = []
        self._extent_coefs: list[list[int]] = []
        self._mma: list[Row] = []
        self._vec: list[Row] = []
        self._terms: list[Row] = []
        self._traffic: list[Row] = []

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
        dims: list[Row] = [_NO_DIM] * MAX_VIEW_RANK
        coefs, stride = [[0] * self.depth] * MAX_VIEW_RANK, [0] * len(tile)
        moves: dict[int, tuple[int, int]] = {}
        for d, expression in enumerate(index):
            reach = [f * (tile[a] - 1) for a, f in expression.axes]
            coefs[d] = self._factors(expression, slots)
            for a, factor in expression.axes:
                moves[a] = d, factor
                stride[a] += factor * view.strides[d]
            moving = [(a, f) for a, f in expression.axes if tile[a] > 1][:2]
            first, second = [*moving, (-1, -1), (-1, -1)][:2]
            low, high = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach)
            dims[d] = (view.shape[d], view.strides[d], expression.const, low, high, *first, *second)
        gathered = gather.axis if gather else -1
        order = sorted(range(len(tile)), key=lambda a: (a == gathered, abs(stride[a]), -a))
        axes = [(size, stride[a], order[a], *moves.get(a, (-1, 0))) for a, size in enumerate(tile)]
        if gather:
            axes[gathered] = (tile[gathered], view.strides[gather.dim], order[gathered], gather.dim, 1)
        weight = self._channel_weight(tile, stride, order, dtype) * layout_weight(view.shape, view.strides, self.target)
        dim = gather.dim if gather else -1
        self._boxes.append((len(index), len(tile), dtype.bytes, view.offset, dim, gathered, weight))
        self._dims += dims
        self._axes += axes + [(0, 0, 0, 0, 0)] * (MAX_TILE_RANK - len(axes))
        self._coefs.append(coefs)
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

    def mma(self, stmt: Mma, a: Ring, b: Ring, slots: Mapping[str, int], follows: bool) -> int:
        """The valid m, n, k extents of an mma, its fragment and which loops restart it. `follows`: nothing else runs on
        the tensor engine between two parts of a sum."""
        a_shape, b_shape, k = _shape(stmt.a, a), _shape(stmt.b, b), stmt.k_axes
        m_sizes = a_shape[k:] if stmt.transpose_a else a_shape[:-k]
        k_sizes = a_shape[:k] if stmt.transpose_a else a_shape[-k:]
        n_sizes = b_shape[:-k] if stmt.transpose_b else b_shape[k:]
        sizes = (*m_sizes, *n_sizes, *k_sizes)
        first = self._add_extents(stmt.valid or (None,) * len(sizes), sizes, slots)
        shape = mma_shape(a.dtype, self.target)
        restart = restart_mask(stmt, slots)
        drain = drain_clk(self.target, shape, math.prod(n_sizes), math.prod(k_sizes))
        self._mma.append((
            first, len(m_sizes), len(n_sizes), len(k_sizes), shape.m, shape.n, shape.k, shape.ii_clk,
            shape.element_bytes, restart, int(follows), drain,
        ))  # fmt: skip
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
        first = self._add_extents(stmt.valid or (None,) * len(sizes), sizes, slots)
        term, traffic = len(self._terms), len(self._traffic)
        for x in cost.terms:
            self._terms.append((x.count.const, _mask(x.count), x.lane_ops, x.sfu_ops, x.tail_clk))
        for y in cost.traffic:
            where = 2 * (y.space is Space.ACC) + y.write
            self._traffic.append((y.count.const, _mask(y.count), y.bytes, where))
        self._vec.append((first, len(sizes), term, len(self._terms), traffic, len(self._traffic)))
        return len(self._vec) - 1

    def sizes(self) -> tuple[int, ...]:
        """Rows of box, extent, mma, vec, term and traffic so far."""
        lists = (self._boxes, self._extents, self._mma, self._vec, self._terms, self._traffic)
        return tuple(map(len, lists))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields of tables.Code that describe shapes."""
        boxes, depth = len(self._boxes), self.depth
        return {
            "box": rec.table(rec.Box, self._boxes),
            "dim": rec.table(rec.BoxDim, self._dims).reshape(boxes, MAX_VIEW_RANK),
            "axis": rec.table(rec.BoxAxis, self._axes).reshape(boxes, MAX_TILE_RANK),
            "coef": np.array(self._coefs, np.int64).reshape(boxes, MAX_VIEW_RANK, depth),
            "copy": rec.table(rec.Range, self._copies),
            "extent": rec.table(rec.Extent, self._extents),
            "extent_coef": np.array(self._extent_coefs, np.int64).reshape(len(self._extents), depth),
            "mma": rec.table(rec.Product, self._mma),
            "vec": rec.table(rec.Vector, self._vec),
            "term": rec.table(rec.Term, self._terms),
            "traffic": rec.table(rec.Moved, self._traffic),
        }

    def _factors(self, expression: Affine, slots: Mapping[str, int]) -> list[int]:
        row = [0] * self.depth
        for name, factor in expression.terms:
            if not name.startswith("$"):
                row[slots[name]] += factor
        return row

    def _add_extents(self, valid: Sequence[Bound | None], sizes: Sequence[int], slots: Mapping[str, int]) -> int:
        first = len(self._extents)
        for bound, size in zip(valid, sizes, strict=True):
            self._extents.append((bound.offset.const, bound.limit, size) if bound else (0, NO_BOUND, size))
            self._extent_coefs.append(self._factors(bound.offset, slots) if bound else [0] * self.depth)
        return first


NEVER = 1 << 62
"""A bit that no loop has: sums that it would have to restart go on."""


def restart_mask(stmt: Mma, slots: Mapping[str, int]) -> int:
    """The loops, a bit by slot, in whose first iteration together the sum of an mma restarts."""
    return NEVER if stmt.continues else sum(1 << slots[v] for v in stmt.start)


def _shape(ref: TileRef, ring: Ring) -> tuple[int, ...]:
    return ref.shape or ring.shape


def _mask(count: Count) -> int:
    """Axes of a count as a mask, two bits an axis, because a product may use an axis twice (an outer product)."""
    mask = 0
    for a in count.axes:
        mask += 1 << (2 * a)
    return mask

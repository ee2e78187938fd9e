"""Attention as the first stage of a kernel of several products over the same rows.

A unit that takes a tile of rows computes all heads of these rows, one beside the other: the tensor engine works on the
scores of one head while the vector engine computes the softmax of another. All keys are one tile. The result of each
head stays in l1; the product that follows adds up the products of the heads (see `back_to_back_kernel`).

Invariant: the row axes along which keys or values differ have tiles of one element.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.attention_steps import softmax_clk
from ppuc.compiler.lowering.kernels.contraction import anchor_of, operand_view
from ppuc.compiler.lowering.kernels.row_stage import Merger
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK
from ppuc.compiler.lowering.tiling.row_layout import spread
from ppuc.compiler.lowering.tiling.row_stages import RowStages
from ppuc.compiler.lowering.tiling.unmerged import slot_bytes
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.types import DType, Space
from ppuc.targets.cost import drain_clk, mma_shape
from ppuc.targets.schema import Target

MOST = 32
"""Maximum heads: each has statements of its own."""


@dataclass(frozen=True, slots=True)
class HeadOperand:
    """An operand in memory. The axes of its view: the rows, heads (of q and the mask) or groups of heads (of k and v),
    and those of one head's tile but its rows."""

    tensor: str
    dtype: DType
    space: Space | None
    view: View
    rows: int

    @property
    def varies(self) -> tuple[bool, ...]:
        """Along which row axes it has several elements."""
        return tuple(n > 1 for n in self.view.shape[: self.rows])

    def slots(self, rows: Sequence[int]) -> int:
        """Slots of a ring of tiles: two where it is loaded again for other rows."""
        there = zip(self.varies, rows, self.view.shape, strict=False)
        return 1 + any(varies and t < n for varies, t, n in there)

    def order(self, rows: Sequence[int]) -> list[int]:
        """The axes of the view that a tile of q, k or v has, of all heads, in the order in which it is in l1: that of
        memory, so that its rows are long; but the summed axis of q, and what is before, have their places."""
        heads, strides = self.rows, self.view.strides
        if len(strides) > heads + 2:
            found = sorted(range(heads, heads + 3), key=lambda i: -strides[i])
        else:
            kept = [i for i, t in enumerate(rows) if t > 1]
            first = all(strides[heads] >= strides[i] for i in kept)
            found = [heads, *kept, heads + 1] if first else [*kept, heads, heads + 1]
        return [i for i in found if i != heads or self.view.shape[heads] > 1]

    def traffic(self, rows: Sequence[int], order: Sequence[int], target: Target) -> cost.Traffic:
        """Traffic of a tile with these axes of the view."""
        view = View(tuple(self.view.shape[i] for i in order), tuple(self.view.strides[i] for i in order))
        return cost.box_traffic(view, self.extents(rows, order), self.dtype, target)

    def extents(self, rows: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
        """The shape of a tile with these axes of the view."""
        sizes = [
            *(t if there else 1 for t, there in zip(rows, self.varies, strict=True)),
            *self.view.shape[self.rows :],
        ]
        return tuple(sizes[i] for i in order)


class AttentionHead:
    """The attention `op` of `body`, whose result's rows are those of `merger`."""

    def __init__(
        self, op: Op, body: Graph, rows: RowStages, merger: Merger, tensors: Mapping[str, str], target: Target
    ) -> None:
        assert isinstance(op.attrs, AttentionAttrs)
        self.result, self.scale, self.target = op.results[0], op.attrs.scale, target
        _, self.heads, self.m, self.d = op.operands[0].type.dims
        _, self.groups, self.s, self.e = op.operands[2].type.dims
        self.dtype = op.operands[0].type.dtype
        self.causal = op.attrs.causal and self.m > 1
        if self.heads > MOST or min(self.e, self.d) == 1:
            raise NotFusable("attention of many heads, or of heads of one element, is not part of a larger kernel")
        if not target.tensor.supports(cost.tensor_dtype(self.dtype, target)):
            raise NotFusable(f"the tensor engine does not support {self.dtype}")
        self._rows, self._merger, self._tensors, self._axes = rows, merger, tensors, rows.layouts[self.result.name]
        self._drafts = {key: self._draft(body, v, key) for key, v in zip("qkvm", op.operands, strict=False)}
        self._positions = self._note((1, self.m), (0, 1))

    def _note(self, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> View:
        """Record how an operand varies along batch and queries; returns its view of the rows."""
        batch, _, queries, _ = self._axes
        view = spread(View(tuple(shape), tuple(strides), offset), (batch, queries), self._rows.rows, self._rows.atoms)
        return self._merger.note(view, self._rows.rows)

    def _draft(self, body: Graph, operand: Value, key: str) -> tuple[Value, View, View]:
        """The parameter that holds an operand, the view of its rows, and that of its other axes."""
        value, view = operand_view(body, operand)
        missing = 4 - len(view.shape)
        strides = (0,) * missing + view.strides
        shape = (1,) * missing + tuple(n if step else 1 for n, step in zip(view.shape, view.strides, strict=True))
        own = (shape[1], *shape[3 if key in "qm" else 2 :])
        inner = (self.d,) if key == "q" else () if key == "m" else (self.s, self.d if key == "k" else self.e)
        if own[len(own) - len(inner) :] != inner or (key != "m" and value.type.dtype is not self.dtype):
            raise NotFusable("q, k and v of attention are stored in different types, or repeat elements")
        queries = (shape[2], strides[2]) if key in "qm" else (1, 0)
        rows = self._note((shape[0], queries[0]), (strides[0], queries[1]), view.offset)
        return value, rows, View(own, (strides[1], *strides[len(strides) - len(own) + 1 :]))

    @functools.cached_property
    def operands(self) -> dict[str, HeadOperand]:
        """q, k, v and the mask, if there is one, by their first letters; once all accesses to rows are known."""
        found = {}
        for key, (value, rows, own) in self._drafts.items():
            merged = self._merger.view(rows, self._rows.rows)
            view = View((*merged.shape, *own.shape), (*merged.strides, *own.strides), merged.offset)
            tensor, dtype = self._tensors[value.name], value.type.dtype
            found[key] = HeadOperand(tensor, dtype, value.space, view, len(merged.shape))
        return found

    @functools.cached_property
    def positions(self) -> tuple[int, ...]:
        """How far one step along each axis of the rows leads along the queries."""
        return self._merger.view(self._positions, self._rows.rows).strides

    @property
    def repeat(self) -> int:
        """Heads that share their keys."""
        return self.heads // self.groups

    def takes(self, rows: Sequence[int]) -> bool:
        """Whether a tile of these rows has the keys and values of one batch, and not too many axes."""
        alike = (self.operands["k"].varies, self.operands["v"].varies)
        axes = [i for i, t in enumerate(rows) if t > 1]
        apart = any(there[i] for there in alike for i in axes) or not all(self.operands["q"].varies[i] for i in axes)
        return not apart and len(axes) + 1 + (self.heads > 1) <= MAX_TILE_RANK

    def mask_axes(self, rows: Sequence[int]) -> list[int]:
        """The axes of the view of the mask that a tile of one head has."""
        return [*(i for i, t in enumerate(rows) if t > 1), len(rows) + 1]

    # cost

    def bytes(self, rows: Sequence[int]) -> tuple[int, int]:
        """Bytes of l1 and acc for a tile of rows."""
        points, size, used = math.prod(rows), self.dtype.bytes, 0
        for key, operand in self.operands.items():
            order = self.mask_axes(rows) if key == "m" else operand.order(rows)
            tiles = operand.slots(rows) * (operand.view.shape[operand.rows] if key == "m" else 1)
            used += tiles * slot_bytes(math.prod(operand.extents(rows, order)), operand.dtype.bytes)
        used += self.heads * (slot_bytes(points * self.s, size) + slot_bytes(points, 4))
        return used, self.heads * (slot_bytes(points * self.s, 4) + slot_bytes(points * self.e, 4))

    def clk(self, rows: Sequence[int], finish: float) -> float:
        """Cycles of all heads of a tile of rows, whose results each take the vector engine `finish`. Products and
        softmaxes of all heads are issued before the first result."""
        target, dtype, points = self.target, cost.tensor_dtype(self.dtype, self.target), math.prod(rows)
        scores = cost.mma_clk(points, self.s, self.d, dtype, target)
        product = cost.mma_clk(points, self.e, self.s, dtype, target)
        softmax = self._softmax_clk(points)
        fragment, step = mma_shape(dtype, target), cost.overhead_clk(target)
        scored = scores + drain_clk(target, fragment, self.s, self.d) + step
        weighted = product + drain_clk(target, fragment, self.e, self.s) + step
        vector = max(self.heads * softmax, softmax + weighted) + self.heads * finish
        return max(scored + vector, self.heads * (scores + product) + finish) + 2 * step

    def _softmax_clk(self, points: int) -> float:
        return softmax_clk(points * self.s, self.target, mask="m" in self.operands, causal=self.causal)

    def load_clk(self, rows: Sequence[int], active: int) -> tuple[float, float]:
        """Cycles of the load queue, while `active` units load: for each tile of rows, and once. The values have until
        the first softmax is through."""
        found = [0.0, 0.0]
        for key, operand in self.operands.items():
            order = self.mask_axes(rows) if key == "m" else operand.order(rows)
            clk = cost.load_clk(operand.traffic(rows, order, self.target), self.target, active, operand.space)
            clk += cost.overhead_clk(self.target)
            if key == "v":
                clk = max(0.0, clk - self._softmax_clk(math.prod(rows)))
            found[not any(operand.varies)] += clk * (operand.view.shape[operand.rows] if key == "m" else 1)
        return found[0], found[1]


def attention_in(body: Graph) -> Op | None:
    """The attention of a group, if it has one. Raises NotFusable if it has several."""
    return anchor_of(body, "attention") if any(op.name == "attention" for op in body.ops) else None

"""The products of a group over shared rows: their operands, and what each hands on to later stages.

Invariant: the right operand of every product is in memory; the left one is too, or a stage before computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.attention_head import AttentionHead, attention_in
from ppuc.compiler.lowering.kernels.folds import serial_array
from ppuc.compiler.lowering.kernels.row_stage import Local, Matrix, Merger, StageAccesses, StageLowering, local
from ppuc.compiler.lowering.kernels.window import WindowLowering
from ppuc.compiler.lowering.kernels.window_tile import split_at, window_of
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.compiler.lowering.tiling.row_layout import spread
from ppuc.compiler.lowering.tiling.row_stages import analyse_rows
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.types import DType
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Product:
    """The operands of a stage's product: the left one in memory, or a value in l1 that an earlier stage computes."""

    left: Matrix | Local
    right: Matrix
    dtype: DType
    acc_dtype: DType
    sum: tuple[int, ...]
    """Sizes of the summed axes."""

    @property
    def k(self) -> int:
        return math.prod(self.sum)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a stage computes its product: feature tile, length of a part of the sum, and whether the chunks of columns go
    on to the next product, `together` of them in an iteration of their loop, each in buffers of its own."""

    features: tuple[int, ...]
    k: int
    feeds: bool = False
    together: int = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """Row tiles, units along the rows, a plan for each product, whether the weights stay in l1, units along the last
    product's chunks."""

    rows: tuple[int, ...]
    units: tuple[int, ...]
    plans: tuple[Plan, ...]
    resident: bool
    columns: int
    price: float


class RowProducts:
    """The stages and products of a group, and the window or attention that computes the first product's left operand,
    if any."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        if target.launch.tiles != "streaming" or serial_array(target):
            raise NotFusable("libraries for this machine have no kernel of several products")
        self.name, self.tensors, self.target = name, tensors, target
        self.kernel = KernelBuilder(name, loc)
        self.window: WindowLowering | None = None
        self.attention: AttentionHead | None = None
        self.head: Value | None = None
        """What the window or attention computes."""
        attention = attention_in(body)
        first, rest, head_rows = self._begin(body, attention, loc)
        self.rows = rows = analyse_rows(rest, self.head, head_rows)
        merger = Merger(rows, separate=self.window is not None)
        anchors = [self.head if attention is not None else None, *(None for _ in rows.stages[1:])]
        accesses = [StageAccesses(rows, i, merger, anchor) for i, anchor in enumerate(anchors)]
        if attention is not None:
            self.attention = AttentionHead(attention, first, rows, merger, tensors, target)
        drafts = [self._draft(stage.product, merger) for stage in rows.stages if stage.product is not None]
        self.stages = [StageLowering(a, merger, rest, tensors, target) for a in accesses]
        if self.window is not None:
            self._follow(self.window)
        self.products = [self._product(draft, merger) for draft in drafts]
        self._check_locals()
        self.feeders = [self._feeds(j) for j in range(len(self.products))]
        self.apart = [self._columns_apart(j) for j in range(len(self.products))]
        self._keep(merger, accesses)
        if self.attention is not None:
            self._attend()

    def _begin(self, body: Graph, attention: Op | None, loc: tuple[str, ...]) -> tuple[Graph, Graph, tuple[int, ...]]:
        """Let a window or attention compute `head`; returns the ops that lead to it, the rest of the body, and the axes
        of `head` that are rows."""
        if attention is not None:
            self.head = attention.results[0]
            return *split_at(body, self.head), (0, 2)
        if not any(op.name in ("conv", "pool") for op in body.ops):
            return body, body, ()
        self.head = next(op for op in body.ops if op.name == "matmul").operands[0]
        first, rest = split_at(body, self.head)
        self.window = window_of(self.name, first, self.head, self.tensors, loc, self.target)
        self.window.kernel = self.kernel
        return first, rest, tuple(range(self.head.type.rank - 1))

    def _check_locals(self) -> None:
        """Raise NotFusable where the tiles of a stage and of a value of an earlier one that it reads have different
        numbers of axes, as where heads are stored apart and a scale of each row was computed before."""
        for stage in self.stages:
            for read in stage.locals:
                if len(self.stages[self.rows.stage_of[read.name]].features) != len(stage.features):
                    raise NotFusable("a value of a row is read where features are stored apart")

    def _attend(self) -> None:
        """Let the first stage take what attention computes, a head at a time. Raises NotFusable."""
        stage, left = self.stages[0], self.products[0].left
        used = {v.name for s in self.stages[1:] for v in s.locals}
        used |= {p.left.name for p in self.products[1:] if isinstance(p.left, Local)}
        if stage.reduces or stage.stores or used & self._values(0) or len(stage.features) != 1:
            raise NotFusable("what attention computes is reduced, or read by others than the product that follows")
        if not isinstance(left, Local) or left.name not in self._values(0):
            raise NotFusable("the first product does not read what attention computes")
        stage.divided = True
        stage.anchor_present = (True,) * (stage.outer + 1)

    def _follow(self, window: WindowLowering) -> None:
        """Let the tiles of all stages have the axes of the window's tiles. Raises NotFusable."""
        outer = self.stages[0].outer
        assert self.head is not None
        if self.rows.stages[0].ops or self.rows.rows != self.rows.head_rows:
            raise NotFusable("ops between the window and the first product, or rows that divide its axes")
        if outer < window.spatial or 1 in self.head.type.dims[1 : 1 + window.spatial]:
            raise NotFusable("the window's image has an axis of one element")
        for stage in self.stages:
            stage.always = frozenset(range(outer - window.spatial, outer))

    def tile_window(self, rows: Sequence[int]) -> tuple[list[int], int]:
        """Give the window the tiles that belong to these of the rows, with all channels; returns the points along its
        spatial axes, and the channels."""
        window = self.window
        assert window is not None
        points, channels = list(rows[len(rows) - window.spatial :]), window.space.axes[-1].size
        window.tiles, window.depth = [1, *points, channels], 2
        return points, channels

    # the products

    def _draft(self, op: Op, merger: Merger) -> tuple[Op, View | None, View, tuple[int, ...]]:
        """A product with the views of its operands in memory, and the leaves of its sum."""
        rows = self.rows
        a, b = op.operands
        summed = rows.atoms.leaves(rows.layout(a)[-1])
        columns = rows.atoms.leaves(rows.layouts[op.results[0].name][-1])
        right = rows.memory(b).view
        shape, strides = right.shape[-2:], right.strides[-2:]
        if op.attrs.transpose_b:  # type: ignore[attr-defined]
            shape, strides = shape[::-1], strides[::-1]
        # one by one: the columns of a product with a residual are the features that it sums
        parts = [
            spread(View(shape[i : i + 1], strides[i : i + 1]), (leaves,), leaves, rows.atoms)
            for i, leaves in enumerate((summed, columns))
        ]
        both = View(parts[0].shape + parts[1].shape, parts[0].strides + parts[1].strides, right.offset)
        w = merger.note(both, summed, columns)
        x = None
        if a.name not in rows.layouts:
            seen = spread(rows.memory(a).view, rows.given[a.name], (*rows.rows, *summed), rows.atoms)
            x = merger.note(seen, rows.rows, summed)
        return op, x, w, summed

    def _product(self, draft: tuple[Op, View | None, View, tuple[int, ...]], merger: Merger) -> Product:
        op, x, w, summed = draft
        rows, target = self.rows, self.target
        a, b = op.operands
        columns = rows.atoms.leaves(rows.layouts[op.results[0].name][-1])
        weights = rows.memory(b).value
        dtype = a.type.dtype
        if not cost.multiply(dtype, b.type.dtype) or not target.tensor.supports(cost.tensor_dtype(dtype, target)):
            raise NotFusable(f"the tensor engine does not multiply {dtype} by {b.type.dtype}")
        sizes = merger.sizes(summed)
        right = Matrix(
            self.tensors[weights.name], b.type.dtype, weights.space, merger.view(w, summed, columns), len(sizes)
        )
        left: Matrix | Local
        if x is None:
            source = rows.source(a.name)
            left = local(rows, source, merger, (rows.rows, summed))
        else:
            value = rows.memory(a).value
            if value.type.dtype is not dtype:
                raise NotFusable("the product's left operand is widened before it")
            view = merger.view(x, rows.rows, summed)
            left = Matrix(self.tensors[value.name], dtype, value.space, view, len(view.shape) - len(sizes))
        return Product(left, right, dtype, DType.F32 if dtype.is_float else DType.I32, sizes)

    def _feeds(self, j: int) -> bool:
        """Whether the results of product `j` go, element by element, into the next product and nowhere else."""
        if j + 1 >= len(self.products):
            return False
        stage, following = self.stages[j + 1], self.products[j + 1].left
        used = {v.name for s in self.stages[j + 2 :] for v in s.locals}
        used |= {p.left.name for p in self.products[j + 2 :] if isinstance(p.left, Local)}
        mine = self._values(j + 1)
        return (
            isinstance(following, Local)
            and following.name in mine
            and not (used & mine or stage.reduces or stage.stores)
            and len(stage.features) == 1
            and not any(v.present[-1] for v in stage.locals)
        )

    def _values(self, number: int) -> set[str]:
        """The values that a stage computes."""
        return {name for name, stage in self.rows.stage_of.items() if stage == number}

    def _columns_apart(self, j: int) -> bool:
        """Whether the results of product `j` are only stored, element by element."""
        stage = self.stages[j + 1]
        used = {v.name for s in self.stages[j + 2 :] for v in s.locals}
        used |= {p.left.name for p in self.products[j + 1 :] if isinstance(p.left, Local)}
        shared = any(any(v.present[stage.outer :]) for v in stage.locals)
        return not (used & self._values(j + 1) or stage.reduces or shared)

    def _keep(self, merger: Merger, accesses: Sequence[StageAccesses]) -> None:
        """Set which values leave the vector engine in each stage, and the axes of the accumulators."""
        read = {v.name for stage in self.stages for v in stage.locals}
        read |= {p.left.name for p in self.products if isinstance(p.left, Local)}
        for number, stage in enumerate(self.stages):
            stored = [source for source, _ in stage.stores]
            names = [n for n in self.rows.stage_of if self.rows.stage_of[n] == number and (n in read or n in stored)]
            stage.kept = [local(self.rows, name, merger, accesses[number].domains) for name in names]
            if number:
                left = self.products[number - 1].left
                rows = left.present[: stage.outer] if isinstance(left, Local) else (True,) * stage.outer
                if isinstance(left, Matrix):
                    rows = tuple(n > 1 for n in left.view.shape[: stage.outer])
                stage.anchor_present = (*rows, *(True for _ in stage.features))

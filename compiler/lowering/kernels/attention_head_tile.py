"""Builds the part of a kernel that computes attention for a tile of rows, every head in buffers of its own.

Invariant: loads, products and softmaxes of all heads precede the first head's result in every queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.lowering.kernels.attention_head import AttentionHead, HeadOperand
from ppuc.compiler.lowering.kernels.attention_steps import maximum, relative_weights, scaled_scores, visible_scores
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine, axis
from ppuc.ir.kernel import Bound, Load, Mma, TileRef, Vec
from ppuc.ir.types import DType, Space


class AttentionTile:
    """Adds attention for a tile of `rows` to `nest`, inside its loops `outer` over the rows."""

    def __init__(
        self, head: AttentionHead, kernel: KernelBuilder, nest: Nest, outer: Sequence[Tiling], rows: Sequence[int],
        name: str,
    ) -> None:  # fmt: skip
        self.head, self.kernel, self.nest, self.outer, self.rows, self.name = head, kernel, nest, outer, rows, name
        self.kept = [i for i, t in enumerate(rows) if t > 1]
        self.loaded: dict[str, str] = {}
        """q, k and v -> buffer."""
        self.masks: dict[int, str] = {}
        """Head -> buffer."""

    def build(self) -> list[tuple[str, str]]:
        """Add the statements; returns for each head the buffers of its weighted sums and of its totals."""
        head, repeat = self.head, self.head.repeat
        for i in range(head.heads) if "m" in head.operands else ():
            self._mask(i)  # most are constants, which no kernel has to store before
        scores = [self._scores(self._part("q", i), self._part("k", i // repeat)) for i in range(head.heads)]
        values = [self._part("v", i) for i in range(head.groups)]
        weights = [self._softmax(acc, i) for i, acc in enumerate(scores)]
        return [(self._product(w, values[i // repeat]), total) for i, (w, total) in enumerate(weights)]

    def _shape(self, last: int) -> tuple[int, ...]:
        return (*(self.rows[i] for i in self.kept), last)

    def _valid(self, *more: None) -> tuple[Bound | None, ...]:
        """Valid extents along the rows of a tile and `more` axes; () if all are whole."""
        bounds = [*(self.outer[i].bound for i in self.kept), *more]
        return tuple(bounds) if any(bounds) else ()

    def _load(self, hint: str, operand: HeadOperand, axes: Sequence[int], number: int = 0) -> str:
        """Add the load of a tile with these axes of the operand's view, of head `number` if it has no axis of heads;
        returns its buffer."""
        index = []
        for i in range(len(operand.view.shape)):
            offset = self.outer[i].offset if i < operand.rows and operand.varies[i] else Affine()
            offset = offset + number if i == operand.rows and i not in axes else offset
            there = i in axes and operand.view.shape[i] > 1
            index.append(offset + axis(axes.index(i)) if there else offset)
        depth = self.nest.depth_of([self.outer[i].name for i, there in enumerate(operand.varies) if there])
        while depth < len(self.outer) and self.outer[depth].trips == self.outer[depth].units:
            depth += 1  # a unit has one iteration of that loop: loads stay in the order in which they are added
        shape = operand.extents(self.rows, axes)
        buffer = self.kernel.buffer(hint, operand.dtype, shape, depth=operand.slots(self.rows))
        param = self.kernel.param(operand.tensor, operand.dtype, operand.view)
        self.nest.add(depth, Load(buffer, param, tuple(index)))
        return buffer

    def _part(self, key: str, number: int) -> TileRef:
        """The head, or group of heads, `number` of q, k or v; loads all of them before the first."""
        operand = self.head.operands[key]
        order = operand.order(self.rows)
        if key not in self.loaded:
            self.loaded[key] = self._load(key, operand, order)
        if operand.rows not in order:
            return TileRef(self.loaded[key])
        others = [i for i in order if i != operand.rows]
        index = tuple(Affine() + number if i == operand.rows else axis(others.index(i)) for i in order)
        return TileRef(self.loaded[key], index, operand.extents(self.rows, others))

    def _last_first(self, key: str) -> bool:
        """Whether tiles of k or v have their last axis before the keys."""
        operand = self.head.operands[key]
        order = operand.order(self.rows)
        return order.index(operand.rows + 2) < order.index(operand.rows + 1)

    def _mask(self, number: int) -> str:
        """The buffer of the mask of head `number`; adds its load."""
        operand = self.head.operands["m"]
        number = number if operand.view.shape[operand.rows] > 1 else 0
        if number not in self.masks:
            self.masks[number] = self._load("mask", operand, self.head.mask_axes(self.rows), number)
        return self.masks[number]

    def _mma(self, hint: str, left: TileRef, right: TileRef, columns: int, *, transposed: bool) -> str:
        """Add a product; returns its accumulator."""
        acc = self.kernel.buffer(hint, DType.F32, self._shape(columns), Space.ACC, 1)
        valid = self._valid(None, None)
        self.nest.add(len(self.outer), Mma(acc, left, right, (), transpose_b=transposed, valid=valid))
        return acc

    def _scores(self, query: TileRef, keys: TileRef) -> str:
        return self._mma("scores", query, keys, self.head.s, transposed=not self._last_first("k"))

    def _product(self, weights: str, values: TileRef) -> str:
        return self._mma("product", TileRef(weights), values, self.head.e, transposed=self._last_first("v"))

    def _softmax(self, scores: str, number: int) -> tuple[str, str]:
        """Add the softmax of a head; returns the buffers of the weights and of their totals."""
        head, builder, ins, scalars = self.head, ProgramBuilder(), [scores], list[Affine]()
        x, factor = scaled_scores(builder, builder.param(DType.F32), head.scale, apart="m" in head.operands)
        if "m" in head.operands:
            ins.append(self._mask(number))
            x = builder.step("add", x, builder.param(head.operands["m"].dtype))
        if head.causal:
            key = builder.step("cast", builder.step("iota", x, ints=(len(self.kept), head.s)), dtype=DType.I32)
            x = visible_scores(builder, x, key, self._query(builder, x, scalars))
        x, high = maximum(builder, x, factor, len(self.kept))
        weights_of, total_of = relative_weights(builder, x, high, head.dtype, len(self.kept))
        weights = self.kernel.buffer("weights", head.dtype, self._shape(head.s), depth=1)
        total = self.kernel.buffer("total", DType.F32, self._shape(1), depth=1)
        program = builder.finish(f"{self.name}.softmax", [(weights_of, head.dtype), (total_of, DType.F32)])
        if all(program.name != known.name for known in self.kernel.vectors):
            self.kernel.vector(program)
        self.nest.add(
            len(self.outer), Vec(program.name, (weights, total), tuple(ins), self._valid(None), tuple(scalars))
        )
        return weights, total

    def _query(self, builder: ProgramBuilder, like: str, scalars: list[Affine]) -> str:
        """Positions of the rows among the keys, in i32."""
        offset = Affine() + (self.head.s - self.head.m)
        for step, loop in zip(self.head.positions, self.outer, strict=True):
            offset = offset + loop.offset * step
        scalars.append(offset)
        position = builder.step("scalar", ints=(0,))
        for at, i in enumerate(self.kept):
            if step := self.head.positions[i]:
                along = builder.step("iota", like, ints=(at, self.rows[i]))
                by = builder.step("mul", along, builder.const(step, DType.I64)) if step > 1 else along
                position = builder.step("add", position, by)
        return builder.step("cast", position, dtype=DType.I32)

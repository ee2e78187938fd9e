"""Unrolls loops whose trip count is known at compile time.

Invariant: an unrolled loop is equivalent to the loop; one that cannot be unrolled leaves no ops and raises
NotUnrolledError with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.ir.graph import Value
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs

CONTROL = ("If", "Loop", "Scan")
"""Standard control-flow ops."""
MOST_NODES = 20_000
"""Maximum nodes of an unrolled loop."""
MOST_OPS = 10_000
"""Maximum ops of an unrolled loop: compiling these takes a minute."""


class NotUnrolledError(Exception):
    """Why a loop is not unrolled; `wanted` are values that would be needed."""

    def __init__(self, reason: str, wanted: Sequence[Value] = ()) -> None:
        super().__init__(reason)
        self.reason, self.wanted = reason, tuple(wanted)


Body = Callable[[Sequence[Value]], list[Value]]
"""Imports the body once for the given inputs; returns its outputs. Raises NotUnrolledError if one is unknown."""


@dataclass(frozen=True, slots=True)
class LoopNode:
    """A Loop or Scan being unrolled into `builder`. `inputs` holds None for an omitted one."""

    node: onnx.NodeProto
    opset: int
    inputs: Sequence[Value | None]
    builder: FoldingBuilder
    body: Body
    graph: onnx.GraphProto

    def unrolled(self) -> list[Value]:
        """The values of its outputs. Raises NotUnrolledError."""
        return self._loop() if self.node.op_type == "Loop" else self._scan()

    def _attr(self, name: str, default: Sequence[int]) -> list[int]:
        found = next((a for a in self.node.attribute if a.name == name), None)
        return list(onnx.helper.get_attribute_value(found)) if found is not None else list(default)

    def _known(self, index: int, what: str) -> np.ndarray | None:
        """The scalar input `index`; None if omitted."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            return None
        array = self.builder.array(value)
        if array is None or array.size != 1:
            raise NotUnrolledError(f"{what} is computed at run time", [value])
        return array.reshape(())

    def _loop(self) -> list[Value]:
        trips, condition = self._known(0, "its trip count"), self._known(1, "its condition")
        if trips is None and condition is None:
            raise NotUnrolledError("it never ends")
        carried = [v for v in self.inputs[2:] if v is not None]
        stacks: list[list[Value]] = [[] for _ in range(len(self.graph.output) - 1 - len(carried))]
        limit = MOST_NODES // max(len(self.graph.node), 1)
        if trips is not None and condition is None and int(trips) > limit:
            raise NotUnrolledError(f"it has more than {limit} trips")
        going, trip = condition is None or bool(condition), 0
        before = len(self.builder.ops)
        while going and (trips is None or trip < int(trips)):
            if trip >= limit:
                raise NotUnrolledError(f"it has more than {limit} trips")
            number = self.builder.const(np.array(trip, np.int64), "trip")
            more, *results = self.body([number, self.builder.const(np.array(True), "going"), *carried])
            carried = results[: len(carried)]
            for stack, element in zip(stacks, results[len(carried) :], strict=True):
                stack.append(element)
            if condition is not None:
                going = self._goes_on(more)
            trip += 1
            self._check_growth(before, trip, int(trips) if trips is not None else trip)
        return [*carried, *(self._stacked(stack, 0) for stack in stacks)]

    def _check_growth(self, before: int, done: int, trips: int) -> None:
        """Raise NotUnrolledError if, extrapolating from the finished trips, all trips would take too many ops."""
        expected = (len(self.builder.ops) - before) * trips // max(done, 1)
        if expected > MOST_OPS:
            raise NotUnrolledError(f"it would become {expected} ops")

    def _goes_on(self, more: Value) -> bool:
        array = self.builder.array(more)
        if array is None or array.size != 1:
            raise NotUnrolledError("its condition is computed at run time", [more])
        return bool(array.reshape(()))

    def _scan(self) -> list[Value]:
        if self.opset < 9:
            raise NotUnrolledError("Scan of opset 8 scans batches")
        given = [v for v in self.inputs if v is not None]
        scanned = next((a.i for a in self.node.attribute if a.name == "num_scan_inputs"), 0)
        states, sources = given[: len(given) - scanned], given[len(given) - scanned :]
        zeros = [0] * max(len(sources), len(self.graph.output))
        axes = [a % max(s.type.rank, 1) for a, s in zip(self._attr("scan_input_axes", zeros), sources, strict=False)]
        backward = self._attr("scan_input_directions", zeros)
        lengths = {s.type.dims[a] for s, a in zip(sources, axes, strict=True) if s.type.rank}
        if len(lengths) != 1:
            raise NotUnrolledError("what it scans has no common length")
        (length,) = lengths
        if length * max(len(self.graph.node), 1) > MOST_NODES:
            raise NotUnrolledError(f"it has {length} trips")
        stacks: list[list[Value]] = [[] for _ in range(len(self.graph.output) - len(states))]
        before = len(self.builder.ops)
        for trip in range(length):
            elements = [
                self._element(s, a, length - 1 - trip if b else trip)
                for s, a, b in zip(sources, axes, backward, strict=False)
            ]
            results = self.body([*states, *elements])
            states = results[: len(states)]
            self._check_growth(before, trip + 1, length)
            for stack, element in zip(stacks, results[len(states) :], strict=True):
                stack.append(element)
        prepended = self._attr("scan_output_directions", zeros)
        ordered = [stack[::-1] if p else stack for stack, p in zip(stacks, prepended, strict=False)]
        placed = self._attr("scan_output_axes", zeros)
        return [*states, *(self._stacked(stack, axis) for stack, axis in zip(ordered, placed, strict=False))]

    def _element(self, source: Value, axis: int, index: int) -> Value:
        """`source` at `index` along `axis`, without that axis."""
        dims = source.type.dims
        starts = tuple(index if a == axis else 0 for a in range(len(dims)))
        sizes = tuple(1 if a == axis else d for a, d in enumerate(dims))
        cut = self.builder("slice", source, attrs=SliceAttrs(starts, sizes, (1,) * len(dims)))
        return self.builder("reshape", cut, attrs=ReshapeAttrs(dims[:axis] + dims[axis + 1 :]))

    def _stacked(self, stack: Sequence[Value], axis: int) -> Value:
        """Stack elements along a new axis."""
        if not stack:
            raise NotUnrolledError("it makes no trips, so the shape of its results is unknown")
        if len({e.type for e in stack}) > 1:
            raise NotUnrolledError("its results change shape")
        dims = stack[0].type.dims
        at = axis % (len(dims) + 1)
        whole = (*dims[:at], 1, *dims[at:])
        rows = [self.builder("reshape", e, attrs=ReshapeAttrs(whole)) for e in stack]
        return rows[0] if len(rows) == 1 else self.builder("concat", *rows, attrs=ConcatAttrs(at))

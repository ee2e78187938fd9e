"""Follows the samples of a batch through a model, and changes what fixes their number.

The samples are followed from the inputs through every node (`Place`: the axis, and the factors of its size beside the
batch). Constants that fix the batch change with it: shapes of Reshape and Expand, sizes of Resize, ends of Slice,
states of recurrent layers, whatever is concatenated with a batch.

Invariant: everything else is inferred anew with the new size, and must hold its samples apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx
from onnx import numpy_helper

from ppuc.compiler.frontend.order import captured, subgraphs
from ppuc.compiler.frontend.place import node_place
from ppuc.compiler.simplify.batch_axis import Place, Shape, concatenated, renumbered, repeated, reshaped
from ppuc.compiler.simplify.node_types import NodeTypes, Type

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
RECURRENT = ("LSTM", "GRU", "RNN")
BROADCASTING = frozenset(
    (
        *("Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "PRelu", "Pow", "Sub", "Sum", "MatMul"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"),
        *("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    )
)
ALIKE = ("Concat", "GatherElements", "ScatterElements")
"""Ops whose inputs agree in all axes but the one they work along."""
NUMBERED = ("GatherND", "ScatterND")
"""Ops that address elements by numbers of all leading axes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed at a node."""

    node: str
    op: str
    what: str


@dataclass(slots=True)
class Follower:
    """Follows the samples through `model`, and changes it in place. `old` and `new` are the types of all tensors with
    `before` and `after` samples, `places` where the samples of a tensor lie."""

    model: onnx.ModelProto
    where: str
    before: int
    after: int
    old: dict[str, Type] = field(default_factory=dict)
    new: dict[str, Type] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _label: str = ""
    _infer: NodeTypes = field(init=False)

    def __post_init__(self) -> None:
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self._infer = NodeTypes(list(self.model.opset_import), self.constants)

    def follow(self, inputs: Mapping[str, int]) -> onnx.ModelProto:
        """The changed model, given the inputs that hold samples and their axes."""
        graph = self.model.graph
        for name, tensor in self.constants.items():
            self.old[name] = self.new[name] = (int(tensor.data_type), tuple(tensor.dims))
        for info in graph.input:
            tensor_type = info.type.tensor_type
            type = (int(tensor_type.elem_type), tuple(int(d.dim_value) for d in tensor_type.shape.dim))
            self.old[info.name] = self.new[info.name] = type
            if info.name in inputs:
                self._put(info.name, type, Place(inputs[info.name]))
                tensor_type.shape.dim[inputs[info.name]].dim_value = self.after
        for index, node in enumerate(graph.node):
            self._label = node.name or f"{node.op_type}_{index}"
            self._node(node)
            self.nodes.append(node)
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes]  # the field is emptied next
        read = {n for node in nodes for n in (*node.input, *(c for g in subgraphs(node) for c in captured(g)))}
        read |= {o.name for o in graph.output}
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in read)
        for output in graph.output:
            if output.name in self.places:
                _declare(output, self.new[output.name][1])
        return self.model

    def _put(self, name: str, type: Type, place: Place) -> None:
        self.old[name] = type
        self.new[name] = (type[0], place.resized(type[1], self.after))
        self.places[name] = place

    def _fail(self, node: onnx.NodeProto, what: str, **details: Any) -> NoReturn:
        raise node_place(self.where, self._label, node.op_type).error(what, **details)

    def _note(self, node: onnx.NodeProto, what: str) -> None:
        self.changes.append(Change(self._label, node.op_type, what))

    # One node

    def _node(self, node: onnx.NodeProto) -> None:
        inner = {n for g in subgraphs(node) for n in captured(g)}
        carried = [n for n in dict.fromkeys(node.input) if n in self.places]
        if inner & self.places.keys() or (carried and any(subgraphs(node))):
            self._fail(
                node,
                "runs a graph of its own on the samples of a batch, which rebatch does not follow",
                hint="export the model with the batch that you need, or with an open one",
            )
        before = self._infer.of(node, self.old)
        if before is None:
            if not carried:
                return  # its results have no known size, and nothing of the batch
            self._fail(
                node,
                "has results whose sizes depend on the elements of its inputs",
                hint="cut the model before this node, and do the rest outside",
            )
        if not carried:
            self.old.update(before)
            self.new.update(before)
            return
        unknown = [n for n in node.input if n and n not in self.new]
        if unknown:
            self._fail(node, f"reads '{unknown[0]}', whose size depends on the elements of a tensor")
        result = before[node.output[0]][1]
        place = self._prepared(node, carried, result)
        after = self._infer.of(node, self.new)
        if after is None:
            self._refuse(node, carried)
        for name, type in before.items():
            self._put_result(node, name, type, after[name], carried, place)

    def _put_result(
        self,
        node: onnx.NodeProto,
        name: str,
        before: Type,
        after: Type,
        carried: list[str],
        place: Place | None,
    ) -> None:
        """Take in a result: its place must be one of the inputs', with the axis that has grown."""
        if place is None:
            grown = [i for i, (a, b) in enumerate(zip(before[1], after[1], strict=False)) if a != b]
            places = [self.places[n] for n in carried]
            if node.op_type == "Tile" and grown:
                first = places[0]
                place = replace(first, outer=first.outer * (before[1][grown[0]] // self.old[carried[0]][1][first.axis]))
            elif len(grown) == 1:
                place = next(
                    (replace(p, axis=grown[0]) for p in places if p.size(self.before) == before[1][grown[0]]), None
                )
                if place is not None and any((p.outer, p.inner) != (place.outer, place.inner) for p in places):
                    place = None
        if place is None or place.resized(before[1], self.after) != after[1]:
            self._fail(
                node,
                "does not keep the samples of a batch apart",
                got=f"{list(before[1])} with a batch of {self.before}, {list(after[1])} with {self.after}",
                expected="one axis that grows with the batch",
                hint="leave out inputs without samples: --input NAME; or cut the model before this node",
            )
        self._put(name, before, place)

    def _refuse(self, node: onnx.NodeProto, carried: list[str]) -> NoReturn:
        shapes = ", ".join(str(list(self.new[n][1])) for n in node.input if n)
        place = self.places[carried[0]]
        what = "takes no other number of samples"
        if node.op_type == "Squeeze":
            what = f"removes axis {place.axis}, which holds the batch"
        self._fail(
            node,
            what,
            got=f"inputs {shapes} with a batch of {self.after}",
            hint="leave out inputs without samples: --input NAME; or cut the model before this node",
        )

    # What fixes the batch

    def _prepared(self, node: onnx.NodeProto, carried: list[str], result: Shape) -> Place | None:
        """Change what fixes the batch in the inputs of a node. Returns the place of its samples in the result if that
        follows from the op; None if it is where the result grows."""
        op, place = node.op_type, self.places[carried[0]]
        if node.domain not in ("", "ai.onnx"):
            return None
        if op in RESHAPES:
            return self._reshape(node, place, result)
        if op == "Expand":
            self._expand_shape(node, place, result)
        elif op in ("Resize", "Upsample"):
            self._resize(node, place)
        elif op == "Slice":
            self._slice(node, place)
        elif op in RECURRENT:
            self._states(node)
        elif op == "Gather":
            return self._gather(node)
        elif op in NUMBERED:
            self._numbered(node)
        elif op in BROADCASTING or op in ALIKE:
            return self._aligned(node, carried, result)
        return None

    def _reshape(self, node: onnx.NodeProto, place: Place, result: Shape) -> Place:
        found = reshaped(place, self.old[node.input[0]][1], result, self.before)
        if found is None:
            self._fail(
                node,
                "merges the samples of a batch with other elements",
                got=f"{list(self.old[node.input[0]][1])} -> {list(result)}",
                hint="cut the model before this node",
            )
        if node.op_type == "Reshape":

            def change(shape: np.ndarray) -> np.ndarray:
                if shape[found.axis] == 0 and found.axis == place.axis and found.inner == place.inner:
                    return shape  # copied from the input
                if shape[found.axis] != -1:
                    shape[found.axis] = found.size(self.after)
                return shape

            self._change(node, 1, change, f"axis {found.axis}: {result[found.axis]} -> {found.size(self.after)}")
        return found

    def _expand_shape(self, node: onnx.NodeProto, place: Place, result: Shape) -> None:
        axis = place.axis + len(result) - len(self.old[node.input[0]][1])

        def change(shape: np.ndarray) -> np.ndarray:
            at = axis - (len(result) - len(shape))
            if at >= 0 and shape[at] == result[axis]:
                shape[at] = place.size(self.after)
            return shape

        self._change(node, 1, change, f"axis {axis}: {result[axis]} -> {place.size(self.after)}")

    def _resize(self, node: onnx.NodeProto, place: Place) -> None:
        """Sizes in place of scales name the batch."""
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        rank = len(self.old[node.input[0]][1])
        named = list(range(rank)) if axes is None else [a % rank for a in axes]
        if len(node.input) < 4 or not node.input[3] or place.axis not in named:
            return

        def change(sizes: np.ndarray) -> np.ndarray:
            sizes[named.index(place.axis)] = place.size(self.after)
            return sizes

        self._change(node, 3, change, f"sizes[{named.index(place.axis)}] -> {place.size(self.after)}")

    def _slice(self, node: onnx.NodeProto, place: Place) -> None:
        """A slice of the whole batch ends where it ends."""
        starts, ends, axes, steps = (self._values(node, at) for at in range(1, 5))
        if starts is None or ends is None:
            return
        shape = self.old[node.input[0]][1]
        named = list(range(len(starts))) if axes is None else [int(a) % len(shape) for a in axes]
        if place.axis not in named:
            return
        at = named.index(place.axis)
        whole = int(starts[at]) == 0 and int(ends[at]) >= shape[place.axis] and (steps is None or int(steps[at]) == 1)
        if not whole:
            self._fail(
                node,
                "takes some samples of a batch",
                got=f"[{starts[at]}:{ends[at]}] of axis {place.axis}",
                hint="cut the model before this node",
            )

        def change(values: np.ndarray) -> np.ndarray:
            values[at] = np.iinfo(values.dtype).max
            return values

        self._change(node, 2, change, f"ends[{at}]: to the end")

    def _gather(self, node: onnx.NodeProto) -> Place | None:
        """Constant numbers along the axis of the batch pick the same of every sample."""
        data, numbers = self.places.get(node.input[0]), self._values(node, 1)
        axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0) % len(self.old[node.input[0]][1])
        if data is None or axis != data.axis:
            return None
        picks = self.places.get(node.input[1])
        if picks is not None:
            return self._gather_of_each(node, data, picks)
        if numbers is None:
            return None
        found = renumbered(numbers, data, self.before, self.after)
        if found is None:
            self._fail(
                node,
                "picks samples of a batch by constant numbers",
                got=f"{numbers.reshape(-1)[:8].tolist()} along axis {axis}, which holds the batch",
                hint="cut the model before this node",
            )
        changed, along = found
        self._change(node, 1, lambda _: changed, f"numbers of the elements of {self.after} samples")
        return Place(axis + along)

    def _gather_of_each(self, node: onnx.NodeProto, data: Place, picks: Place) -> Place | None:
        """Computed numbers for each sample count from the start of the only one: each gets its own start."""
        if self.before != 1 or (data.outer, picks.outer, picks.inner) != (1, 1, 1):
            return None
        name = node.input[1]
        type = self.old[name]
        result, starts = f"{name}:batch{self.after}:{data.inner}", f"{name}:starts{self.after}:{data.inner}"
        if result not in self.places:
            shape = [1] * len(type[1])
            shape[picks.axis] = self.after
            dtype = onnx.helper.tensor_dtype_to_np_dtype(type[0])
            self._constant(starts, (np.arange(self.after, dtype=dtype) * data.inner).reshape(shape))
            self.nodes.append(onnx.helper.make_node("Add", [name, starts], [result], name=result))
            self._put(result, type, picks)
        node.input[1] = result
        self._note(node, f"'{name}' counted from the start of each of {self.after} samples")
        return Place(data.axis + picks.axis)

    def _states(self, node: onnx.NodeProto) -> None:
        """Lengths of sequences and initial states have an entry for each sample."""
        batch_first = any(a.name == "layout" and a.i for a in node.attribute)
        for at, axis in ((4, 0), (5, 0 if batch_first else 1), (6, 0 if batch_first else 1)):
            if at < len(node.input) and node.input[at]:
                self._repeat(node, at, Place(axis))

    def _numbered(self, node: onnx.NodeProto) -> None:
        if node.input[1] in self.places or any(a.name == "batch_dims" and a.i for a in node.attribute):
            return
        place, numbers = self.places.get(node.input[0], None), self.old[node.input[1]]
        if place is not None and place.axis < numbers[1][-1]:
            self._fail(
                node,
                "addresses the samples of a batch by constant numbers",
                hint="write the assignment in the model as a concatenation or a selection with a mask",
            )

    def _aligned(self, node: onnx.NodeProto, carried: list[str], result: Shape) -> Place | None:
        """Repeat other operands for each sample where they have as many elements as the batch along its axis."""
        op = node.op_type
        ranks = {n: len(self.old[n][1]) for n in node.input if n}
        most = len(result) if op != "MatMul" else max(ranks.values())
        place = next(replace(p, axis=p.axis + most - ranks[n]) for n in carried for p in (self.places[n],))
        if op == "Concat":
            along = next(int(a.i) for a in node.attribute if a.name == "axis") % len(result)
            if along == place.axis:
                if len(carried) < len(set(node.input)):
                    self._fail(node, "concatenates a batch with samples of its own")
                return concatenated([self.places[n] for n in node.input])
        for at, name in enumerate(node.input):
            if not name or name in self.places:
                continue
            axis = place.axis - (most - ranks[name])
            size = self.old[name][1][axis] if axis >= 0 else 1
            matrix = op == "MatMul" and axis >= ranks[name] - 2
            broadcast = op not in ALIKE and size == 1
            if axis >= 0 and not matrix and not broadcast and size == place.size(self.before):
                self._repeat(node, at, replace(place, axis=axis))
        return None

    def _repeat(self, node: onnx.NodeProto, at: int, place: Place) -> None:
        """Make an input hold the same for every sample."""
        name = node.input[at]
        if name in self.places:
            return
        type, size = self.old[name], place.size(self.after)
        result = f"{name}:batch{self.after}:{place.axis}"
        if name in self.constants:
            array = repeated(numpy_helper.to_array(self.constants[name]), place, self.before, self.after)
            if array is None:
                self._fail(
                    node,
                    f"constant '{name}' tells the samples of a batch apart",
                    got=f"{list(type[1])}, samples along axis {place.axis}",
                )
            self.constants[result] = numpy_helper.from_array(array, result)
        elif self.before * place.outer * place.inner == 1:
            shape = f"{result}:shape"
            self._constant(shape, np.array(place.resized(type[1], self.after), np.int64))
            if result not in self.new:
                self.nodes.append(onnx.helper.make_node("Expand", [name, shape], [result], name=result))
        else:
            self._fail(node, f"'{name}' has an element for each sample, but does not come from the inputs with samples")
        self._put(result, type, place)
        node.input[at] = result
        self._note(node, f"'{name}' for {size // (place.outer * place.inner)} samples")

    def _values(self, node: onnx.NodeProto, at: int) -> np.ndarray | None:
        """A constant input; None without one."""
        name = node.input[at] if at < len(node.input) else ""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def _change(self, node: onnx.NodeProto, at: int, change: Callable[[np.ndarray], np.ndarray], what: str) -> None:
        """Give a node a constant of its own, changed, if that makes a difference."""
        old = self._values(node, at)
        if old is None:
            return
        new = change(old.copy())
        if np.array_equal(old, new):
            return
        name = f"{node.output[0]}:{at}:batch{self.after}"
        self._constant(name, new)
        node.input[at] = name
        self._note(node, what)

    def _constant(self, name: str, values: ArrayLike) -> None:
        self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        self.old[name] = self.new[name] = (int(self.constants[name].data_type), tuple(self.constants[name].dims))


def _declare(output: onnx.ValueInfoProto, shape: Shape) -> None:
    output.type.tensor_type.ClearField("shape")
    for size in shape:
        output.type.tensor_type.shape.dim.add().dim_value = size
    if not shape:
        output.type.tensor_type.shape.SetInParent()


__all__ = ["Change", "Follower"]

"""An editable ONNX graph: ordered nodes, constants, and symbolic types and integer values of tensors.

Nodes are ONNX nodes (op type, inputs, outputs, attributes); Constant nodes become constants. Invariant: nodes are in
topological order; `types` and `values` hold for all symbol values that the original model accepts; names that subgraphs
capture, and graph outputs, keep their meaning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ppuc.compiler.frontend.order import captured
from ppuc.compiler.simplify.symbolic_sizes import Size

Shape = tuple[Size, ...]


class Node:
    """One ONNX node. Attributes are AttributeProtos by name. Nodes compare by identity."""

    __slots__ = ("attributes", "dead", "domain", "inputs", "name", "op", "outputs")

    def __init__(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", domain: str = ""
    ) -> None:
        self.op = op
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.name = name
        self.domain = domain
        self.attributes: dict[str, onnx.AttributeProto] = {}
        self.dead = False

    def __repr__(self) -> str:
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)})"

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute: int, float, str, list, TensorProto or GraphProto."""
        if name not in self.attributes:
            return default
        value = onnx.helper.get_attribute_value(self.attributes[name])
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def set(self, **values: Any) -> Node:
        """Set attributes; None removes an attribute."""
        for name, value in values.items():
            if value is None:
                self.attributes.pop(name, None)
            else:
                self.attributes[name] = onnx.helper.make_attribute(name, value)
        return self

    def to_proto(self) -> onnx.NodeProto:
        """The node as a NodeProto."""
        proto = onnx.NodeProto(
            op_type=self.op, domain=self.domain, name=self.name, input=self.inputs, output=self.outputs
        )
        proto.attribute.extend(self.attributes[k] for k in sorted(self.attributes))
        return proto

    def input(self, index: int) -> str:
        """The name of an input; "" if it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""

    @property
    def has_graph(self) -> bool:
        """Whether the node has subgraphs."""
        return any(a.HasField("g") or a.graphs for a in self.attributes.values())


class Constant:
    """A constant tensor, decoded and hashed on first use."""

    __slots__ = ("_array", "_key", "_proto", "dtype", "shape")

    def __init__(self, value: onnx.TensorProto | np.ndarray) -> None:
        self._key: bytes | None = None
        self._array: np.ndarray | None = None
        self._proto: onnx.TensorProto | None = None
        if isinstance(value, onnx.TensorProto):
            self._proto = value
            self.dtype, self.shape = int(value.data_type), tuple(value.dims)
        else:
            self._array = value
            self.dtype, self.shape = onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape

    @property
    def array(self) -> np.ndarray:
        """The values; read-only."""
        if self._array is None and self._proto is not None:
            self._array = numpy_helper.to_array(self._proto)
        return np.asarray(self._array)

    @property
    def elements(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def key(self) -> bytes:
        """A key that is equal only for equal constants (dtype, shape and bytes)."""
        if self._key is None:
            digest = hashlib.blake2b(f"{self.dtype}{self.shape}".encode(), digest_size=16)
            digest.update(np.ascontiguousarray(self.array).tobytes())
            self._key = digest.digest()
        return self._key

    def proto(self, name: str) -> onnx.TensorProto:
        """As an initializer."""
        if self._proto is not None:
            copy = onnx.TensorProto()
            copy.CopyFrom(self._proto)
            copy.name = name
            return copy
        return numpy_helper.from_array(np.ascontiguousarray(self.array).reshape(self.shape), name)


def _defined(graph: onnx.GraphProto) -> set[str]:
    """Names defined in a subgraph and in subgraphs nested in it; ONNX requires them to differ from all others."""
    names = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        names.update(node.output)
        for a in node.attribute:
            for inner in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                names |= _defined(inner)
    return names


@dataclass(slots=True)
class ModelGraph:
    """`opset` is the standard domain's; `inputs` and `outputs` are the model's declarations. `types` maps tensors to
    element type (TensorProto's number) and shape (None: unknown rank); `values` maps small integer tensors to object
    arrays of int, Poly, or None for an unknown element."""

    opset: int
    imports: list[onnx.OperatorSetIdProto]
    inputs: list[onnx.ValueInfoProto]
    outputs: list[onnx.ValueInfoProto]
    nodes: list[Node]
    constants: dict[str, Constant]
    types: dict[str, tuple[int, Shape | None]] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    producers: dict[str, Node] = field(default_factory=dict)
    uses: dict[str, list[Node]] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)
    _created: int = 0

    def index(self) -> None:
        """Rebuild `producers`, `uses` and `pinned`; drop dead nodes."""
        self.nodes = [n for n in self.nodes if not n.dead]
        self.producers = {o: n for n in self.nodes for o in n.outputs if o}
        self.uses = {}
        self.pinned = {o.name for o in self.outputs}
        inner: set[str] = set()
        for n in self.nodes:
            for name in filter(None, n.inputs):
                self.uses.setdefault(name, []).append(n)
            for a in n.attributes.values():
                for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                    self.pinned |= captured(graph)
                    inner |= _defined(graph)
        self._names = inner | set(self.producers) | set(self.constants) | {i.name for i in self.inputs} | self.pinned

    # Properties of tensors

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor; None if its rank is unknown."""
        return self.types[name][1] if name in self.types else None

    def dtype(self, name: str) -> int:
        """The element type of a tensor; 0 if unknown."""
        return self.types[name][0] if name in self.types else 0

    def array(self, name: str) -> np.ndarray | None:
        """The data of a constant."""
        return self.constants[name].array if name in self.constants else None

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element, or with all elements equal; None otherwise."""
        if name not in self.constants:
            return None
        array = self.constants[name].array
        if array.size == 0 or array.dtype.kind not in "fiu" or (array.size > 1 and not (array == array.flat[0]).all()):
            return None
        return float(array.flat[0])

    def producer(self, name: str, *ops: str) -> Node | None:
        """The standard-domain node that defines `name`, if it is one of `ops` (any, when none are given)."""
        node = self.producers.get(name)
        fits = node is not None and not node.dead and (not ops or (node.op in ops and node.domain == ""))
        return node if fits else None

    def consumers(self, name: str) -> list[Node]:
        """Live nodes that read `name`, one entry per use."""
        return [n for n in self.uses.get(name, ()) if not n.dead]

    def only_consumer(self, name: str) -> Node | None:
        """The only reader of `name`; None if it has other uses."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and name not in self.pinned else None

    # Editing

    def fresh(self, hint: str) -> str:
        """An unused tensor name."""
        name = hint
        while name in self._names:
            self._created += 1
            name = f"{hint}.{self._created}"
        self._names.add(name)
        return name

    def constant(self, array: np.ndarray, hint: str) -> str:
        """Add a constant; returns its name."""
        name = self.fresh(hint)
        self.constants[name] = Constant(np.asarray(array))
        self.types[name] = (self.constants[name].dtype, self.constants[name].shape)
        return name

    def emit(self, before: Node, op: str, inputs: Sequence[str], hint: str, **attributes: Any) -> Node:
        """Insert a node with one output before `before`; returns the output's name. The caller sets its type."""
        node = Node(op, inputs, [self.fresh(hint)]).set(**attributes)
        node.name = node.outputs[0]
        at = next(i for i, n in enumerate(self.nodes) if n is before)
        self.nodes.insert(at, node)
        self.producers[node.outputs[0]] = node
        for name in filter(None, inputs):
            self.uses.setdefault(name, []).append(node)
        return node

    def rewire(self, node: Node, index: int, name: str) -> None:
        """Let input `index` of `node` read `name` ("" leaves it out)."""
        while len(node.inputs) <= index:
            node.inputs.append("")
        old, node.inputs[index] = node.inputs[index], name
        if old:
            self.uses[old].remove(node)
        if name:
            self.uses.setdefault(name, []).append(node)
        while node.inputs and not node.inputs[-1]:
            node.inputs.pop()

    def rewrite(self, node: Node, op: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Replace the op, inputs and attributes of `node`, keeping its outputs."""
        for name in filter(None, node.inputs):
            self.uses[name].remove(node)
        node.op, node.domain, node.inputs, node.attributes = op, "", list(inputs), {}
        node.set(**attributes)
        for name in filter(None, inputs):
            self.uses.setdefault(name, []).append(node)

    def replace(self, node: Node, name: str) -> bool:
        """Replace all uses of the node's first output by `name`, and remove the node. Returns False, without a change,
        if the output's name is pinned and `name` cannot take it."""
        old = node.outputs[0]
        if old in self.pinned:
            return self._take_over(node, old, name)
        for reader in self.consumers(old):
            reader.inputs = [name if i == old else i for i in reader.inputs]
            self.uses.setdefault(name, []).append(reader)
        self.uses.pop(old, None)
        self.drop(node)
        return True

    def _take_over(self, node: Node, old: str, name: str) -> bool:
        """Rename `name` to the pinned `old`, its producer's output included, and drop `node`, which defined `old`."""
        source = self.producers.get(name)
        if source is None or source is node or name in self.pinned or name in self.constants:
            return False
        node.outputs[0] = self.fresh(f"{old}.unused")
        source.outputs = [old if o == name else o for o in source.outputs]
        for reader in self.consumers(name):
            reader.inputs = [old if i == name else i for i in reader.inputs]
        self.uses[old] = [*self.consumers(old), *self.uses.pop(name, [])]
        self.types[old] = self.types.get(name, (0, None))
        self.drop(node)
        self.producers.pop(name, None)
        self.producers[old] = source
        return True

    def drop(self, node: Node) -> None:
        """Remove a node without readers."""
        node.dead = True
        for name in filter(None, node.inputs):
            self.uses[name].remove(node)
        for name in node.outputs:
            if self.producers.get(name) is node:
                self.producers.pop(name)

    def live_nodes(self) -> Iterator[Node]:
        """A copy of the list of live nodes, safe to iterate over while editing."""
        return (n for n in list(self.nodes) if not n.dead)

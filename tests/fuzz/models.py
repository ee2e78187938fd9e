"""Random models: nodes of any op, one after the other, each reading what those before it computed.

A tensor is brought into the shape, type and range that an input wants by glue: repeated, cut, reshaped, bounded and
cast. Nodes in double precision run on the host, so that parts of a model alternate.

Invariant: a seed gives the same model and the same inputs every time, and every node but the first reads an earlier one
if it reads floats.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.fuzz.equivalents import REWRITES
from tests.fuzz.registry import Key, claimed_ops, node_of, opsets_of
from tests.fuzz.sample import F32, Node, UnsuitedError

OPSETS = (13, 17, 21)
ROUNDING = frozenset({("com.microsoft", "DynamicQuantizeLSTM"), ("com.microsoft", "QLinearSoftmax")})
"""Ops that ONNX Runtime rounds in between, or otherwise."""
GLUED = 0.7
"""How often an input that an earlier tensor could be is one."""
UNSTEADY = frozenset(
    {
        *("ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Det", "Floor", "Hardmax", "Mod", "OneHot", "Round", "Sign"),
        *("DynamicQuantizeLinear", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "TopK", "Where"),
        *(
            "LpNormalization",
            "GridSample",
            "MaxRoiPool",
            "RoiAlign",
            "DeformConv",
            "Reciprocal",
            "Tan",
            "Div",
            "Shrink",
        ),
        *(
            "Acos",
            "Asin",
            "Acosh",
            "Atanh",
            "Log",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "Pow",
            "PRelu",
            "ThresholdedRelu",
        ),
        *("MeanVarianceNormalization", "InstanceNormalization", "GroupNormalization", "Resize", "NonZero", "MaxPool"),
        *("ReduceProd", "CumProd", "Shrink", "ThresholdedRelu"),
    }
)
"""Ops whose results jump, or grow without bound, where their operands change by a rounding: they end a model, if they
occur at all."""


class _Model:
    """A model that grows. `known` are tensors that nodes may read, by name."""

    def __init__(self, source: random.Random, opset: int) -> None:
        self.random, self.opset = source, opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.known: list[str] = []
        self.results: list[str] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def emit(self, op: str, *inputs: str, **attributes: int) -> str:
        name = f"g{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def glued(self, like: np.ndarray) -> str:
        """An earlier tensor in the shape, the type and about the range of `like`."""
        flat = self.emit("Reshape", self.random.choice(self.known), self.constant(np.array([-1])))
        wide = self.emit("Cast", flat, to=onnx.TensorProto.FLOAT)
        bounded = self.emit("Tanh", wide)
        if like.size and like.min() > 0:
            half = self.constant(np.array(0.4, np.float32))
            bounded = self.emit("Add", self.emit("Mul", bounded, half), self.constant(np.array(0.5, np.float32)))
        some = self.emit("Tile", bounded, self.constant(np.array([like.size])))
        enough = self.emit("Concat", some, self.constant(np.zeros(like.size, np.float32)), axis=0)
        cut = self.emit("Slice", enough, self.constant(np.array([0])), self.constant(np.array([like.size])))
        shaped = self.emit("Reshape", cut, self.constant(np.array(like.shape, np.int64).reshape(like.ndim)))
        if like.dtype == F32:
            return shaped
        return self.emit("Cast", shaped, to=helper.np_dtype_to_tensor_dtype(like.dtype))

    def add(self, node: Node) -> None:
        """Append a node whose names become the model's."""
        at = len(self.nodes)
        (proto,) = node.model.graph.node
        names = {name: f"n{at}_{name}" for name in (*proto.input, *proto.output) if name}
        for info in node.model.graph.input:
            array = node.feeds[info.name]
            name = names[info.name] = f"n{at}_{info.name}"
            floats = array.dtype.kind == "f" and array.size and np.isfinite(array.astype(np.float64)).all()
            if self.known and floats and self.random.random() < GLUED:
                names[info.name] = self.glued(array)
                continue
            self.feeds[name] = array
            self.inputs.append(helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, array.shape))
        for tensor in node.model.graph.initializer:
            names[tensor.name] = f"n{at}_{tensor.name}"
            self.weights.append(onnx.TensorProto())
            self.weights[-1].CopyFrom(tensor)
            self.weights[-1].name = names[tensor.name]
        self.nodes.append(_renamed(proto, names))
        self.nodes[-1].name = f"node{at}"
        outputs = [o for o in self.nodes[-1].output if o]
        self.results = outputs
        if proto.op_type not in UNSTEADY:
            self.known += outputs[:1]

    def model(self) -> Node:
        outputs = dict.fromkeys([*self.results, *(self.random.sample(self.known, min(len(self.known), 2)))])
        infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "several", self.inputs, infos, self.weights)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return Node(helper.make_model(graph, opset_imports=opsets, ir_version=8), self.feeds)


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A copy that reads and writes other names, those inside of branches included."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[:] = [names.get(name, name) for name in node.input]
    made.output[:] = [names.get(name, name) for name in node.output]
    for attribute in made.attribute:
        if attribute.HasField("g"):
            inner = [_renamed(n, names) for n in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
    return made


def _suited(key: Key, opset: int) -> bool:
    return bool(key[0]) or opsets_of(key)[0] <= opset <= opsets_of(key)[-1]


def model_of_seed(seed: int, nodes: int = 6, ops: Iterable[Key] = ()) -> Node:
    """The model of a seed, of as many nodes (of `ops`, any by default) and their glue."""
    source = random.Random(f"model{seed}")
    opset = source.choice(OPSETS)
    unsuited = {*REWRITES, *ROUNDING}
    keys = [key for key in (*ops,) or claimed_ops() if _suited(key, opset) and key not in unsuited]
    model = _Model(source, opset)
    added = 0
    while added < nodes:
        try:
            node = node_of(source.choice(keys), source, opset, calm=True)
        except UnsuitedError:
            continue
        if node.model.opset_import[0].version != opset:
            continue
        model.add(node)
        added += 1
    return model.model()

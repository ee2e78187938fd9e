"""Layers of stranger models with graphs in graphs: branches in loops, loops in branches, scans, which read names of
every graph around them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.trial_model import BOOL, F32, I64, TrialModel
from tests.fuzz.trial_values import Layer

SMOOTH = ("Tanh", "Relu", "Neg", "Sigmoid", "Abs", "Sin", "Erf", "Softsign")


class Body:
    """Nodes of a graph within a node, which keep the shape of what they begin with; names are unique in the model."""

    def __init__(self, m: TrialModel, label: str, dtype: np.dtype, outer: list[str]) -> None:
        self.m, self.label, self.dtype, self.outer = m, f"{label}{len(m.nodes)}", dtype, outer
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{self.label}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def number(self, value: float, dtype: np.dtype | None = None) -> str:
        tensor = onnx.numpy_helper.from_array(np.array(value, dtype or self.dtype))
        return self.add("Constant", [], value=tensor)

    def grown(self, x: str, depth: int) -> str:
        """A few nodes on x; with `depth` one of them may be a branch or a loop."""
        for _ in range(self.m.between(1, 3)):
            x = self.step(x, depth)
        return x

    def step(self, x: str, depth: int) -> str:
        kind = self.m.choose(("smooth", "outer", "number", "mean", "graph", "shape"))
        if kind == "outer" and self.outer:
            return self.add(self.m.choose(("Add", "Sub", "Mul")), [x, self.m.choose(self.outer)])
        if kind == "number":
            return self.add(self.m.choose(("Mul", "Add", "Max")), [x, self.number(0.5)])
        if kind == "mean":
            return self.add("Sub", [x, self.add("ReduceMax", [x], keepdims=0)])
        if kind == "shape":
            return self.add("Reshape", [self.add("Reshape", [x, self.flat()]), self.add("Shape", [x])])
        if kind == "graph" and depth:
            return self.branch(x, depth - 1) if self.m.flip(0.6) else self.loop(x, depth - 1)
        return self.add(self.m.choose(SMOOTH), [x])

    def flat(self) -> str:
        return self.add("Constant", [], value=onnx.numpy_helper.from_array(np.array([-1], np.int64)))

    def inner(self, label: str, outer: list[str]) -> Body:
        return Body(self.m, f"{self.label}{label}{len(self.nodes)}_", self.dtype, outer)

    def condition(self, x: str) -> str:
        """Of the data, or of the number of elements."""
        if self.m.flip():
            return self.add("Greater", [self.add("Size", [x]), self.number(self.m.choose((1, 20)), I64)])
        return self.add("Greater", [self.add("ReduceMax", [x], keepdims=0), self.number(0.123)])

    def branch(self, x: str, depth: int) -> str:
        graphs = {}
        for side in ("then_branch", "else_branch"):
            body = self.inner(side[0], [*self.outer, x])
            last = body.grown(body.add(self.m.choose(SMOOTH), [x]), depth)
            graphs[side] = helper.make_graph(body.nodes, side, [], [helper.make_empty_tensor_value_info(last)])
        return self.add("If", [self.condition(x)], **graphs)

    def loop(self, x: str, depth: int) -> str:
        body = self.inner("l", [*self.outer, x])
        trip, going, state = (f"{body.label}{n}" for n in ("trip", "going", "state"))
        last = body.grown(state, depth)
        more = body.add("Identity", [going])
        if self.m.flip(0.4):
            more = body.add("Less", [trip, body.number(self.m.between(0, 2), I64)])
        inputs = [
            helper.make_tensor_value_info(trip, onnx.TensorProto.INT64, ()),
            helper.make_tensor_value_info(going, onnx.TensorProto.BOOL, ()),
            helper.make_tensor_value_info(state, helper.np_dtype_to_tensor_dtype(self.dtype), None),
        ]
        graph = helper.make_graph(
            body.nodes, "body", inputs, [helper.make_empty_tensor_value_info(n) for n in (more, last)]
        )
        return self.add("Loop", [self.number(self.m.between(0, 3), I64), self.number(True, BOOL), x], body=graph)


def nested(m: TrialModel) -> None:
    """A branch or a loop, with others within, on a tensor of the model."""
    x = m.pick("f")
    dtype, shape = m.values[x].dtype, m.values[x].shape
    outer = [n for n in m.live if m.values[n].dtype == dtype and m.values[n].shape in (shape, (), (1,))]
    body = Body(m, "n", dtype, m.random.sample(outer, min(len(outer), 2)))
    last = body.branch(x, 2) if m.flip() else body.loop(x, 2)
    for node in body.nodes:
        names = [n for n in _reads(node) if n in m.values]
        if not m.attempt_node(node, names):
            return
    m.attempt("Identity", [last])


def _reads(node: onnx.NodeProto) -> list[str]:
    found = [n for n in node.input if n]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found += [n for inner in attribute.g.node for n in _reads(inner)]
            found += [o.name for o in attribute.g.output]
    return list(dict.fromkeys(found))


def gathered_loop(m: TrialModel) -> None:
    """A loop whose steps each take the row of their number from a tensor around, and collect results."""
    x = m.pick("f", 1)
    dtype, shape = m.values[x].dtype, m.values[x].shape
    body = Body(m, "g", dtype, [])
    trip, going, state = (f"{body.label}{n}" for n in ("trip", "going", "state"))
    row = body.add("Gather", [x, trip], axis=0)
    total = body.add("Add", [state, body.add(m.choose(SMOOTH), [row])])
    kept = body.add("Mul", [total, body.number(0.5)])
    more = body.add("Identity", [going])
    inputs = [
        helper.make_tensor_value_info(trip, onnx.TensorProto.INT64, ()),
        helper.make_tensor_value_info(going, onnx.TensorProto.BOOL, ()),
        helper.make_tensor_value_info(state, helper.np_dtype_to_tensor_dtype(dtype), None),
    ]
    results = [helper.make_empty_tensor_value_info(n) for n in (more, total, kept)]
    graph = helper.make_graph(body.nodes, "body", inputs, results)
    if m.flip() or not shape[0]:
        count = m.then("Squeeze", [m.then("Gather", [m.then("Shape", [x]), m.ints(0)], axis=0)])
    else:
        count = m.scalar(m.between(0, min(shape[0], 4)), I64)
    start = m.constant(np.zeros(shape[1:]), dtype)
    m.attempt("Loop", [count, "", start], outputs=2, captured=[x], body=graph)


def scanned(m: TrialModel) -> None:
    """A scan of two tensors, with a branch within its steps."""
    x = m.pick("f", 2, dtype=F32)
    shape = m.values[x].shape
    other = m.weight(F32, shape)
    body = Body(m, "s", F32, [])
    state, a, b = (f"{body.label}{n}" for n in ("state", "a", "b"))
    both = body.add("Mul", [a, b])
    body.outer = [both]
    last = body.branch(body.add("Add", [state, both]), 1)
    each = body.add("Tanh", [last])
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape[1:]) for n in (state, a, b)]
    results = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape[1:]) for n in (last, each)]
    graph = helper.make_graph(body.nodes, "body", infos, results)
    directions = [m.between(0, 1), m.between(0, 1)]
    start = m.weight(F32, shape[1:])
    m.attempt("Scan", [start, x, other], outputs=2, body=graph, num_scan_inputs=2, scan_input_directions=directions)


GRAPHS: dict[Layer, float] = {nested: 3, gathered_loop: 1, scanned: 0.8}
"""Layer -> its share."""

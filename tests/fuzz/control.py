"""If, Loop and Scan whose conditions and trip counts are known, with bodies of a few nodes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F32, Sample


def _info(name: str, shape: tuple[int, ...] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@strategy("If")
def branch(s: Sample) -> None:
    shape = s.shape(0, 3)
    s.add(np.array(s.flip()), s.flip(0.8))
    name = "outer"
    s.arrays[name] = s.array(F32, shape)

    def graph(label: str, op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, [name], [label])], label, [], [_info(label, shape)])

    s.attributes = {"then_branch": graph("a", "Exp"), "else_branch": graph("b", "Neg")}


@strategy("Loop")
def loop(s: Sample) -> None:
    shape, trips = s.shape(0, 3), s.between(0, 4)
    s.add(np.array(trips, np.int64), True)
    s.add(np.array(s.flip(0.9)) if s.flip() else None, True)
    s.add(s.array(F32, shape))
    nodes = [
        helper.make_node("Identity", ["go"], ["still"]),
        helper.make_node("Cast", ["trip"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["state", "number"], ["next"]),
        helper.make_node("Mul", ["next", "next"], ["each"]),
    ]
    inputs = [_info("trip", (), TensorProto.INT64), _info("go", (), TensorProto.BOOL), _info("state", shape)]
    results = [_info("still", (), TensorProto.BOOL), _info("next", shape), _info("each", shape)]
    s.attributes["body"] = helper.make_graph(nodes, "body", inputs, results)
    s.outputs = ["y0", "y1"]


@strategy("Scan")
def scan(s: Sample) -> None:
    if s.opset < 9:
        s.opset = 9  # before that it had a batch axis of its own
    shape, steps = s.shape(0, 2, least=1), s.between(1, 5)
    axis = s.between(0, len(shape))
    s.add(s.array(F32, shape))
    s.add(s.array(F32, (*shape[:axis], steps, *shape[axis:])))
    nodes = [helper.make_node("Add", ["state", "part"], ["next"]), helper.make_node("Neg", ["next"], ["each"])]
    inputs, results = [_info("state", shape), _info("part", shape)], [_info("next", shape), _info("each", shape)]
    s.attributes = {"body": helper.make_graph(nodes, "body", inputs, results), "num_scan_inputs": 1}
    s.attributes["scan_input_axes"] = [axis]
    if s.flip():
        s.attributes["scan_input_directions"] = [int(s.flip())]
    if s.flip():
        s.attributes["scan_output_axes"] = [s.between(0, len(shape))]
    s.outputs = ["y0", "y1"]

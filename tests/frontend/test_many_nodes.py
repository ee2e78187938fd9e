"""Models of thousands of nodes, inputs and outputs take effort in proportion to their number."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.driver import examine
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.options import CompileOptions
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.module import Module
from ppuc.ir.types import DType, TensorType
from ppuc.ir.verify import verify_module
from ppuc.targets.description import load_target
from tests.support.effort import assert_linear

ROW = [1, 8]
TINY = load_target("ppu-tiny")


def model(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], **more: object) -> onnx.ModelProto:
    """Every input is a row; `more` are initializers by name."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ROW) for name in inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in more.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def chain(count: int) -> onnx.ModelProto:
    ops = ("Neg", "Relu", "Add", "Sigmoid")
    nodes = [
        helper.make_node(op, [f"t{i}", "c"] if op == "Add" else [f"t{i}"], [f"t{i + 1}"])
        for i, op in enumerate(ops[i % 4] for i in range(count))
    ]
    return model(nodes, ["t0"], [f"t{count}"], c=np.arange(8, dtype=np.float32))


def many_inputs(count: int) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(count)]
    return model([helper.make_node("Concat", names, ["y"], axis=0)], names, ["y"])


def many_outputs(count: int) -> onnx.ModelProto:
    """Each with a scalar of its own, so that no two kernels are alike."""
    scalars = {f"c{i}": np.float32(i) for i in range(count)}
    nodes = [helper.make_node("Add", ["x", f"c{i}"], [f"y{i}"]) for i in range(count)]
    return model(nodes, ["x"], [f"y{i}" for i in range(count)], **scalars)


@pytest.mark.parametrize(("make", "count"), [(chain, 512), (many_inputs, 200), (many_outputs, 200)])
def test_checking_is_linear(make: Callable[[int], onnx.ModelProto], count: int) -> None:
    def checking(size: int) -> Callable[[], object]:
        made = make(size)
        return lambda: examine(made, CompileOptions(TINY))

    checking(8)()
    assert_linear(checking, count)


def seconds(work: Callable[[], object]) -> float:
    """CPU time of `work`, the least of three."""
    found = []
    for _ in range(3):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def assert_not_quadratic(work: Callable[[int], Callable[[], object]], size: int) -> None:
    """For work inside built-in set operations, which calls do not tell: four times the size takes four times as long,
    not sixteen times."""
    once, four_times = seconds(work(size)), seconds(work(4 * size))
    assert four_times < 9 * once


def test_ordering_is_linear() -> None:
    def ordering(count: int) -> Callable[[], object]:
        nodes = list(chain(count).graph.node)
        return lambda: ordered(nodes, {"t0", "c"}, [f"t{count}"], "m")

    assert_not_quadratic(ordering, 3000)


def test_finding_a_cycle_is_linear() -> None:
    def finding(count: int) -> Callable[[], object]:
        nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{(i + 1) % count}"]) for i in range(count)]

        def refused() -> None:
            with pytest.raises(ModelError, match="cycle"):
                ordered(nodes, set(), ["t0"], "m")

        return refused

    assert_not_quadratic(finding, 3000)


def test_verifying_many_inputs_is_linear() -> None:
    def verifying(count: int) -> Callable[[], object]:
        params = tuple(Value(f"x{i}", TensorType(DType.F32, (1,))) for i in range(count))
        names = tuple((p.name, p.name) for p in params)
        return lambda: verify_module(Module(TINY.name, TINY.hash, (), names, names, Graph("g", params, params, ())))

    assert_not_quadratic(verifying, 2000)

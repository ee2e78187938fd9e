"""Models of thousands of nodes, inputs and outputs take effort in proportion to their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.commands.check import _placed
from ppuc.compiler.driver import examine
from ppuc.compiler.frontend.offload.load_hosted import load_hosted
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.survey import survey
from ppuc.compiler.host.partition import partition
from ppuc.compiler.options import CompileOptions
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from ppuc.ir.verify import verify_module
from ppuc.targets.description import load_target
from tests.support.effort import Name, assert_linear, calls_of

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


def residuals(count: int) -> onnx.ModelProto:
    """Every op but the first reads the results of the two before it."""
    nodes = [helper.make_node("Add", [f"t{i}", f"t{max(i - 1, 0)}"], [f"t{i + 1}"]) for i in range(count)]
    return model(nodes, ["t0"], [f"t{count}"])


def scaled(count: int) -> onnx.ModelProto:
    """Every op reads a number that another kernel computes."""
    nodes = [helper.make_node("Mul", [f"t{i}", "s"], [f"t{i + 1}"]) for i in range(count)]
    return model(
        [helper.make_node("MatMul", ["t0", "w"], ["s"]), *nodes], ["t0"], [f"t{count}"], w=np.ones((8, 1), "f")
    )


def normalised(count: int) -> onnx.ModelProto:
    """Reductions, each of which is subtracted from what it reduces."""
    pairs = [
        (
            helper.make_node("ReduceMax", [f"t{i}"], [f"m{i}"]),
            helper.make_node("Sub", [f"t{i}", f"m{i}"], [f"t{i + 1}"]),
        )
        for i in range(count // 2)
    ]
    return model([node for pair in pairs for node in pair], ["t0"], [f"t{count // 2}"])


def running_sums(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("CumSum", [f"t{i}", "axis"], [f"t{i + 1}"]) for i in range(count)]
    return model(nodes, ["t0"], [f"t{count}"], axis=np.array(1))


def positions(count: int) -> onnx.ModelProto:
    """Positions of largest elements, each added to what it is found in."""
    steps = [
        (
            helper.make_node("ArgMax", [f"t{i}"], [f"i{i}"], axis=1),
            helper.make_node("Cast", [f"i{i}"], [f"f{i}"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"t{i}", f"f{i}"], [f"t{i + 1}"]),
        )
        for i in range(count // 3)
    ]
    return model([node for step in steps for node in step], ["t0"], [f"t{count // 3}"])


def views(count: int) -> onnx.ModelProto:
    """Reshapes between transposes, of which no two are a strided view."""
    nodes = [
        helper.make_node("Reshape", [f"t{i}", "as"], [f"t{i + 1}"])
        if i % 2
        else helper.make_node("Transpose", [f"t{i}"], [f"t{i + 1}"], perm=[1, 0])
        for i in range(count)
    ]
    first = helper.make_node("Reshape", ["x", "as"], ["t0"])
    return model([first, *nodes], ["x"], [f"t{count}"], **{"as": np.array([2, 4])})


def many_inputs(count: int) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(count)]
    return model([helper.make_node("Concat", names, ["y"], axis=0)], names, ["y"])


def many_outputs(count: int) -> onnx.ModelProto:
    """Each with a scalar of its own, so that no two kernels are alike."""
    scalars = {f"c{i}": np.float32(i) for i in range(count)}
    nodes = [helper.make_node("Add", ["x", f"c{i}"], [f"y{i}"]) for i in range(count)]
    return model(nodes, ["x"], [f"y{i}" for i in range(count)], **scalars)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (chain, 512),
        (residuals, 512),
        (scaled, 512),
        (normalised, 512),
        (views, 100),
        (many_inputs, 200),
        (many_outputs, 200),
    ],
)
def test_checking_is_linear(make: Callable[[int], onnx.ModelProto], count: int) -> None:
    def checking(size: int) -> Callable[[], object]:
        made = make(size)
        return lambda: examine(made, CompileOptions(TINY))

    checking(8)()
    assert_linear(checking, count)


def host_steps(count: int) -> onnx.ModelProto:
    """Nodes of the host: their sizes depend on how many numbers are not zero."""
    first = helper.make_node("NonZero", ["t0"], ["n"])
    nodes = [helper.make_node("Relu", [f"t{i}" if i else "f"], [f"t{i + 1}"]) for i in range(count)]
    cast = helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT)
    return model([first, cast, *nodes], ["t0"], [f"t{count}"])


def host_steps_on_a_chain(count: int) -> onnx.ModelProto:
    """A chain on the PPU, and a node of the host for each of its results."""
    chain = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    nodes = [helper.make_node("NonZero", [f"t{i + 1}"], [f"n{i}"]) for i in range(count)]
    return model([*chain, *nodes], ["t0"], [f"n{i}" for i in range(count)])


def alternating(count: int) -> onnx.ModelProto:
    """The PPU scales by how many numbers the host finds that are not zero."""
    steps = [
        (
            helper.make_node("NonZero", [f"t{i}"], [f"n{i}"]),
            helper.make_node("Shape", [f"n{i}"], [f"s{i}"]),
            helper.make_node("Cast", [f"s{i}"], [f"f{i}"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"f{i}"], [f"k{i}"], keepdims=0),
            helper.make_node("Mul", [f"t{i}", f"k{i}"], [f"t{i + 1}"]),
        )
        for i in range(count)
    ]
    return model([node for step in steps for node in step], ["t0"], [f"t{count}"])


class Watched(list[Op]):
    """Ops whose every visit by a loop is a call, which `calls_of` counts."""

    def __iter__(self) -> Iterator[Op]:
        yield from super().__iter__()


def test_asking_for_values_does_not_visit_all_ops_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Builder.__init__

    def watched(self: Builder, taken: Iterable[str] = (), loc: tuple[str, ...] = ()) -> None:
        made(self, taken, loc)
        self.ops = Watched()

    monkeypatch.setattr(Builder, "__init__", watched)

    def loading(count: int) -> Callable[[], object]:
        chain = host_steps_on_a_chain(count)
        return lambda: load_hosted(chain)

    loading(8)()
    assert_linear(loading, 200)


def test_dividing_a_model_among_ppu_and_host_is_linear() -> None:
    def dividing(count: int) -> Callable[[], object]:
        hosted = load_hosted(alternating(count))
        assert len(partition(hosted)) == 2 * count
        return lambda: partition(hosted)

    dividing(8)()
    assert_linear(dividing, 60)


def test_naming_where_nodes_run_is_linear() -> None:
    def placing(count: int) -> Callable[[], object]:
        made = host_steps(count)
        nodes, examination = survey(made).nodes, examine(made, CompileOptions(TINY))
        assert len(examination.host) > count
        return lambda: _placed(nodes, examination)

    assert_linear(placing, 100)


@pytest.mark.parametrize(
    "make", [residuals, scaled, normalised, running_sums, positions], ids=lambda make: make.__name__
)
def test_ops_that_are_alike_join_a_kernel_with_few_checks(make: Callable[[int], onnx.ModelProto]) -> None:
    """An op costs no more in a group of 200 than in one of 50."""
    models = {size: make(size) for size in (8, 50, 200)}
    examine(models[8], CompileOptions(TINY))
    work = {size: calls_of(partial(examine, made, CompileOptions(TINY))) for size, made in models.items()}
    assert (work[200] - work[8]) / 192 < 1.5 * (work[50] - work[8]) / 42


def test_a_chain_whose_every_result_is_an_output() -> None:
    """No kernel is searched for more tensors than a unit has rings: that took a minute for a thousand outputs."""
    made = chain(600)
    del made.graph.output[:]
    made.graph.output.extend(helper.make_empty_tensor_value_info(f"t{i + 1}") for i in range(600))
    assert not examine(made, CompileOptions(TINY)).problems
    assert calls_of(partial(examine, made, CompileOptions(TINY))) < 3_000_000


def test_a_chain_of_views_is_not_followed_recursively() -> None:
    assert not examine(views(1500), CompileOptions(TINY)).problems


def seconds(work: Callable[[], object]) -> float:
    """CPU time of `work`, the least of five."""
    found = []
    for _ in range(5):
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
        params = tuple(Value(Name(f"x{i}"), TensorType(DType.F32, (1,))) for i in range(count))
        names = tuple((p.name, p.name) for p in params)
        return lambda: verify_module(Module(TINY.name, TINY.hash, (), names, names, Graph("g", params, params, ())))

    assert_linear(verifying, 200)

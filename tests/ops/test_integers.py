"""Integers narrower than the engines' own wrap around inside a kernel as they do between kernels, and those that are
wider than the engines' are refused where it matters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import ppuc
from ppuc.ir.errors import ModelError
from tests.support.against_onnxruntime import onnx_node

NARROW = (np.int8, np.uint8, np.int16, np.uint16, np.uint32)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], kernels: int) -> np.ndarray:
    """The only output, computed by as many kernels."""
    program = ppuc.compile(model, "ppu-tiny", host=False)
    assert sum(len(s.kernels) for s in program.artifact.program.segments) == kernels
    (result,) = program.run(feeds).outputs.values()
    return result


def any_numbers(dtype: type, seed: int, count: int = 50) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, count, dtype, endpoint=True)


def chain(dtype: type, *nodes: onnx.NodeProto, count: int = 50) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    infos = [helper.make_tensor_value_info(name, kind, [count]) for name in ("a", "b")]
    seven = numpy_helper.from_array(np.array([7], dtype), "seven")
    graph = helper.make_graph(list(nodes), "g", infos, [helper.make_empty_tensor_value_info("y")], [seven])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("last", ["Div", "Less", "Max", "Mod"])
def test_a_chain_of_ops_wraps_at_each(dtype: type, last: str) -> None:
    nodes = (("Mul", "a", "b", "p"), ("Add", "p", "a", "s"), ("Sub", "s", "seven", "d"), (last, "d", "seven", "y"))
    model = chain(dtype, *(helper.make_node(op, [x, y], [z]) for op, x, y, z in nodes))
    a, b = any_numbers(dtype, 1), any_numbers(dtype, 2)
    seven = np.array([7], dtype)
    d = (a * b + a - seven).astype(dtype)
    truncated = np.trunc(d.astype(np.float64) / 7).astype(dtype)
    want = {"Div": truncated, "Less": d < seven, "Max": np.maximum(d, seven), "Mod": np.mod(d, seven)}[last]
    np.testing.assert_array_equal(run(model, {"a": a, "b": b}, kernels=1), want)


@pytest.mark.parametrize(("source", "to"), [(np.int8, np.uint8), (np.uint8, np.int8), (np.int16, np.uint16)])
def test_a_cast_to_the_other_sign_wraps(source: type, to: type) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(to))
    nodes = [
        helper.make_node("Cast", ["a"], ["c"], to=kind),
        helper.make_node("Cast", ["b"], ["d"], to=kind),
        helper.make_node("Less", ["c", "d"], ["y"]),
    ]
    a, b = any_numbers(source, 1), any_numbers(source, 2)
    got = run(chain(source, *nodes), {"a": a, "b": b}, kernels=1)
    np.testing.assert_array_equal(got, a.astype(to) < b.astype(to))


def test_a_long_sum_of_u32_wraps() -> None:
    """Along an axis that no tile holds, with an op behind the sum."""
    count = 40_000
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["p"]),
        helper.make_node("ReduceSum", ["p"], ["s"], keepdims=1),
        helper.make_node("Mod", ["s", "seven"], ["y"]),
    ]
    a, b = any_numbers(np.uint32, 1, count), any_numbers(np.uint32, 2, count)
    got = run(chain(np.uint32, *nodes, count=count), {"a": a, "b": b}, kernels=1)
    np.testing.assert_array_equal(got, np.sum(a * b, keepdims=True, dtype=np.uint32) % 7)


@pytest.mark.parametrize("op", ["Abs", "Max", "Div", "Greater", "ReduceMax", "ArgMax"])
def test_u64_is_refused_where_its_upper_half_counts(op: str) -> None:
    x = np.array([[2**64 - 1, 5], [2**63, 7]], np.uint64)
    model, _ = onnx_node(op, *([x, x] if op in ("Max", "Div", "Greater") else [x]))
    with pytest.raises(ModelError, match="unsigned 64-bit integers"):
        ppuc.compile(model, "ppu-tiny", host=False)


@pytest.mark.parametrize("op", ["Add", "Equal", "Mul", "Concat"])
def test_u64_runs_where_it_is_as_good_as_i64(op: str) -> None:
    x, y = np.array([[2**64 - 1, 5]], np.uint64), np.array([[2**63, 5]], np.uint64)
    model, feeds = onnx_node(op, x, y, **({"axis": 0} if op == "Concat" else {}))
    want = {"Add": x + y, "Equal": x == y, "Mul": x * y, "Concat": np.concatenate([x, y])}[op]
    np.testing.assert_array_equal(run(model, feeds, kernels=1), want)


def test_sampling_in_double_precision_is_refused() -> None:
    grid = np.zeros((1, 2, 2, 2), np.float32)
    model, _ = onnx_node("GridSample", np.ones((1, 1, 3, 3)), grid, opset=16)
    with pytest.raises(ModelError, match="double precision"):
        ppuc.compile(model, "ppu-tiny", host=False)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceSum", "ReduceLogSumExp"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reducing_a_scalar_leaves_it(op: str, keepdims: int) -> None:
    model, feeds = onnx_node(op, np.float32(2.5), keepdims=keepdims)
    assert run(model, feeds, kernels=1) == np.float32(2.5)


@pytest.mark.parametrize("number", [0.0, 3.0])
def test_nonzero_of_a_scalar_has_no_rows(number: float) -> None:
    model, feeds = onnx_node("NonZero", np.float32(number), constant=(0,))
    assert run(model, feeds, kernels=1).shape == (0, int(number != 0))

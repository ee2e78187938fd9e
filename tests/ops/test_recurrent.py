"""RNN, GRU and LSTM: record and decomposition against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.gates import GATES
from ppuc.ir.ops.recurrent import LstmAttrs, RnnAttrs
from ppuc.ir.types import parse_type
from tests.support.against_onnxruntime import both, onnx_node
from tests.support.single_node import without_composites

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 6
GATE_COUNT = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEP = float(np.finfo(np.float32).eps)
TOLERANCE = 4 * STEPS * (INPUTS + HIDDEN) * STEP
"""A state passes through T steps, each a sum of I + H products of numbers of about 1; four times, because sigmoid and
tanh of ONNX Runtime are approximations of a few units in the last place."""


def inputs(op: str, directions: int, *, state: bool = True, bias: bool = True, seed: int = 0) -> list[Any]:
    """X, W, R, B, no lengths, and initial states."""
    rng = np.random.default_rng([seed, directions])
    rows = GATE_COUNT[op] * HIDDEN

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    given: list[Any] = [uniform(STEPS, BATCH, INPUTS), uniform(directions, rows, INPUTS)]
    given += [uniform(directions, rows, HIDDEN), uniform(directions, 2 * rows) if bias else None, None]
    if state:
        given += [uniform(directions, BATCH, HIDDEN) for _ in range(2 if op == "LSTM" else 1)]
    return given


def case(op: str, given: list[Any], **attributes: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    outputs = 3 if op == "LSTM" else 2
    weights = tuple(i for i in (1, 2, 3, 7) if i < len(given) and given[i] is not None)
    return onnx_node(op, *given, constant=weights, outputs=outputs, hidden_size=HIDDEN, **attributes)


def results(graph: Graph, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    named = {value.name: feeds[name] for name, value in load_model(model).inputs}
    return list(run_graph(graph, named).values())


def check(op: str, given: list[Any], **attributes: Any) -> None:
    model, feeds = case(op, given, **attributes)
    _, theirs = both(model, feeds)
    graph = load_model(model).graph
    for form in (graph, without_composites(graph)):
        for got, expected in zip(results(form, model, feeds), theirs, strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("op", GATE_COUNT)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bare", [False, True])
def test_directions(op: str, direction: str, bare: bool) -> None:
    given = inputs(op, 1 + (direction == "bidirectional"), state=not bare, bias=not bare)
    check(op, given, direction=direction)


@pytest.mark.parametrize("op", GATE_COUNT)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("known", [False, True])
def test_lengths(op: str, direction: str, known: bool) -> None:
    given = inputs(op, 1 + (direction == "bidirectional"))
    given[4] = np.array([5, 2, 1], np.int32)
    outputs = 3 if op == "LSTM" else 2
    constant = (1, 2, 3, 4) if known else (1, 2, 3)
    model, feeds = onnx_node(op, *given, constant=constant, outputs=outputs, hidden_size=HIDDEN, direction=direction)
    ours, theirs = both(model, feeds)
    split = results(without_composites(load_model(model).graph), model, feeds)
    for got, parts, expected in zip(ours, split, theirs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_allclose(parts, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_full_lengths_cost_nothing() -> None:
    given = inputs("LSTM", 1)
    given[4] = np.full(BATCH, STEPS, np.int32)
    model, _ = onnx_node("LSTM", *given, constant=(1, 2, 3, 4), outputs=3, hidden_size=HIDDEN)
    (op,) = (op for op in load_model(model).graph.ops if op.name == "lstm")
    assert isinstance(op.attrs, LstmAttrs)
    assert not op.attrs.lengths


@pytest.mark.parametrize("op", GATE_COUNT)
def test_clip(op: str) -> None:
    check(op, inputs(op, 1), clip=0.4)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_linear_before_reset(direction: str) -> None:
    check("GRU", inputs("GRU", 1 + (direction == "bidirectional")), linear_before_reset=1, direction=direction)


def test_peepholes() -> None:
    given = inputs("LSTM", 2)
    given.append(np.random.default_rng(4).uniform(-1, 1, (2, 3 * HIDDEN)).astype(np.float32))
    check("LSTM", given, direction="bidirectional")


@pytest.mark.parametrize("name", sorted(GATES))
def test_activations(name: str) -> None:
    """As the function of a plain RNN; unbounded ones are kept small by the weights."""
    onnx_name = {n.lower(): n for n in ("LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid")}.get(name)
    gate = GATES[name]
    given = inputs("RNN", 1)
    given[2] = given[2] / HIDDEN
    parameters: dict[str, Any] = {} if gate.alpha is None else {"activation_alpha": [0.3]}
    if gate.beta is not None:
        parameters["activation_beta"] = [0.6]
    check("RNN", given, activations=[onnx_name or name.capitalize()], **parameters)


def test_activations_take_their_own_parameters() -> None:
    """Sigmoid has none, so the first alpha is the second function's."""
    names = ["Sigmoid", "LeakyRelu", "HardSigmoid"]
    check("LSTM", inputs("LSTM", 1), activations=names, activation_alpha=[0.1, 0.3], activation_beta=[0.4])


def test_input_forget() -> None:
    """f = 1 - i: the weights of f do not matter, and with i = 1 (a large bias) the old cell is forgotten."""
    given = inputs("LSTM", 1)
    plain = load_model(case("LSTM", given, input_forget=1)[0]).graph
    other = list(given)
    other[1], other[2] = other[1].copy(), other[2].copy()
    other[1][:, 2 * HIDDEN : 3 * HIDDEN] = 7
    model, feeds = case("LSTM", other, input_forget=1)
    for a, b in zip(results(plain, *case("LSTM", given)), results(load_model(model).graph, model, feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    check("LSTM", given, input_forget=1)


@pytest.mark.parametrize("op", GATE_COUNT)
def test_batch_first(op: str) -> None:
    """ONNX Runtime does not run layout 1 on CPU; transposing by hand is the yardstick."""
    given = inputs(op, 2)
    model, feeds = case(op, given, direction="bidirectional")
    y, *states = results(load_model(model).graph, model, feeds)
    swapped = [given[0].swapaxes(0, 1), *given[1:5], *(s.swapaxes(0, 1) for s in given[5:])]
    model, feeds = case(op, [None if a is None else np.ascontiguousarray(a) for a in swapped], layout=1,
                        direction="bidirectional")  # fmt: skip
    got, *last = results(load_model(model).graph, model, feeds)
    np.testing.assert_array_equal(got, y.transpose(2, 0, 1, 3))
    for a, b in zip(last, states, strict=True):
        np.testing.assert_array_equal(a, b.swapaxes(0, 1))


def test_narrow_floats_are_rounded_once() -> None:
    given = [None if a is None else a.astype(np.float16) for a in inputs("LSTM", 1)]
    model, feeds = case("LSTM", given)
    graph = load_model(model).graph
    step = float(ml_dtypes.finfo(np.float16).eps)  # type: ignore[no-untyped-call]
    for got, parts in zip(results(graph, model, feeds), results(without_composites(graph), model, feeds), strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float32), parts.astype(np.float32), rtol=step, atol=step)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"direction": "sideways"}, "unknown direction"),
        ({"activations": ["Sigmoid"]}, "activations needs a function for each gate and direction"),
        ({"activations": ["Sigmoid", "Tanh", "Wave"]}, "unknown activation"),
    ],
)
def test_a_wrong_node_is_explained(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(case("LSTM", inputs("LSTM", 1), **attributes)[0])


def test_wrong_operands_are_explained() -> None:
    attrs = RnnAttrs(("tanh",), (0.0,), (0.0,))
    types = ["f32[2, 1, 3]", "f32[4, 3]", "f32[4, 4]", "f32[7]", "f32[1, 4]"]
    with pytest.raises(ValueError, match=r"should be f32\[8\] of floats \(got f32\[7\]\)"):
        OPS["rnn"].infer(attrs, [parse_type(t) for t in types])

"""Models that amplify the rounding of what they compute in between."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.validation.conditioning import sensitivities
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.roundings import expanded
from ppuc.ir.interpret import run_graph
from tests.support.onnx_text import model_of

U32 = 2.0**-24


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rows(*numbers: float) -> np.ndarray:
    """A row of 50 equal elements for each of `numbers`."""
    return np.repeat(np.array(numbers, np.float32)[:, None], 50, 1)


def layer_norm() -> onnx.ModelProto:
    text = "m (float[4, 50] x) => (float[4, 50] y) { y = LayerNormalization(x, g, b) }"
    return model_of(text, {"g": draws(50), "b": draws(50, seed=1)})


def instance_norm() -> onnx.ModelProto:
    text = "m (float[2, 3, 1, 1] x) => (float[2, 3, 1, 1] y) { y = InstanceNormalization(x, g, b) }"
    return model_of(text, {"g": draws(3), "b": draws(3, seed=1)})


def difference_of_squares() -> onnx.ModelProto:
    """The variance as the mean of squares less the square of the mean."""
    text = """m (float[4, 50] x) => (float[4, 1] y) { q = Mul(x, x) a = ReduceMean <axes = [1]> (q)
        u = ReduceMean <axes = [1]> (x) b = Mul(u, u) y = Sub(a, b) }"""
    return model_of(text)


LEVEL = rows(0.1, 3.7, -1e3, 77.7)
CANCELLING = [
    (layer_norm(), LEVEL),
    (instance_norm(), 10 * draws(2, 3, 1, 1)),
    (difference_of_squares(), LEVEL),
]


@pytest.mark.parametrize(("model", "x"), CANCELLING, ids=["layer", "instance", "difference"])
def test_numbers_that_cancel_are_not_wrong(model: onnx.ModelProto, x: np.ndarray) -> None:
    verification = ppuc.verify(ppuc.compile(model, "ppu-tiny"), {"x": x})
    assert verification.verdict in ("ok", "unproven"), verification.outputs[0].reason


def test_rounding_of_a_mean_shows_although_no_change_of_the_inputs_does() -> None:
    """The only element less its mean is zero whatever it is; the mean errs by u |x|, divided by the root of epsilon."""
    graph, x = load_model(instance_norm()).graph, 10 * draws(2, 3, 1, 1)
    largest = sensitivities(graph, {"x": x}, U32)[graph.results[0].name].largest * U32
    scale = np.abs(x * draws(3)[:, None, None]).max() / np.sqrt(1e-5) * U32
    assert 0.1 * scale < largest < 10 * scale


def test_an_error_beyond_what_rounding_makes_is_wrong() -> None:
    """Three rows that vary and one that does not: rounding does not explain an error of a hundredth."""
    model, x = layer_norm(), draws(4, 50, seed=2)
    x[0] = 77.7
    graph, want = load_model(model).graph, Oracle(model).run({"x": x})["y"]
    judge, name = Judge(graph, "model", {"x": x}), graph.results[0].name
    assert judge.compare("y", name, want, want).verdict == "ok"
    assert judge.compare("y", name, want * np.float32(1.01), want).verdict == "wrong"


def test_expanded_composites_keep_names_and_values() -> None:
    text = "m (float[4, 50] x) => (float[4, 50] y) { s = LogSoftmax(x) n = LayerNormalization(s, g) y = Softmax(n) }"
    graph, x = load_model(model_of(text, {"g": draws(50)})).graph, draws(4, 50)
    whole, values, parts = expanded(graph), dict[str, np.ndarray](), dict[str, np.ndarray]()
    run_graph(graph, {"x": x}, lambda op, found: values.update({op.results[0].name: found[0]}))
    run_graph(whole.graph, {"x": x}, lambda op, found: parts.update({op.results[0].name: found[0]}))
    again = {name: parts[value] for value, names in whole.names.items() for name in names if value in parts}
    assert not {op.name for op in whole.graph.ops} & {"log_softmax", "layer_norm", "softmax"}
    assert again.keys() >= values.keys()
    for name, array in values.items():
        np.testing.assert_allclose(again[name], array, rtol=1e-4, atol=1e-6)

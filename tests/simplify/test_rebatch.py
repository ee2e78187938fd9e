"""Models for another batch size: every sample as before, whatever fixed the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ppuc.compiler.cli import cli
from ppuc.compiler.simplify.batch_axis import Place, reshaped
from ppuc.compiler.simplify.rebatch import rebatch
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import ModelError, UsageError
from tests.support.onnx_text import model_of

RNG = np.random.default_rng(8)
W = RNG.standard_normal((12, 12)).astype(np.float32)
STATE = np.zeros((1, 1, 3), np.float32)
GATES = RNG.standard_normal((1, 12, 4)).astype(np.float32)
AGAIN = RNG.standard_normal((1, 12, 3)).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


HEADS = """g (float[1, 5, 12] x) => (float[1, 5, 12] y) {
    q = MatMul(x, W)
    h = Reshape(q, split)
    t = Transpose<perm = [0, 2, 1, 3]>(h)
    m = Reshape(t, merged)
    s = Softmax<axis = -1>(m)
    b = Reshape(s, apart)
    u = Transpose<perm = [0, 2, 1, 3]>(b)
    y = Reshape(u, whole)
}"""
CASES: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "heads merged with the batch": (
        HEADS,
        {
            "W": W,
            "split": ints(1, 5, 3, 4),
            "merged": ints(3, 5, 4),
            "apart": ints(1, 3, 5, 4),
            "whole": ints(1, 5, 12),
        },
    ),
    "a class token": (
        "g (float[1, 4, 6] x) => (float[1, 5, 6] y) { c = Expand(token, shape) y = Concat<axis = 1>(c, x) }",
        {"token": RNG.standard_normal((1, 1, 6)).astype(np.float32), "shape": ints(1, 1, 6)},
    ),
    "a batch expanded": (
        "g (float[1, 1, 6] x) => (float[1, 4, 6] y) { y = Expand(x, shape) }",
        {"shape": ints(1, 4, 6)},
    ),
    "sizes of a resize": (
        'g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) { y = Resize<mode = "nearest">(x, , , sizes) }',
        {"sizes": ints(1, 2, 6, 6)},
    ),
    "states of an LSTM": (
        "g (float[5, 1, 4] x) => (float[5, 1, 1, 3] y, float[1, 1, 3] h) "
        "{ y, h, c = LSTM<hidden_size = 3>(x, G, R, , , H, H) }",
        {"G": GATES, "R": AGAIN, "H": STATE},
    ),
    "an end of the batch": (
        "g (float[1, 6] x) => (float[1, 4] y) { y = Slice(x, starts, ends, axes) }",
        {"starts": ints(0, 2), "ends": ints(1, 6), "axes": ints(0, 1)},
    ),
    "shape arithmetic": (
        "g (float[1, 2, 6] x) => (float[2, 6] y) "
        "{ s = Shape(x) n = Gather(s, zero) t = Mul(n, two) u = Concat<axis = 0>(t, six) y = Reshape(x, u) }",
        {"zero": ints(0), "two": ints(2), "six": ints(6)},
    ),
    "numbers of gathered rows": (
        "g (float[1, 4, 6] x) => (float[1, 2, 6] y) { r = Reshape(x, rows) y = Gather(r, picks) }",
        {"rows": ints(4, 6), "picks": np.array([[3, 1]], np.int64)},
    ),
    "computed numbers of rows": (
        "g (float[1, 4, 6] x, int64[1] at) => (float[1, 6] y) { r = Reshape(x, rows) y = Gather(r, at) }",
        {"rows": ints(4, 6)},
    ),
    "windows with a mask each": (
        "g (float[1, 4, 6] x) => (float[1, 4, 6] y) "
        "{ w = Reshape(x, windows) m = Add(w, mask) s = Softmax<axis = -1>(m) y = Reshape(s, back) }",
        {
            "windows": ints(4, 2, 3),
            "mask": RNG.standard_normal((4, 2, 3)).astype(np.float32),
            "back": ints(1, 4, 6),
        },
    ),
    "a batch of two": (
        "g (float[2, 6] x) => (float[2, 6] y) { a = Add(x, twice) y = Relu(a) }",
        {"twice": np.repeat(RNG.standard_normal((1, 6)).astype(np.float32), 2, axis=0)},
    ),
    "batches side by side": (
        "g (float[1, 6] x) => (float[2, 6] y) { a = Relu(x) y = Concat<axis = 0>(x, a) }",
        {},
    ),
}


@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("name", CASES)
def test_every_sample_is_as_before(name: str, batch: int) -> None:
    text, constants = CASES[name]
    inputs = {"x": 1} if "LSTM" in text else None
    result = rebatch(model_of(text, constants), batch, inputs)
    assert result.ok
    assert result.comparisons
    for info in result.model.graph.input:
        axis = result.inputs[info.name]
        assert info.type.tensor_type.shape.dim[axis].dim_value == batch
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("name", [n for n in CASES if n != "computed numbers of rows"])  # it has starts by then
def test_and_back(name: str) -> None:
    text, constants = CASES[name]
    inputs = {"x": 1} if "LSTM" in text else None
    result = rebatch(model_of(text, constants), 3, inputs)
    again = rebatch(result.model, result.before, inputs)
    assert again.ok
    assert [o.type for o in again.model.graph.output] == [o.type for o in model_of(text, constants).graph.output]


REFUSED = {
    "a mean of all samples": (
        "g (float[1, 6] x) => (float[1, 6] y) { y = ReduceMean<axes = [0]>(x) }",
        {},
        "'ReduceMean_0' (ReduceMean): does not keep the samples of a batch apart",
    ),
    "one sample": (
        "g (float[1, 6] x) => (float[6] y) { y = Gather(x, i) }",
        {"i": np.array(0, np.int64)},
        "picks samples of a batch by constant numbers",
    ),
    "no axis left": ("g (float[1, 6] x) => (float[6] y) { y = Squeeze<axes = [0]>(x) }", {}, "removes axis 0"),
    "samples of its own": (
        "g (float[1, 6] x) => (float[2, 6] y) { y = Concat<axis = 0>(x, c) }",
        {"c": np.ones((1, 6), np.float32)},
        "concatenates a batch with samples of its own",
    ),
    "constants of each sample": (
        "g (float[2, 6] x) => (float[2, 6] y) { y = Add(x, c) }",
        {"c": np.arange(12, dtype=np.float32).reshape(2, 6)},
        "tells the samples of a batch apart",
    ),
    "sizes of values": (
        "g (float[1, 6] x) => (int64[2, n] y) { y = NonZero(x) }",
        {},
        "sizes depend on the elements",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rebatched_is_said_with_the_node(name: str) -> None:
    text, constants, message = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        rebatch(model_of(text, constants, opset=11), 3)
    assert message in str(caught.value)


def test_a_sum_over_samples_is_caught_by_the_check() -> None:
    """Its result has an axis that grows like a batch, so only its values tell."""
    model = model_of("g (float[1, 6] x) => (float[1, 6] y) { y = CumSum(x, axis) }", {"axis": np.array(0, np.int64)})
    assert not rebatch(model, 3).ok


def test_inputs_without_samples_stay() -> None:
    model = model_of("g (float[1, 6] x, float[1] scale) => (float[1, 6] y) { y = Mul(x, scale) }")
    with pytest.raises(ModelError):
        rebatch(model, 3)
    result = rebatch(model, 3, {"x": 0})
    assert result.ok
    assert [d.dim_value for d in result.model.graph.input[1].type.tensor_type.shape.dim] == [1]


@pytest.mark.parametrize(
    ("inputs", "batch", "message"),
    [
        ({"y": 0}, 3, "has no input 'y'"),
        ({"x": 2}, 3, "'x' has no axis 2"),
        ({"x": 0, "z": 0}, 3, "batches of different sizes"),
        (None, 1, "the batch is 1 already"),
    ],
)
def test_wrong_arguments(inputs: dict[str, int] | None, batch: int, message: str) -> None:
    model = model_of("g (float[1, 6] x, float[2, 6] z) => (float[2, 6] y) { y = Add(x, z) }")
    with pytest.raises(UsageError, match=message):
        rebatch(model, batch, inputs)


def test_an_open_dimension_is_named(tmp_path: Path) -> None:
    onnx.save(model_of("g (float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }"), tmp_path / "m.onnx")
    arguments = ["rebatch", str(tmp_path / "m.onnx"), "--batch", "8", "-o", str(tmp_path / "o.onnx")]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 2
    assert "input 'x': has an open dimension 'N'" in shown.stderr
    assert not (tmp_path / "o.onnx").exists()
    assert CliRunner().invoke(cli, [*arguments, "--dim", "N=1"]).exit_code == 0


def test_the_command(tmp_path: Path) -> None:
    text, constants = CASES["heads merged with the batch"]
    onnx.save(model_of(text, constants), tmp_path / "m.onnx")
    arguments = ["rebatch", str(tmp_path / "m.onnx"), "-b", "4", "-o", str(tmp_path / "o.onnx")]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "batch 1 -> 4, every sample agrees with" in shown.stdout
    record: dict[str, Any] = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert record["inputs"] == {"x": 0}
    assert {c["op"] for c in record["changes"]} == {"Reshape"}
    x = RNG.standard_normal((4, 5, 12)).astype(np.float32)
    want = np.concatenate([Oracle(model_of(text, constants)).run({"x": x[i : i + 1]})["y"] for i in range(4)])
    np.testing.assert_allclose(Oracle(tmp_path / "o.onnx").run({"x": x})["y"], want, rtol=1e-5, atol=1e-6)
    missing = CliRunner().invoke(cli, [*arguments, "--input", "x:"])
    assert missing.exit_code == 2
    assert "the axis is missing" in missing.stderr


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), st.data())
def test_a_reshape_keeps_samples_together(shape: list[int], batch: int, data: st.DataObject) -> None:
    """The samples of a reshaped array are the reshaped samples, wherever one axis holds them."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    place = Place(axis, data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)))
    old = place.resized(tuple(shape), batch)
    total = int(np.prod(old))
    sizes = [n for n in range(1, total + 1) if total % n == 0]
    first = data.draw(st.sampled_from(sizes))
    new = (first, total // first)
    found = reshaped(place, old, new, batch)
    if found is None:
        return
    array = np.arange(total).reshape(old)
    before, after = place.samples(array, batch), found.samples(array.reshape(new), batch)
    np.testing.assert_array_equal(before.reshape(batch, -1), after.reshape(batch, -1))
    np.testing.assert_array_equal(found.joined(after), array.reshape(new))

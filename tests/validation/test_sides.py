"""Steps of a model, such as roundings and comparisons: numbers near an edge may fall on either side, others not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from tests.support.onnx_text import model_of

NEAR, FAR = 2.0**-11, 0.1
"""Of products of about one in bf16, whose errors are about 2**-9."""


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def judged(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], got: np.ndarray, precision: str = "bf16") -> bool:
    """Whether `got` is accepted as the only output, where ONNX Runtime computes something else."""
    imported = load_model(model)
    judge = Judge(imported.graph, precision, {v.name: feeds[n] for n, v in imported.inputs})
    (name, value), want = imported.outputs[0], Oracle(model).run(feeds)
    assert not np.array_equal(got, want[name])
    return judge.compare(name, value.name, got, want[name]).ok


def product_with(last: str, dtype: str) -> onnx.ModelProto:
    """`last` gives y from the products h, and the constants c and e."""
    return model_of(f"g (float[1, 32] x) => ({dtype}[1, 1] y) {{ h = MatMul(x, w) {last} }}", {"w": draws(32, 1)})


def at(number: float) -> dict[str, np.ndarray]:
    """An input whose product with the weight is about that number."""
    w = draws(32, 1)
    return {"x": (number * w.T / np.square(w).sum()).astype(np.float32)}


STEPS = {
    "Cast": ("y = Cast<to = 6>(h)", "int32", 2.0, 1, 2),
    "Floor": ("y = Floor(h)", "float", 2.0, 1.0, 2.0),
    "Ceil": ("y = Ceil(h)", "float", 2.0, 2.0, 3.0),
    "Round": ("y = Round(h)", "float", 2.5, 2.0, 3.0),
    "Greater": ("c = Constant<value_float = 1.5>() y = Greater(h, c)", "bool", 1.5, False, True),
    "Mod": ("c = Constant<value_float = 1.5>() y = Mod<fmod = 1>(h, c)", "float", 3.0, 1.5, 0.0),
    "QuantizeLinear": (
        "s = Constant<value_float = 0.1>() z = Constant<value = int8 {0}>() y = QuantizeLinear(h, s, z)",
        *("int8", 2.05, 20, 21),
    ),
}
"""ONNX op -> its use, the type of its result, an edge, and the results below and above it."""


@pytest.mark.parametrize("op", STEPS)
def test_a_number_near_an_edge_may_fall_on_either_side(op: str) -> None:
    last, dtype, edge, below, above = STEPS[op]
    model = product_with(last, dtype)
    kind = Oracle(model).run(at(edge + FAR))["y"].dtype
    assert judged(model, at(edge - edge * NEAR), np.full((1, 1), above, kind))
    assert judged(model, at(edge + edge * NEAR), np.full((1, 1), below, kind))


@pytest.mark.parametrize("op", STEPS)
def test_a_number_far_from_every_edge_may_not(op: str) -> None:
    last, dtype, edge, below, above = STEPS[op]
    far = 0.045 if op == "QuantizeLinear" else FAR
    model = product_with(last, dtype)
    kind = Oracle(model).run(at(edge + far))["y"].dtype
    assert not judged(model, at(edge - far), np.full((1, 1), above, kind))
    assert not judged(model, at(edge + far), np.full((1, 1), below, kind))


def test_in_f32_an_edge_is_a_thousand_times_nearer() -> None:
    model = product_with("y = Cast<to = 6>(h)", "int32")
    assert not judged(model, at(2 - 2 * NEAR), np.int32([[2]]), "fp32")
    assert judged(model, at(2 - 2.0**-22), np.int32([[2]]), "fp32")


def test_no_other_integer_than_one_of_both_sides_is_right() -> None:
    assert not judged(product_with("y = Cast<to = 6>(h)", "int32"), at(2 - 2 * NEAR), np.int32([[3]]))


def test_a_large_number_may_be_any_integer_within_its_error() -> None:
    model = product_with("y = Cast<to = 6>(h)", "int32")
    assert judged(model, at(1000.5), np.int32([[1002]]))
    assert not judged(model, at(1000.5), np.int32([[1100]]))


def test_a_16_bit_number_may_be_kept_wider_than_its_format() -> None:
    """Twice the square of 0.707 is 1 - 2**-12 in f32, and rounds to 1 in f16."""
    model = model_of("g (float16[1] x) => (int32[1] y) { s = Mul(x, x) d = Add(s, s) y = Cast<to = 6>(d) }")
    assert judged(model, {"x": np.float16([0.707])}, np.int32([1]), "fp32")
    assert not judged(model, {"x": np.float16([0.700])}, np.int32([1]), "fp32")


def test_ties_of_exact_numbers_have_one_side() -> None:
    model = model_of("g (float[1] x) => (float[1] y) { y = Round(x) }")
    assert not judged(model, {"x": np.float32([2.5])}, np.float32([3]))


def test_a_zero_of_a_relu_is_no_edge() -> None:
    """The comparison is of what is exactly zero, whatever rounds before."""
    last = "r = Relu(h) b = Cast<to = 9>(r) y = Cast<to = 6>(b)"
    model = product_with(last, "int32")
    assert not judged(model, at(-1.0), np.int32([[1]]))


def test_everything_behind_a_step_has_to_be_of_one_side() -> None:
    """Each side of the edge at 2 has its own row of the table."""
    last = "i = Cast<to = 7>(h) t = Gather(table, i) y = ReduceSum<keepdims = 0>(t, axes)"
    table = draws(4, 5) * 10
    text = f"g (float[1, 32] x) => (float[1, 1] y) {{ h = MatMul(x, w) {last} }}"
    model = model_of(text, {"w": draws(32, 1), "table": table, "axes": np.array([2])})
    rows = table.sum(1, keepdims=True)
    below = at(2 - 2 * NEAR)
    assert judged(model, below, rows[2:3])
    assert not judged(model, at(1.5), rows[2:3])


def rounded(seed: int = 1) -> onnx.ModelProto:
    text = "g (float[64, 32] x) => (int32[64, 16] y) { h = MatMul(x, w) r = Round(h) y = Cast<to = 6>(r) }"
    return model_of(text, {"w": draws(32, 16, seed=seed)})


def test_of_many_integers_those_near_an_edge_may_differ_and_no_other() -> None:
    model, x = rounded(), draws(64, 32)
    h = x @ draws(32, 16, seed=1)
    from_edge = np.abs(h - np.floor(h) - 0.5)
    want = np.round(h).astype(np.int32)
    other = np.where(h > want, want + 1, want - 1).astype(np.int32)
    nearest, farthest = from_edge <= np.sort(from_edge.ravel())[4], from_edge >= np.sort(from_edge.ravel())[-2]
    assert judged(model, {"x": x}, np.where(nearest, other, want))
    assert not judged(model, {"x": x}, np.where(farthest, other, want))
    assert not judged(model, {"x": x}, np.where(nearest, want + 2 * (other - want), want))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_programs_that_choose_and_count_among_many_numbers_are_right(precision: str) -> None:
    """What is counted is stored in 16 bits, too: in parts, a count follows from numbers that were not rounded yet."""
    text = """g (float[64, 32] x) => (int64[64, 1] y, int64[64, 5] k, int64[] c) {
        h = MatMul(x, w) y = ArgMax<axis = 1>(h) v, k = TopK(h, five)
        b = Greater(h, half) i = Cast<to = 7>(b) c = ReduceSum<keepdims = 0>(i) }"""
    model = model_of(text, {"w": draws(32, 1000), "five": np.array([5]), "half": np.float32(0.5)})
    found = ppuc.verify(ppuc.compile(model, "ppu-tiny", precision), {"x": draws(64, 32, seed=1000)})
    assert found.ok, [c.reason for c in found.outputs]


def test_a_program_whose_zero_point_is_on_the_other_side_is_right() -> None:
    """DynamicQuantizeLinear rounds its zero point: that of these numbers is 100.5 but for an error of bf16."""
    text = """g (float[1, 32] x) => (uint8[1, 2] q, float s, uint8 z) {
        h = MatMul(x, w) q, s, z = DynamicQuantizeLinear(h) }"""
    x = draws(1, 32)
    first, second = draws(32, seed=1), draws(32, seed=2)
    aim = np.linalg.lstsq(np.stack([x[0]]), np.float32([[-100.5, 154.5]]), rcond=None)[0]
    w = (aim + 0 * np.stack([first, second], 1)).astype(np.float32)
    model = model_of(text, {"w": w})
    for number in np.linspace(-4e-3, 4e-3, 9):
        feeds = {"x": x * np.float32(1 + number)}
        assert ppuc.verify(ppuc.compile(model, "ppu-tiny", "bf16"), feeds).ok


def test_interpolated_integers_are_truncated_on_either_side() -> None:
    """Two thirds of the way from 0 to 6 is 4, or 3 where a third is rounded; 5 is neither."""
    resize = 'y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, , , s)'
    model = model_of(f"g (int32[1, 2] x) => (int32[1, 4] y) {{ {resize} }}", {"s": np.array([1, 4], np.int64)})
    feeds = {"x": np.array([[0, 6]], np.int32)}
    for number, right in ((3, True), (5, False)):
        assert judged(model, feeds, np.array([[0, 2, number, 6]], np.int32)) == right

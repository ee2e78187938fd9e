"""Comparison of arrays, and the tolerances that follow from formats and lengths of sums."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ppuc
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.validation.compare import MAX_SQNR_DB, compare
from ppuc.compiler.validation.expected import Allowed
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import FP32_FLOOR, UNIT_ROUNDOFF, Tolerance, exact, tolerances
from ppuc.ir.types import DType
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp, normal

LOOSE = Tolerance(1e-3, mismatch_share=0.1)


def test_equal_arrays_agree_exactly() -> None:
    a = normal(4, 5)
    result = compare("a", a, a.copy(), exact())
    assert (result.ok, result.max_abs, result.sqnr_db, result.reason) == (True, 0.0, MAX_SQNR_DB, "")
    assert math.isclose(result.cosine, 1.0)


def test_sqnr_is_that_of_the_injected_noise() -> None:
    a = normal(100, 100)
    noise = 1e-4 * np.random.default_rng(1).standard_normal(a.shape)
    result = compare("a", (a + noise).astype(np.float32), a, LOOSE)
    assert result.ok
    assert result.sqnr_db == pytest.approx(80, abs=0.2)
    assert result.max_abs == pytest.approx(np.abs(noise).max(), rel=1e-2)


def test_one_wrong_element_of_a_large_tensor_fails_although_the_rms_is_small() -> None:
    a = normal(1000, 1000)
    b = a.copy()
    b[3, 4] = a[3, 4] + 0.1
    result = compare("a", b, a, LOOSE)
    assert result.rms_rel < LOOSE.relative
    assert not result.ok
    assert result.reason.startswith("element [3, 4] is ")
    assert result.worst == (3, 4)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_agree_only_in_place(special: float) -> None:
    a = normal(6)
    b = a.copy()
    b[2] = special
    assert not compare("a", b, a, Tolerance(10.0)).ok
    assert not compare("a", a, b, Tolerance(10.0)).ok
    assert compare("a", b, b.copy(), exact()).ok
    assert not compare("a", np.where(np.isinf(b), -b, a) if np.isinf(special) else a, b, Tolerance(10.0)).ok


def test_overflow_to_the_other_infinity_is_reported() -> None:
    result = compare("a", np.array([-np.inf], np.float32), np.array([np.inf], np.float32), LOOSE)
    assert result.reason == "element [0] is -inf, the reference has inf"


def test_integers_must_be_equal_up_to_the_share_that_may_flip() -> None:
    a = np.arange(10)
    b = a.copy()
    b[7] = 0
    assert compare("a", b, a, LOOSE).ok
    result = compare("a", b, a, exact())
    assert result.reason == "1 of 10 elements differ (0 allowed), first at [7]"


def test_other_shapes_and_dtypes_never_agree() -> None:
    a = normal(2, 3)
    assert compare("a", a.T, a, LOOSE).reason == "shape is [3, 2], the reference has [2, 3]"
    assert compare("a", a.astype(np.int64), a, LOOSE).reason == "dtype is int64, the reference has float32"


def test_zero_reference_allows_no_error() -> None:
    zero = np.zeros(4, np.float32)
    assert compare("a", zero, zero, exact()).ok
    assert not compare("a", zero + 1e-3, zero, LOOSE).ok


@given(st.integers(1, 10**7))
def test_spread_grows_with_the_number_of_elements(n: int) -> None:
    assert LOOSE.spread(n) < LOOSE.spread(n + 1)


def test_tolerance_follows_format_and_reduction_length() -> None:
    graph = load_model(mlp(), dims={"N": 2}).graph
    by_op = {op.name: op.results[0].name for op in graph.ops}
    output = graph.results[0].name
    assert by_op["matmul"] == output
    full, half, brain = (tolerances(graph, p)[output] for p in ("fp32", "fp16", "bf16"))
    assert full.relative < half.relative < brain.relative
    assert brain.relative == pytest.approx(2 * math.sqrt(2 * 2 * UNIT_ROUNDOFF[DType.BF16] ** 2), rel=1e-3)
    assert full.relative <= FP32_FLOOR
    assert full.mismatch_share == 0
    first = next(op for op in graph.ops if op.name == "matmul").results[0].name
    assert tolerances(graph, "fp32")[first].relative < full.relative


def test_operands_of_contractions_are_rounded_for_all_that_reads_them() -> None:
    """m may be stored in bf16, because a product reads it, and then the sum reads bf16 too. What only leads to a result
    keeps its type, and the product's own rounding is not counted twice."""
    model = model_of("""g (float[4, 8] x, float[8, 8] w) => (float[4, 8] y, float[4] s, float[4] t) {
        m = Relu(x)
        y = MatMul(m, w)
        axes = Constant<value_ints = [1]>()
        s = ReduceSum<keepdims = 0>(m, axes)
        u = Tanh(x)
        t = ReduceSum<keepdims = 0>(u, axes)
    }""")
    graph = load_model(model).graph
    y, s, t = (v.name for v in graph.results)
    unit = UNIT_ROUNDOFF[DType.BF16]
    found = tolerances(graph, "bf16")
    assert found[s].relative == pytest.approx(2 * unit, rel=1e-3)
    assert found[y].relative == pytest.approx(2 * math.sqrt(2) * unit, rel=1e-3)
    assert found[t] == tolerances(graph, "fp32")[t]
    program = ppuc.compile(model, target="zhenwu-m890", precision="bf16")
    checked = {o.name: o for o in ppuc.verify(program, {"x": normal(4, 8), "w": normal(8, 8)}).outputs}
    assert all(o.ok for o in checked.values())
    assert checked["t"].sqnr_db > 120


def test_equal_ops_count_as_one_value() -> None:
    """A program keeps one of the two Relus, in bf16, and the sum of the other reads it too; so does the view t."""
    model = model_of("""g (float[4, 8] x, float[8, 8] w) => (float[4, 8] y, float[4] s, float[8, 4] t) {
        m = Relu(x) n = Relu(x)
        y = MatMul(m, w)
        axes = Constant<value_ints = [1]>()
        s = ReduceSum<keepdims = 0>(n, axes)
        t = Transpose(n)
    }""")
    graph = load_model(model).graph
    _, s, t = (tolerances(graph, "bf16")[v.name].relative for v in graph.results)
    assert (s, t) == (pytest.approx(2 * UNIT_ROUNDOFF[DType.BF16], rel=1e-3),) * 2
    assert ppuc.verify(ppuc.compile(model, "zhenwu-m890", "bf16"), {"x": normal(4, 8), "w": normal(8, 8)}).ok


def rounded_products(scale: float) -> onnx.ModelProto:
    """Products as whole numbers."""
    text = f"""g (float[64, 32] x) => (int32[64, 16] y) {{
        s = Constant<value_float = {scale}>() h = MatMul(x, w) m = Mul(h, s) r = Round(m) y = Cast<to = 6>(r) }}"""
    return model_of(text, {"w": np.random.default_rng(1).standard_normal((32, 16)).astype(np.float32)})


@pytest.mark.parametrize(("steps", "ok"), [(1, True), (100, False)])
def test_rounding_of_sums_counts_where_a_mean_is_subtracted(steps: int, ok: bool) -> None:
    """x + 1000 rounds to steps of 2**-14, and of 1000 a normalization leaves nothing."""
    text = (
        "g (float[12, 7] x, float[7] s) => (float[12, 7] y) { h = Add(x, c) y = LayerNormalization<axis = -1>(h, s) }"
    )
    model, feeds = model_of(text, {"c": np.float32(1000)}), {"x": normal(12, 7), "s": normal(7)}
    imported = load_model(model)
    judge = Judge(imported.graph, "fp32", {value.name: feeds[name] for name, value in imported.inputs})
    off = np.random.default_rng(5).choice([-1, 1], (12, 7)) * steps * 2.0**-14
    got = Oracle(model).run({**feeds, "x": (feeds["x"] + off).astype(np.float32)})["y"]
    assert judge.compare("y", imported.outputs[0][1].name, got, Oracle(model).run(feeds)["y"]).ok == ok


def test_as_many_integers_may_differ_as_rounding_changes() -> None:
    """A relative error of 2**-9 moves products of about 5.7 across an edge in one of 100 places."""
    model, x = rounded_products(1.0), normal(64, 32)
    assert ppuc.verify(ppuc.compile(model, "zhenwu-m890", "bf16"), {"x": x}).ok


def test_integers_after_f32_arithmetic_have_to_be_equal() -> None:
    """The chance that rounding changes one of 1,024 is a hundredth or less."""
    model, x = rounded_products(1.0), normal(64, 32)
    imported = load_model(model)
    want = Oracle(model).run({"x": x})["y"]
    got = want.copy()
    got[0, 0] += 1
    assert not Judge(imported.graph, "fp32", {"x": x}).compare("y", imported.outputs[0][1].name, got, want).ok


def test_measured_errors_do_not_exclude_the_rounding_of_the_type() -> None:
    """f16 of an output may be off by a step of f16, however little the formats of the products change."""
    graph = load_model(model_of("g (float16[4] x) => (float16[4] y) { y = Tanh(x) }")).graph
    x = normal(4).astype(np.float16)
    want = np.float16([0.5, 0.25, 0.125, 0.75])
    judge, name = Judge(graph, "int8", {"x": x}), graph.results[0].name
    step = np.nextafter(want, np.float16(1))
    assert judge.compare("y", name, step, want, Allowed(FP32_FLOOR, 1e-5)).ok
    assert not judge.compare("y", name, want * np.float16(1.01), want, Allowed(FP32_FLOOR, 1e-5)).ok


def test_tolerance_catches_bf16_passed_off_as_fp32() -> None:
    """The fp32 tolerance must tell formats apart, or it verifies nothing."""
    graph = load_model(mlp(), dims={"N": 2}).graph
    a = normal(2, 7)
    rounded = a.astype(DType.BF16.numpy).astype(np.float32)
    assert not compare("y", rounded, a, tolerances(graph, "fp32")[graph.results[0].name]).ok
    assert compare("y", rounded, a, tolerances(graph, "bf16")[graph.results[0].name]).ok


def test_small_probabilities_are_compared_with_what_the_reference_can_know() -> None:
    """The exact result is right although it is not ONNX Runtime's; a millionth beside it is wrong."""
    model = model_of(
        "g (float[1, 5] x) => (float[1] y) { s = Sigmoid(x) y = ReduceMean<axes = [1], keepdims = 0>(s) }", opset=13
    )
    x = np.linspace(-11, -9, 5, dtype=np.float32)[None]
    want = Oracle(model).run({"x": x})["y"]
    exactly = np.mean(1 / (1 + np.exp(-x.astype(np.float64))), 1)
    imported = load_model(model)
    tolerance = tolerances(imported.graph, "model")[imported.graph.results[0].name]
    assert tolerance.absolute == pytest.approx(2.0**-23)
    assert compare("y", exactly.astype(np.float32), want, tolerance).ok
    assert not compare("y", (exactly + 1e-6).astype(np.float32), want, tolerance).ok


@pytest.mark.parametrize(("points", "precise"), [(400, False), (512, True)])
def test_transforms_are_compared_with_what_the_reference_can_know(points: int, precise: bool) -> None:
    """Only lengths that are no power of two are given the error of ONNX Runtime's chirp."""
    types = f"(float[8, {points}, 1] x) => (float[8, {points}, 2] y)"
    model = model_of(f"g {types} {{ axis = Constant<value_int = 1>() y = DFT(x, , axis) }}", opset=20)
    x = np.random.default_rng(points).standard_normal((8, points, 1)).astype(np.float32)
    spectrum = np.fft.fft(x[..., 0].astype(np.float64))
    exactly = np.stack([spectrum.real, spectrum.imag], -1)
    want = Oracle(model).run({"x": x})["y"]
    imported = load_model(model)
    assert imported.transforms
    with_chirp = Judge(imported.graph, "model", {"x": x}, imported.transforms)
    without = Judge(imported.graph, "model", {"x": x})
    name = imported.graph.results[0].name
    assert with_chirp.compare("y", name, exactly.astype(np.float32), want).ok
    assert without.compare("y", name, exactly.astype(np.float32), want).ok == precise
    wrong = (exactly * (1 + 1e-3 * normal(8, points, 2))).astype(np.float32)
    assert not with_chirp.compare("y", name, wrong, want).ok


def test_arithmetic_on_constants_rounds_too() -> None:
    """A graph that holds what it computes from constants would allow its results no error."""
    text = "g () => (float[3, 2] y) { a = MatMul(v, w) b = Add(a, c) y = MatMul(b, d) }"
    weights = {"v": normal(3, 65), "w": normal(65, 4), "c": normal(4), "d": normal(4, 2)}
    model = model_of(text, weights)
    traced, folded = load_model(model, traced=True), load_model(model)
    kinds = [op.name for op in traced.graph.ops if op.name != "constant"]
    assert kinds.count("matmul") == 2
    assert len(folded.graph.ops) == 1
    allowed = tolerances(traced.graph, "fp32")[traced.outputs[0][1].name].relative
    assert allowed == pytest.approx(2 * math.sqrt(65 + 16 + 16) * UNIT_ROUNDOFF[DType.F32])
    assert ppuc.verify(ppuc.compile(model, "ppu-tiny"), {}).ok

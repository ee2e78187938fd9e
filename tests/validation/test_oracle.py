"""Comparison, tolerances, generated inputs and the ONNX Runtime oracle."""

from __future__ import annotations

import contextlib
import io
import math
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ppuc
from ppuc.compiler.frontend.expose import moved_model
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.inputs import InputSpec, checked_inputs, generate, input_ranges, read_npy, read_npz, write_npz
from ppuc.compiler.pipeline.layers import final_node, layer_candidates, matching, node_values
from ppuc.compiler.validation.compare import MAX_SQNR_DB, compare
from ppuc.compiler.validation.expected import Allowed
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import FP32_FLOOR, UNIT_ROUNDOFF, Tolerance, exact, tolerances
from ppuc.ir.errors import InputError, ModelError
from ppuc.ir.types import DType, TensorType
from tests.support.onnx_text import model_of
from tests.support.small_models import lookup, mlp

LOOSE = Tolerance(1e-3, mismatch_share=0.1)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


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


def test_oracle_returns_outputs_and_inner_tensors(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    x = normal(2, 20)
    got = Oracle(path, ("h", "r")).run({"x": x})
    assert set(got) == {"y", "h", "r"}
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in mlp().graph.initializer}
    np.testing.assert_allclose(got["h"], x @ weights["w0"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["y"], got["r"] @ weights["w1"], rtol=1e-5, atol=1e-5)


def test_oracle_finds_external_data_when_outputs_are_added(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = normal(1, 20)
    assert set(Oracle(path, ("h",)).run({"x": x})) == {"y", "h"}


def test_oracle_refusals_are_model_errors(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot load the model"):
        Oracle(path)
    with pytest.raises(ModelError, match="mlp: ONNX Runtime cannot run the model"):
        Oracle(mlp()).run({"x": normal(2, 19)})


def test_ids_are_drawn_from_the_table_they_index_and_masks_are_ones() -> None:
    imported = load_model(lookup())
    ranges = input_ranges(imported.graph)
    assert ranges == {"ids": 11}
    ids = generate(InputSpec("ids", TensorType(DType.I64, (1000,)), 11), "random")
    assert (ids.min(), ids.max()) == (0, 10)
    assert generate(InputSpec("attention_mask", TensorType(DType.I64, (3,))), "random").tolist() == [1, 1, 1]


def test_random_inputs_depend_on_seed_and_name_only() -> None:
    spec = InputSpec("x", TensorType(DType.F32, (4,)))
    np.testing.assert_array_equal(generate(spec, "random", 5), generate(spec, "random", 5))
    assert (generate(spec, "random", 5) != generate(spec, "random", 6)).any()
    assert (generate(spec, "random") != generate(InputSpec("z", spec.type), "random")).any()
    assert generate(spec, "ones").tolist() == [1, 1, 1, 1]


SPECS = (InputSpec("image", TensorType(DType.F32, (1, 3))), InputSpec("scale", TensorType(DType.F32, ())))


@pytest.mark.parametrize(
    ("given_arrays", "text"),
    [
        (
            {"imag": np.zeros((1, 3), np.float32), "scale": np.float32(1)},
            "net: no input is called 'imag'\n  expected: image: f32[1, 3], scale: f32[]\n"
            "  hint: did you mean 'image'?\nnet: input 'image' is missing\n  expected: f32[1, 3]",
        ),
        (
            {"image": np.zeros((1, 3)), "scale": np.float32(1)},
            "net: input 'image' has the wrong dtype\n  got: f64[1, 3]\n  expected: f32[1, 3]\n"
            "  hint: convert it with x.astype('float32')",
        ),
        (
            {"image": np.zeros((2, 3), np.float32), "scale": np.float32(1)},
            "net: input 'image' has the wrong shape\n  got: f32[2, 3]\n  expected: f32[1, 3]\n"
            "  hint: shapes are fixed when a model is compiled; compile again with other --dim",
        ),
        (
            {"image": np.zeros((1, 3), "U3"), "scale": np.float32(1)},
            "net: input 'image' has the wrong dtype\n  got: <U3[1, 3]\n  expected: f32[1, 3]\n"
            "  hint: convert it with x.astype('float32')",
        ),
    ],
)
def test_wrong_inputs_are_named(given_arrays: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_inputs(SPECS, given_arrays, "net")
    assert str(caught.value) == text


def test_numpy_files_round_trip_and_damage_is_reported(tmp_path: Path) -> None:
    arrays = {"a": normal(2, 3), "b": np.arange(3)}
    write_npz(tmp_path / "x.npz", arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    for name, array in read_npz(tmp_path / "x.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.npz: cannot be read as numpy data"):
        read_npz(tmp_path / "cut.npz")
    with pytest.raises(InputError, match=r"none\.npy: no such file"):
        read_npy(tmp_path / "none.npy")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"pickled\.npy: cannot be read as numpy data"):
        read_npy(tmp_path / "pickled.npy")
    with pytest.raises(InputError, match=r"x\.npz: is an \.npz of several arrays"):
        read_npy(tmp_path / "x.npz")


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """An .npy of f32 whose header says `shape`, whatever follows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue() + data


@pytest.mark.parametrize(("shape", "size"), [((3,), 64 << 20), ((1 << 40,), 12), ((3,), 8)])
def test_archives_are_not_unpacked_beyond_their_headers(tmp_path: Path, shape: tuple[int, ...], size: int) -> None:
    path = tmp_path / "lies.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(shape, bytes(size)))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"x.npy has {size:,} bytes of data, its shape asks for"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_an_archive_that_says_less_than_it_holds(tmp_path: Path) -> None:
    """The directory of the archive promises 12 bytes of data; 64 MB are unpacked to none."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((3,), bytes(64 << 20)))
    true = len(npy((3,), b"")) + (64 << 20)
    data = path.read_bytes().replace(true.to_bytes(4, "little"), (true - (64 << 20) + 12).to_bytes(4, "little"))
    path.write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(InputError):
        assert read_npz(path)["x"].tolist() == [0, 0, 0]
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", [d for d in DType if d.numpy.isbuiltin == 2], ids=str)
def test_formats_without_a_numpy_name_come_back_exactly(tmp_path: Path, dtype: DType) -> None:
    array = np.array([[1.5, 2], [4, 0.5]]).astype(dtype.numpy)
    write_npz(tmp_path / "x.npz", {"a": array, "b": array[0, 0], "c": array.T})
    spec = {"a": (2, 2), "b": (), "c": (2, 2)}
    specs = [InputSpec(name, TensorType(dtype, shape)) for name, shape in spec.items()]
    back = checked_inputs(specs, read_npz(tmp_path / "x.npz"), "net")
    assert all(a.dtype == dtype.numpy for a in back.values())
    assert [back[n].tobytes() for n in spec] == [array.tobytes(), array[0, 0].tobytes(), array.T.tobytes()]


def test_a_value_stands_for_the_last_node_that_only_it_finishes() -> None:
    graph = load_model(mlp(), dims={"N": 2}).graph
    values = node_values(graph)
    assert set(values) == {"first", "bias", "relu", "second"}
    assert values["second"] == graph.results[0].name
    candidates = layer_candidates(graph)
    assert candidates[graph.results[0].name] == ("second",)
    assert final_node(("bias", "relu"), ("first", "bias", "relu")) == "relu"
    assert final_node(("inlined/x",), ("first",)) is None


def test_layouts_are_matched() -> None:
    want = normal(1, 3, 4, 5)
    assert matching(want, np.zeros((1, 3, 4, 5))) is want or matching(want, want) is not None
    last = np.moveaxis(want, 1, -1)
    np.testing.assert_array_equal(matching(want, np.zeros(last.shape)), last)
    np.testing.assert_array_equal(matching(want, np.zeros((3, 4, 5))), want[0])
    assert matching(want, np.zeros((5, 4, 3))) is None
    square = normal(1, 4, 4, 4)
    np.testing.assert_array_equal(matching(square, np.moveaxis(square, 1, -1)), np.moveaxis(square, 1, -1))


def test_models_of_newer_ir_versions_are_read() -> None:
    """What the version adds is beside the graph, so the oracle reads the model as of the newest that it knows."""
    model = model_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.ir_version = 14
    x = np.array([1, -2], np.float32)
    np.testing.assert_array_equal(Oracle(model).run({"x": x})["y"], -x)


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


def test_moved_models_keep_their_sizes() -> None:
    """Weights of every float type move; what sizes are computed from does not."""
    text = """g (float[1, 1, 3, 3] x) => (float[1, 1, 6, 6] y, float16[4] h) {
        y = Resize(x, , scales)
        k = Identity(half)
        h = Add(k, k)
    }"""
    model = model_of(text, {"scales": np.float32([1, 1, 2, 2]), "half": np.float16([1, 2, 3, 4])})
    moved = moved_model(model, lambda a: a * np.float32(1.5))
    changed = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in moved.graph.initializer}
    assert changed == {"scales": [1, 1, 2, 2], "half": [1.5, 3, 4.5, 6]}
    assert onnx.numpy_helper.to_array(model.graph.initializer[1]).tolist() == [1, 2, 3, 4]

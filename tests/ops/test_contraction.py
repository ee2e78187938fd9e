"""Contractions: matmul, conv, conv_transpose and einsum against ONNX Runtime, and what their records claim."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.conv_transpose import ConvTransposeAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from tests.support.against_onnxruntime import indexing_of
from tests.support.single_node import (
    Inputs,
    check,
    directly,
    evaluate,
    node_model,
    sum_tolerance,
    uniform,
    without_composites,
)

MATMUL_SHAPES = [
    ((3, 5), (5, 7)),
    ((5,), (5, 7)),
    ((3, 5), (5,)),
    ((5,), (5,)),
    ((2, 3, 5), (5,)),
    ((5,), (2, 5, 7)),
    ((2, 3, 5), (5, 7)),
    ((3, 5), (4, 5, 7)),
    ((2, 1, 3, 5), (4, 5, 7)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize(("a", "b"), MATMUL_SHAPES)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check("MatMul", {"a": uniform(0, *a), "b": uniform(1, *b)}, tolerance=sum_tolerance(a[-1]))


def test_matmul_of_integers_is_exact() -> None:
    rng = np.random.default_rng(0)
    a: np.ndarray = rng.integers(-1000, 1000, (4, 9), np.int32)
    b: np.ndarray = rng.integers(-1000, 1000, (9, 3), np.int32)
    check("MatMul", {"a": a, "b": b})


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("c", [None, (7,), (3, 1), (1, 1), (), (3, 7)])
def test_gemm(transposed: tuple[int, int], c: tuple[int, ...] | None) -> None:
    a, b = uniform(0, 3, 5), uniform(1, 5, 7)
    inputs: Inputs = {
        "a": np.ascontiguousarray(a.T) if transposed[0] else a,
        "b": np.ascontiguousarray(b.T) if transposed[1] else b,
        "c": None if c is None else uniform(2, *c),
    }
    attributes = {"transA": transposed[0], "transB": transposed[1], "alpha": 0.5, "beta": 1.5}
    check("Gemm", inputs, attributes, tolerance=sum_tolerance(6))


@pytest.mark.parametrize(
    "attributes", [{}, {"transA": 1, "alpha": 0.25}, {"transB": 1}, {"transBatchA": 1}, {"transBatchB": 1, "transB": 1}]
)
def test_fused_matmul(attributes: dict[str, Any]) -> None:
    a = (2, 3, 5) if not attributes.get("transBatchA") else (3, 2, 5)
    b = (2, 5, 7) if not attributes.get("transBatchB") else (7, 2, 5)
    a = (2, 5, 3) if attributes.get("transA") else a
    b = (2, 7, 5) if attributes.get("transB") and not attributes.get("transBatchB") else b
    inputs = {"a": uniform(0, *a), "b": uniform(1, *b)}
    check("FusedMatMul", inputs, attributes, domain="com.microsoft", tolerance=sum_tolerance(5))


ACTIVATIONS: list[tuple[str, list[float]]] = [
    ("Relu", []),
    ("Tanh", []),
    ("Sigmoid", []),
    ("LeakyRelu", [0.1]),
    ("Clip", [-0.5, 0.25]),
    ("HardSigmoid", [0.3, 0.4]),
]


@pytest.mark.parametrize(("name", "parameters"), ACTIVATIONS)
def test_fused_conv(name: str, parameters: list[float]) -> None:
    inputs = {"x": uniform(0, 1, 3, 6, 6), "w": uniform(1, 4, 3, 3, 3), "b": uniform(2, 4)}
    attributes: dict[str, Any] = {"activation": name, "pads": [1, 1, 1, 1]}
    if parameters:
        attributes["activation_params"] = parameters
    check("FusedConv", inputs, attributes, domain="com.microsoft", tolerance=sum_tolerance(28))


def test_fused_conv_adds_a_residual_before_the_activation() -> None:
    inputs = {
        "x": uniform(0, 1, 3, 6, 6),
        "w": uniform(1, 4, 3, 3, 3),
        "b": uniform(2, 4),
        "z": uniform(3, 1, 4, 4, 4),
    }
    check("FusedConv", inputs, {"activation": "Relu"}, domain="com.microsoft", tolerance=sum_tolerance(29))


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 9), (4, 3, 3), {"strides": [2], "pads": [1, 0]}),
    ((2, 3, 8, 7), (5, 3, 3, 3), {}),
    ((1, 4, 8, 7), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ((2, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((1, 3, 9, 9), (6, 1, 3, 3), {"group": 3}),
    ((1, 2, 11, 10), (3, 2, 3, 3), {"dilations": [2, 3]}),
    ((1, 3, 5, 5), (4, 3, 1, 1), {"strides": [2, 2]}),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"strides": [1, 2, 3], "pads": [1, 1, 0, 0, 1, 1]}),
    ((1, 2, 7, 8), (3, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ((1, 2, 7, 8), (3, 2, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ((1, 2, 7, 8), (3, 2, 3, 4), {"auto_pad": "VALID", "kernel_shape": [3, 4]}),
    ((1, 2, 3, 3), (3, 2, 7, 7), {"pads": [3, 3, 3, 3]}),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
def test_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool) -> None:
    inputs = {"x": uniform(0, *x), "w": uniform(1, *w), "b": uniform(2, w[0]) if bias else None}
    check("Conv", inputs, attributes, tolerance=sum_tolerance(int(np.prod(w[1:])) + 1))


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 5), (3, 2, 4), {"strides": [2], "pads": [1, 1]}),
    ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 3, 4, 5), (3, 2, 5, 4), {"strides": [3, 2], "pads": [2, 0, 1, 1]}),
    ((1, 4, 4, 5), (4, 3, 4, 4), {"strides": [2, 2], "group": 2}),
    ((1, 2, 3, 4), (2, 3, 2, 2), {"strides": [3, 4]}),
    ((1, 2, 3, 4), (2, 3, 1, 1), {"strides": [3, 2], "output_padding": [2, 1]}),
    ((1, 2, 5, 4), (2, 3, 3, 2), {"dilations": [2, 3]}),
    ((1, 2, 5, 4), (2, 3, 3, 2), {"dilations": [2, 3], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ((1, 2, 5, 4), (2, 3, 3, 2), {"dilations": [2, 1], "strides": [3, 2]}),
    ((1, 2, 3, 4, 3), (2, 3, 3, 2, 2), {"strides": [2, 1, 2]}),
    ((1, 2, 4, 5), (2, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 2, 4, 5), (2, 3, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((1, 2, 4, 5), (2, 3, 3, 3), {"output_shape": [8, 9], "strides": [2, 2]}),
    ((1, 2, 4, 5), (2, 3, 1, 3), {"output_shape": [12, 9], "strides": [3, 2]}),
    ((1, 2, 4, 5), (2, 3, 1, 1), {"output_shape": [12, 10], "strides": [3, 2]}),
    ((1, 2, 4, 5), (2, 3, 3, 3), {"output_shape": [8, 10], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED)
def test_conv_transpose(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool) -> None:
    outputs = w[1] * attributes.get("group", 1)
    inputs = {"x": uniform(0, *x), "w": uniform(1, *w), "b": uniform(2, outputs) if bias else None}
    check("ConvTranspose", inputs, attributes, tolerance=sum_tolerance(int(w[0] * np.prod(w[2:])) + 1))


EQUATIONS = [
    ("ij,jk->ik", [(3, 4), (4, 5)]),
    ("ij,jk", [(3, 4), (4, 5)]),
    ("ij,kj->ki", [(3, 4), (5, 4)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("bind,bjnd->bnij", [(2, 4, 3, 5), (2, 6, 3, 5)]),
    ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
    ("...ij,jk->...ik", [(2, 6, 3, 4), (4, 5)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (1, 6, 4, 5)]),
    ("a...b->b...", [(2, 3, 4, 5)]),
    ("ii->i", [(4, 4)]),
    ("ii->", [(4, 4)]),
    ("bii->bi", [(2, 4, 4)]),
    ("iji->j", [(4, 3, 4)]),
    ("ij->ji", [(3, 4)]),
    ("ij->", [(3, 4)]),
    ("ij->j", [(3, 4)]),
    ("i,j->ij", [(3,), (4,)]),
    ("i,i->", [(3,), (3,)]),
    ("i,i->i", [(3,), (3,)]),
    ("ijk,kl->", [(2, 3, 4), (4, 5)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]),
    ("abc,cde->abde", [(2, 3, 4), (4, 5, 6)]),
    ("a b, b c -> a c", [(2, 3), (3, 4)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = {f"x{i}": uniform(i, *shape) for i, shape in enumerate(shapes)}
    check("Einsum", inputs, {"equation": equation}, tolerance=sum_tolerance(60))


def test_einsum_aligns_ellipses_of_different_ranks() -> None:
    """ONNX Runtime refuses this one; numpy reads the specification as we do."""
    inputs = {"a": uniform(0, 2, 1, 3, 4), "b": uniform(1, 6, 4, 5)}
    equation = "...ij,...jk->...ik"
    got = evaluate(load_model(node_model("Einsum", inputs, {"equation": equation})), inputs)
    np.testing.assert_allclose(got, np.einsum(equation, *inputs.values()), rtol=0, atol=sum_tolerance(4))


def test_einsum_of_plain_matrices_needs_no_transpose() -> None:
    for equation, b in (("bij,bjk->bik", (2, 4, 5)), ("bij,bkj->bik", (2, 5, 4))):
        inputs = {"a": uniform(0, 2, 3, 4), "b": uniform(1, *b)}
        imported = load_model(node_model("Einsum", inputs, {"equation": equation}))
        assert [op.name for op in imported.graph.ops] == ["matmul"]


FAILURES: list[tuple[str, Inputs, dict[str, Any], str]] = [
    ("MatMul", {"a": uniform(0, 3, 4), "b": uniform(1, 5, 6)}, {}, "matmul reduction sizes differ: 4"),
    ("Gemm", {"a": uniform(0, 3, 4), "b": uniform(1, 4, 6), "c": uniform(2, 2, 6)}, {}, "C does not broadcast"),
    (
        "Conv",
        {"x": uniform(0, 1, 62, 8, 8), "w": uniform(1, 8, 15, 3, 3)},
        {"group": 4},
        "input channels do not divide by group\n  got: X has 62 channels, group = 4",
    ),
    ("Conv", {"x": uniform(0, 1, 3, 8, 8), "w": uniform(1, 8, 4, 3, 3)}, {}, "input channels contradict the weights"),
    ("Conv", {"x": uniform(0, 1, 3, 2, 2), "w": uniform(1, 8, 3, 3, 3)}, {}, "window [3, 3] is larger than the padded"),
    ("Conv", {"x": uniform(0, 1, 3, 8, 8), "w": uniform(1, 8, 3, 3, 3)}, {"strides": [2]}, "strides needs one entry"),
    ("ConvTranspose", {"x": uniform(0, 1, 3, 8, 8), "w": uniform(1, 4, 8, 3, 3)}, {}, "contradict the weights"),
    ("Einsum", {"a": uniform(0, 3, 4), "b": uniform(1, 5, 6)}, {"equation": "ij,jk->ik"}, "sizes of 'j' differ"),
    ("Einsum", {"a": uniform(0, 3, 4)}, {"equation": "ijk->k"}, "subscripts do not fit the input's rank"),
    ("Einsum", {"a": uniform(0, 3, 4)}, {"equation": "ij->k"}, "each output label must be in an input"),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes", "text"), FAILURES)
def test_errors_name_the_node_and_the_rule(op_type: str, inputs: Inputs, attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(node_model(op_type, inputs, attributes))
    assert f"node 'node' ({op_type}): " in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_narrow_operands_accumulate_in_f32_and_round_once(dtype: type) -> None:
    a: np.ndarray = uniform(0, 16, 300).astype(dtype)
    b: np.ndarray = uniform(1, 300, 8).astype(dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    wide = directly("matmul", MatmulAttrs(out=DType.F32), a, b)
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide, exact, rtol=0, atol=sum_tolerance(300))
    assert np.array_equal(directly("matmul", MatmulAttrs(), a, b), wide.astype(dtype))


def test_bytes_multiply_to_i32_exactly_even_at_full_scale() -> None:
    a = np.full((2, 5000), 255, np.uint8)
    b = np.full((5000, 3), -128, np.int8)
    got = directly("matmul", MatmulAttrs(out=DType.I32), a, b)
    assert got.dtype == np.int32
    assert (got == 255 * -128 * 5000).all()
    x, w = np.full((1, 64, 5, 5), 255, np.uint8), np.full((3, 64, 5, 5), -128, np.int8)
    attrs = ConvAttrs((1, 1), (0, 0), (0, 0), (1, 1), out=DType.I32)
    assert (directly("conv", attrs, x, w) == 255 * -128 * 64 * 25).all()


@pytest.mark.parametrize("out", [None, DType.I8, DType.F32])
def test_bytes_do_not_multiply_to_anything_else(out: DType | None) -> None:
    a = TensorType(DType.I8, (2, 2))
    with pytest.raises(ValueError, match="gives i32"):
        OPS["matmul"].infer(MatmulAttrs(out=out), [a, a])


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
def test_conv_layouts_agree(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    rank = len(x) - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    fields = (
        tuple(attributes.get("strides", [1] * rank)),
        tuple(pads[:rank]),
        tuple(pads[rank:]),
        tuple(attributes.get("dilations", [1] * rank)),
        attributes.get("group", 1),
    )
    a, b = uniform(0, *x), uniform(1, *w)
    want = directly("conv", ConvAttrs(*fields), a, b)
    nhwc = ConvAttrs(*fields, layout="nhwc")
    operands = (np.moveaxis(a, 1, -1), np.moveaxis(b, (1, 0), (-2, -1)))
    got = directly("conv", nhwc, *operands)
    assert np.array_equal(np.moveaxis(got, -1, 1), want)
    (inferred,) = OPS["conv"].infer(nhwc, [TensorType(DType.F32, o.shape) for o in operands])
    assert inferred.dims == got.shape


def by_indexing(name: str, attrs: Any, *arrays: np.ndarray) -> np.ndarray:
    """The sum of products that a record's indexing describes, point by point; outside the operands is zero."""
    types = [TensorType(DType.of(a.dtype), a.shape) for a in arrays]
    indexing = indexing_of(name, attrs, *types)
    (out,) = OPS[name].infer(attrs, types)
    total = np.zeros(out.dims)
    for point in itertools.product(*(range(d.size) for d in indexing.dims)):
        env = {d.name: i for d, i in zip(indexing.dims, point, strict=True)}
        product = 1.0
        for array, access in zip(arrays, indexing.operands, strict=True):
            at = tuple(a.value(env) for a in access)
            inside = all(0 <= i < n for i, n in zip(at, array.shape, strict=True))
            product *= float(array[at]) if inside else 0.0
        total[tuple(a.value(env) for a in indexing.results[0])] += product
    return total


@pytest.mark.parametrize("transposed", list(itertools.product((False, True), repeat=2)))
def test_matmul_indexing(transposed: tuple[bool, bool]) -> None:
    attrs = MatmulAttrs(*transposed)
    a = uniform(0, 2, 1, *((4, 3) if transposed[0] else (3, 4)))
    b = uniform(1, 3, *((5, 4) if transposed[1] else (4, 5)))
    np.testing.assert_allclose(by_indexing("matmul", attrs, a, b), directly("matmul", attrs, a, b), atol=1e-6)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_conv_indexing(layout: str) -> None:
    attrs = ConvAttrs((2, 1), (1, 0), (0, 2), (1, 2), groups=2, layout=layout)
    x, w = uniform(0, 1, 4, 5, 4), uniform(1, 4, 2, 2, 3)
    if layout == "nhwc":
        x, w = np.moveaxis(x, 1, -1), np.moveaxis(w, (1, 0), (-2, -1))
    want = directly("conv", attrs, x, w)
    np.testing.assert_allclose(by_indexing("conv", attrs, x, w), want, atol=sum_tolerance(12))


def test_conv_in_row_blocks_equals_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = uniform(0, 2, 3, 17, 9), uniform(1, 4, 3, 3, 3)
    attrs = ConvAttrs((1, 1), (1, 1), (1, 1), (1, 1))
    whole = directly("conv", attrs, x, w)
    monkeypatch.setattr("ppuc.ir.ops.contraction._COLUMN_BYTES", 3000)
    np.testing.assert_allclose(directly("conv", attrs, x, w), whole, rtol=0, atol=sum_tolerance(27))


@pytest.mark.parametrize("seed", range(150))
def test_conv_transpose_equals_its_decomposition(seed: int) -> None:
    """All attributes at random; negative padding, an extension by zeros, is more than ONNX Runtime accepts."""
    rng = np.random.default_rng(seed)
    rank, groups = (int(n) for n in rng.integers(1, 3, 2))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high, rank))

    attrs = ConvTransposeAttrs(sizes(1, 4), sizes(-2, 3), sizes(-2, 3), sizes(0, 3), sizes(1, 3), groups)
    x, w = uniform(seed, 2, 2 * groups, *sizes(3, 7)), uniform(seed + 1, 2 * groups, 3, *sizes(3, 6))
    params = tuple(Value(n, TensorType(DType.F32, a.shape)) for n, a in (("x", x), ("w", w)))
    builder = Builder(("x", "w"))
    graph = Graph("g", params, builder.emit("conv_transpose", params, attrs), tuple(builder.ops))
    (got,) = run_graph(without_composites(graph), {"x": x, "w": w}).values()
    want = directly("conv_transpose", attrs, x, w)
    np.testing.assert_allclose(got, want, rtol=0, atol=sum_tolerance(2 * int(np.prod(w.shape[2:]))))


def test_transposed_convolution_multiplies_by_no_inserted_zeros() -> None:
    """Kernel 3, stride 2: phases of 2 and 1 taps an axis, so 9 products a pixel and channel pair, not 36."""
    inputs = {"x": uniform(0, 1, 2, 8, 8), "w": uniform(1, 2, 3, 3, 3)}
    attributes = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    graph = without_composites(load_model(node_model("ConvTranspose", inputs, attributes)).graph)
    kernels = [op.operands[1].type.dims for op in graph.ops if op.name == "conv"]
    assert sum(int(np.prod(k)) for k in kernels) == 9 * 2 * 3

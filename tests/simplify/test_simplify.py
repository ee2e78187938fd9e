"""ppuc simplify: the cleaned model computes the same, in fewer nodes, for every size of its symbolic dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.simplify.driver import simplify
from ppuc.compiler.validation.oracle import Oracle
from tests.simplify.checking import normal, simplified
from tests.support.onnx_text import model_of

BN = {"s": normal(6), "t": normal(6), "m": normal(6), "v": np.abs(normal(6)) + 0.5}


@pytest.mark.parametrize("bias", ["", ", b"])
def test_batch_normalisation_scale_and_shift_join_a_convolution(bias: str) -> None:
    text = f"""g (float[N, 3, 9, 9] x) => (float[N, 6, 7, 7] y) {{
        c = Conv(x, w{bias}) n = BatchNormalization(c, s, t, m, v) a = Mul(n, k) d = Add(a, l) y = Relu(d)
    }}"""
    weights = {"w": normal(6, 3, 3, 3), **BN, "k": normal(1, 6, 1, 1), "l": normal(6, 1, 1)}
    if bias:
        weights["b"] = normal(6)
    _, after = simplified(text, weights)
    assert after == {"Conv": 1, "Relu": 1}


def test_batch_normalisation_joins_grouped_transposed_and_dense_layers() -> None:
    grouped = """g (float[1, 4, 5, 5] x) => (float[1, 6, 3, 3] y) {
        c = Conv<group = 2>(x, w) y = BatchNormalization(c, s, t, m, v)
    }"""
    assert simplified(grouped, {"w": normal(6, 2, 3, 3), **BN})[1] == {"Conv": 1}
    transposed = """g (float[1, 4, 5, 5] x) => (float[1, 6, 7, 7] y) {
        c = ConvTranspose(x, w) y = BatchNormalization(c, s, t, m, v)
    }"""
    assert simplified(transposed, {"w": normal(4, 6, 3, 3), **BN})[1] == {"ConvTranspose": 1}
    dense = """g (float[N, 4] x) => (float[N, 6] y) {
        c = Gemm<transB = 1>(x, w, b) y = BatchNormalization(c, s, t, m, v)
    }"""
    assert simplified(dense, {"w": normal(6, 4), "b": normal(6), **BN})[1] == {"Gemm": 1}


def test_a_convolution_that_others_read_keeps_its_values() -> None:
    text = """g (float[1, 3, 5, 5] x) => (float[1, 6, 3, 3] y, float[1, 6, 3, 3] c) {
        c = Conv(x, w) y = BatchNormalization(c, s, t, m, v)
    }"""
    assert simplified(text, {"w": normal(6, 3, 3, 3), **BN})[1] == {"Conv": 1, "BatchNormalization": 1}


def test_equal_convolutions_take_in_different_normalisations_before_they_are_compared() -> None:
    text = """g (float[1, 3, 5, 5] x) => (float[1, 12, 3, 3] y) {
        a = Conv(x, w) b = Conv(x, w) p = BatchNormalization(a, s, t, m, v) q = BatchNormalization(b, t, s, m, v)
        y = Concat<axis = 1>(p, q)
    }"""
    assert simplified(text, {"w": normal(6, 3, 3, 3), **BN})[1] == {"Conv": 2, "Concat": 1}


def test_attention_scale_moves_into_the_projection() -> None:
    text = """g (float[B, 5, 8] x) => (float[B, 2, 5, 5] y) {
        qm = MatMul(x, wq) qb = Add(qm, bq) qr = Reshape(qb, split) q = Transpose<perm = [0, 2, 1, 3]>(qr)
        km = MatMul(x, wk) kr = Reshape(km, split) k = Transpose<perm = [0, 2, 3, 1]>(kr)
        a = MatMul(q, k) d = Div(a, scale) y = Softmax<axis = -1>(d)
    }"""
    weights = {"wq": normal(8, 8), "bq": normal(8), "wk": normal(8, 8), "split": np.array([0, 0, 2, 4], np.int64),
               "scale": np.array(3.0, np.float32)}  # fmt: skip
    assert "Div" not in simplified(text, weights)[1]


def test_norm_weights_move_into_the_matrices_behind_them() -> None:
    text = """g (float[B, 5, 8] x) => (float[B, 5, 4] y, float[B, 5, 6] z) {
        sq = Mul(x, x) mean = ReduceMean<axes = [-1]>(sq) e = Add(mean, eps) r = Sqrt(e) i = Reciprocal(r)
        n = Mul(x, i) w = Mul(n, weight) y = MatMul(w, a) z = MatMul(w, b)
    }"""
    weights = {"eps": np.array(1e-6, np.float32), "weight": normal(8), "a": normal(8, 4), "b": normal(8, 6)}
    after = simplified(text, weights)[1]
    assert after == {"Mul": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1, "MatMul": 2}


def test_shared_weights_are_not_copied() -> None:
    text = """g (float[5, 8] x) => (float[5, 8] y, float[5, 8] z) {
        s = Mul(x, k) y = MatMul(s, w) z = MatMul(x, w)
    }"""
    assert simplified(text, {"k": normal(8), "w": normal(8, 8)})[1] == {"Mul": 1, "MatMul": 2}


def test_narrow_weights_are_not_rounded_again() -> None:
    text = "g (float16[2, 3, 5, 5] x) => (float16[2, 6, 3, 3] y) { c = Conv(x, w) y = Mul(c, k) }"
    half = {"w": normal(6, 3, 3, 3).astype(np.float16), "k": normal(6, 1, 1).astype(np.float16)}
    assert simplified(text, half)[1] == {"Conv": 1, "Mul": 1}


def test_matrix_products_and_their_reshapes() -> None:
    around = """g (float[B, 5, 8] x) => (float[B, 5, 6] y) {
        f = Reshape(x, flat) p = Gemm<transB = 1>(f, w, b) y = Reshape(p, back)
    }"""
    flat, back = np.array([-1, 8], np.int64), np.array([-1, 5, 6], np.int64)
    weights = {"w": normal(6, 8), "b": normal(6), "flat": flat, "back": back}
    assert simplified(around, weights)[1] == {"MatMul": 1, "Add": 1}
    matrix = "g (float[5, 8] x) => (float[5, 6] y) { p = MatMul(x, w) y = Add(b, p) }"
    assert simplified(matrix, {"w": normal(8, 6), "b": normal(6)})[1] == {"Gemm": 1}


def test_moves_that_cancel() -> None:
    text = """g (float[B, 3, 4, 5] x) => (float[B, 3, 4, 5] y, float[B, 60] z) {
        t = Transpose<perm = [0, 2, 3, 1]>(x) u = Transpose<perm = [0, 3, 1, 2]>(t)
        p = Pad(u, none) s = Slice(p, starts, ends, axes) i = Identity(s) c = Cast<to = 1>(i) y = Relu(c)
        r = Reshape(c, fold) q = Unsqueeze(r, axes) z = Flatten(q)
    }"""
    ints = {"none": [0] * 8, "starts": [0], "ends": [2**62], "axes": [2], "fold": [0, 3, 20]}
    result, after = simplified(text, {k: np.array(v, np.int64) for k, v in ints.items()})
    assert after == {"Relu": 1, "Reshape": 1}
    assert {o.name for o in result.model.graph.output} == {"y", "z"}


def test_a_slice_that_may_cut_stays() -> None:
    text = "g (float[N, 4] x) => (float[M, 4] y) { y = Slice(x, starts, ends, axes) }"
    ints = {"starts": [0], "ends": [7], "axes": [0]}
    result, after = simplified(text, {k: np.array(v, np.int64) for k, v in ints.items()})
    assert after == {"Slice": 1}
    assert Oracle(result.model).run({"x": normal(9, 4)})["y"].shape == (7, 4)


def test_pads_join_windows() -> None:
    text = """g (float[1, 2, 6, 6] x) => (float[1, 2, 2, 6] y) {
        p = Pad(x, pads) c = Conv<group = 2>(p, w) q = Pad(c, pads, low) y = MaxPool<kernel_shape = [3, 3]>(q)
    }"""
    pads, low = np.array([0, 0, 0, 1, 0, 0, 0, 1], np.int64), np.array(-np.inf, np.float32)
    weights = {"pads": pads, "w": normal(2, 1, 3, 3), "low": low}
    assert simplified(text, weights)[1] == {"Conv": 1, "MaxPool": 1}


def test_pads_of_another_value_stay() -> None:
    text = "g (float[1, 2, 6, 6] x) => (float[1, 2, 6, 6] y) { p = Pad(x, pads, one) y = Conv<group = 2>(p, w) }"
    pads, one = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), np.array(1, np.float32)
    weights = {"pads": pads, "w": normal(2, 1, 3, 3), "one": one}
    assert simplified(text, weights)[1] == {"Pad": 1, "Conv": 1}


def test_formulas_become_ops() -> None:
    norm = """g (float[B, 5, 8] x) => (float[B, 5, 8] y) {
        m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q)
        e = Add(v, eps) r = Sqrt(e) n = Div(d, r) s = Mul(n, w) y = Add(s, b)
    }"""
    weights = {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32), "w": normal(8), "b": normal(8)}
    assert simplified(norm, weights)[1] == {"LayerNormalization": 1}
    hard = """g (float[B, 8] x) => (float[B, 8] y) {
        a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)
    }"""
    numbers = {k: np.array(v, np.float32) for k, v in (("zero", 0), ("three", 3), ("six", 6))}
    assert simplified(hard, numbers)[1] == {"HardSwish": 1}
    gate = "g (float[B, 8] x) => (float[B, 8] z) { e = Add(x, three) f = Clip(e, zero, six) z = Div(f, six) }"
    assert simplified(gate, numbers)[1] == {"HardSigmoid": 1}
    erf = """g (float[B, 8] x) => (float[B, 8] y) {
        d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)
    }"""
    numbers = {"root": np.array(2**0.5, np.float32), "one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
    assert simplified(erf, numbers, opset=20)[1] == {"Gelu": 1}
    assert simplified(erf, numbers, opset=17)[1]["Erf"] == 1


def test_splits_pools_and_divisions() -> None:
    text = """g (float[3, B, 4] x) => (float[B, 4] y) {
        a, b, c = Split<axis = 0>(x, ones) p = Squeeze(a, zero) q = Squeeze(b, zero) r = Squeeze(c, zero)
        s = Neg(q) t = Add(p, s) y = Mul(t, r)
    }"""
    ints = {"ones": [1, 1, 1], "zero": [0]}
    after = simplified(text, {k: np.array(v, np.int64) for k, v in ints.items()})[1]
    assert after == {"Gather": 3, "Sub": 1, "Mul": 1}
    pool = "g (float[B, 3, 4, 4] x) => (float[B, 3] y) { p = GlobalAveragePool(x) y = Flatten(p) }"
    assert simplified(pool)[1] == {"ReduceMean": 1}


def test_repeated_and_unread_nodes_go() -> None:
    text = """g (float[B, 4] x) => (float[B, 4] y) {
        a = Exp(x) b = Exp(x) c = Sin(x) d = Add(a, b) e, mask = Dropout(d) y = Relu(e)
    }"""
    assert simplified(text)[1] == {"Exp": 1, "Add": 1, "Relu": 1}


def test_an_output_that_is_an_input_or_a_constant_keeps_a_node() -> None:
    text = "g (float[B, 4] x) => (float[B, 4] y, float[2] z) { y = Identity(x) z = Add(c, c) }"
    result, after = simplified(text, {"c": normal(2)})
    assert after == {"Identity": 1, "Add": 1}
    assert [o.name for o in result.model.graph.output] == ["y", "z"]


def test_two_outputs_of_one_value() -> None:
    text = "g (float[B, 4] x) => (float[B, 4] y, float[B, 4] z) { a = Relu(x) y = Identity(a) z = Identity(a) }"
    assert simplified(text)[1] == {"Relu": 1, "Identity": 1}


def test_tensors_that_subgraphs_capture_keep_their_names() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) {
        a = Relu(x) b = Identity(a) u = Exp(x)
        y = If (c) <
            then_branch = t () => (float[4] p) { p = Neg(b) },
            else_branch = e () => (float[4] q) { q = Identity(u) }
        >
    }"""
    assert simplified(text)[1] == {"Relu": 1, "Exp": 1, "If": 1, "Neg": 1, "Identity": 1}


def test_a_branch_with_a_known_condition_takes_the_place_of_the_if() -> None:
    text = """g (float[N, 1, 4] x) => (float[N, 4] y) {
        s = Shape(x) d = Gather(s, one) c = Equal(d, one) a = Exp(x)
        r = If (c) <
            then_branch = t () => (float[N, 4] p) {
                axes = Constant<value_ints = [1]>() k = Neg(x) p = Squeeze(k, axes)
            },
            else_branch = e () => (float[N, 1, 4] q) { q = Identity(a) }
        >
        b = Add(r, r) m = Squeeze(a, axis) y = Add(b, m)
    }"""
    model = model_of(text, {"one": np.array(1, np.int64), "axis": np.array([1], np.int64)})
    result = simplify(model)
    assert result.ok
    assert dict(result.after) == {"Squeeze": 2, "Add": 2, "Exp": 1, "Neg": 1}


def test_initialisers_that_are_inputs_too_are_constants_before_ir_version_4() -> None:
    model = model_of("g (float[2, 4] x, float[4] k) => (float[2, 4] y) { e = Exp(k) y = Mul(x, e) }", {"k": normal(4)})
    model.ir_version = 3
    result = simplify(model)
    assert dict(result.after) == {"Mul": 1}
    assert result.ok
    assert [i.name for i in result.model.graph.input] == ["x"]


def test_functions_are_inlined() -> None:
    model = model_of(
        """g (float[2] x) => (float[2] y) { a = local.twice(x) y = local.twice(a) }
        <domain: "local", opset_import: ["" : 17]> twice (p) => (q) { i = Identity(p) q = Add(i, i) }"""
    )
    result = simplify(model)
    assert dict(result.after) == {"Add": 2}
    assert result.ok


def test_random_nodes_are_never_merged_or_folded() -> None:
    text = """g (float[2] x) => (float[2] y) {
        a = RandomNormal<shape = [2]>() b = RandomNormal<shape = [2]>() c = Sub(a, b) y = Add(x, c)
    }"""
    result = simplify(model_of(text), verify=False)
    assert dict(result.after)["RandomNormal"] == 2

"""What a model leaves undefined: rows behind the lengths of sequences, and equal numbers that are normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.comparing import parts as parts_module
from ppuc.compiler.comparing.undefined import undefined_elements
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.oracle import Oracle
from tests.support.onnx_text import model_of

TINY = "ppu-tiny"


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def verified(model: onnx.ModelProto, inputs: dict[str, Any], precision: str = "model", **how: Any) -> Any:
    return ppuc.verify(ppuc.compile(model, TINY, precision), inputs, **how)


# Sequences of unequal lengths.

MS = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>'


def prompts(behind: str = "") -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Prompts of 6 and 4 tokens, padded to 6; `behind` computes z[2, 6, 64] from the attention's y."""
    text = f"""g (float[2, 6, 64] q, float[2, 6, 32] k, float[2, 6, 32] v, int32[2] sl, int32 tl)
        => (float[2, 6, 64] {"z" if behind else "y"}, float[2, 2, 6, 16] pk, float[2, 2, 6, 16] pv) {{
        y, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , sl, tl)
        {behind} }}"""
    model = onnx.parser.parse_model(MS + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(draws(64, 64, seed=9) / 8, "W"))
    lengths = {"sl": np.array([5, 3], np.int32), "tl": np.array(6, np.int32)}
    return model, {"q": draws(2, 6, 64), "k": draws(2, 6, 32, seed=1), "v": draws(2, 6, 32, seed=2), **lengths}


@pytest.mark.parametrize("behind", ["", "m = MatMul(y, W) t = Tanh(m) z = Add(t, y)"])
def test_rows_behind_a_length_are_not_compared(behind: str) -> None:
    model, inputs = prompts(behind)
    program = ppuc.compile(model, TINY, values=inputs)
    found = ppuc.verify(program, inputs, layers=True)
    assert found.ok
    assert found.outputs[0].note.startswith("128 of 768 elements are undefined")
    assert all(c.sqnr_db > 90 for c in (*found.outputs, *found.layers))


@pytest.mark.parametrize(("row", "ok"), [(3, False), (4, True), (5, True)])
def test_rows_within_a_length_have_to_agree(monkeypatch: pytest.MonkeyPatch, row: int, ok: bool) -> None:
    model, inputs = prompts("m = MatMul(y, W) z = Tanh(m)")
    program, right = ppuc.compile(model, TINY, values=inputs), CompiledProgram.run

    def wrong(self: CompiledProgram, *arguments: Any, **options: Any) -> Any:
        result = right(self, *arguments, **options)
        outputs = {n: a.copy() for n, a in result.outputs.items()}
        outputs["z"][1, row] += 1
        return parts_module.replace(result, outputs=outputs)

    monkeypatch.setattr(CompiledProgram, "run", wrong)
    assert ppuc.verify(program, inputs).ok == ok


def test_what_is_undefined_is_found_behind_the_op_too() -> None:
    model, inputs = prompts("m = MatMul(y, W) t = ReduceSum <keepdims = 1> (m, axes) z = Add(m, t)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    found = undefined_elements(model, inputs, Oracle(model).run(inputs))
    assert not found["z"][0].any()
    assert found["z"][1].all()  # the sum over tokens reads those behind the length
    short, rest = prompts()
    rest["sl"] = np.array([5, 5], np.int32)
    assert undefined_elements(short, rest, Oracle(short).run(rest)) == {}


NORMALISED = (
    "g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y) { h = Mul(x, k) n = MeanVarianceNormalization(h) y = Tanh(n) }"
)


def equal_rows(number: float, *channels: int) -> dict[str, np.ndarray]:
    """Images whose given channels have one number everywhere."""
    x = draws(2, 3, 4, 4)
    x[:, list(channels)] = number
    return {"x": x}


@pytest.mark.parametrize("number", [0.0, 2.0, 1.7])
def test_equal_numbers_are_not_compared_where_they_are_normalised(number: float) -> None:
    """ONNX Runtime divides 0 by 0."""
    model = model_of(NORMALISED, {"k": np.array(1, np.float32)})
    found = verified(model, equal_rows(number, 1), layers=True)
    assert found.verdict == "ok"
    assert found.outputs[0].sqnr_db > 90
    assert found.outputs[0].note.startswith("32 of 96 elements are undefined")
    none = verified(model, equal_rows(number, 0, 1, 2))
    assert (none.verdict, none.outputs[0].unproven) == ("unproven", "the model leaves all elements undefined")
    assert verified(model, equal_rows(number)).outputs[0].note == ""


def test_rows_of_other_numbers_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    program, right = ppuc.compile(model_of(NORMALISED, {"k": np.array(1, np.float32)}), TINY), CompiledProgram.run

    def wrong(self: CompiledProgram, *arguments: Any, **options: Any) -> Any:
        result = right(self, *arguments, **options)
        return parts_module.replace(result, outputs={n: -a for n, a in result.outputs.items()})

    monkeypatch.setattr(CompiledProgram, "run", wrong)
    assert ppuc.verify(program, equal_rows(2.0, 1)).verdict == "wrong"


def test_nan_of_the_inputs_is_compared() -> None:
    inputs = equal_rows(2.0, 1)
    inputs["x"][0, 0, 0, 0] = np.nan
    model = model_of(NORMALISED, {"k": np.array(1, np.float32)})
    assert undefined_elements(model, inputs, Oracle(model).run(inputs)) == {}


ATTENTION = "y, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , sl, tl)"
PADDED = "float[2, 6, 64] q, float[2, 6, 32] k, float[2, 6, 32] v, int32[2] sl, int32 tl"
FUNCTION = f"""<domain: "local", opset_import: ["com.microsoft" : 1]> att (q, k, v, sl, tl) => (y) {{ {ATTENTION} }}"""
INSIDE = {
    "function": ("a = local.att(q, k, v, sl, tl)", FUNCTION),
    "function in a function": (
        "a = local.outer(q, k, v, sl, tl)",
        """<domain: "local", opset_import: ["" : 18, "local" : 1]> outer (q, k, v, sl, tl) => (y) {
        w = local.att(q, k, v, sl, tl) y = Neg(w) }"""
        + FUNCTION,
    ),
    "branch": (
        f"""b = ReduceMax <keepdims = 0>(q) c = Greater(b, zero) a = If(c) <
        then_branch = t () => (float[2, 6, 64] y) {{ {ATTENTION} }},
        else_branch = e () => (float[2, 6, 64] n) {{ n = Neg(q) }}>""",
        "",
    ),
    "loop": (
        f"""a = Loop(three, , q) <body = l (int64 i, bool c, float[2, 6, 64] h) => (bool d, float[2, 6, 64] y) {{
        d = Identity(c) {ATTENTION.replace("(q,", "(h,")} }}>""",
        "",
    ),
}


@pytest.mark.parametrize("name", list(INSIDE))
def test_rows_behind_a_length_are_found_in_functions_and_bodies(name: str) -> None:
    nodes, functions = INSIDE[name]
    imports = MS.replace("]", ', "local" : 1]')
    text = f"{imports} g ({PADDED}) => (float[2, 6, 64] z) {{ {nodes} m = MatMul(a, W) z = Tanh(m) }} {functions}"
    model = onnx.parser.parse_model(text)
    weights = {"W": draws(64, 64, seed=9) / 8, "zero": np.array(0, np.float32), "three": np.array(3)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items() if n in text)
    _, inputs = prompts()
    found = ppuc.verify(ppuc.compile(model, TINY, values=inputs), inputs)
    assert found.ok
    assert found.outputs[0].sqnr_db > 90
    places = undefined_elements(model, inputs, Oracle(model).run(inputs))["z"]
    assert not places[0].any()
    assert not places[1, :4].any()
    assert places[1, 4:].all()

"""If, Loop and Scan while importing: unrolled where trips are known, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from tests.support.against_onnxruntime import F32_STEP, both, floats
from tests.support.onnx_text import model_of

TRIPS = {"m": np.array(3, np.int64), "yes": np.array(True), "no": np.array(False)}


def agree(model: onnx.ModelProto, **feeds: np.ndarray) -> None:
    ours, theirs = both(model, feeds)
    for got, want in zip(ours, theirs, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=8 * F32_STEP, atol=8 * F32_STEP)


@pytest.mark.parametrize(("m", "c"), [("m", ""), ("m", "yes"), ("m", "no"), ("", "yes")])
def test_loops_with_known_trips(m: str, c: str) -> None:
    """Carried values, values of the trip's number, outer tensors and stacked results; without a trip count the body's
    own condition ends it."""
    text = f"""
    g (float[2] x) => (float[2] y{"" if c == "no" else ", float[k, 2] s"}) {{
      y{"" if c == "no" else ", s"} = Loop ({m}, {c}, x) <body = l (int64 i, bool k, float[2] v)
          => (more, w{"" if c == "no" else ", t"}) {{
        four = Constant<value = int64 {{4}}> ()
        more = Less(i, four)
        f = Cast<to = 1>(i)
        t = Add(v, f)
        w = Mul(t, x)
      }}>
    }}"""
    agree(model_of(text, TRIPS), x=np.array([0.5, -1.5], np.float32))


def test_a_condition_that_turns_false_ends_the_loop() -> None:
    text = """
    g (float[2] x) => (float[2] y) {
      y = Loop (m, yes, x) <body = l (int64 i, bool k, float[2] v) => (more, w) {
        one = Constant<value = int64 {1}> ()
        more = Less(i, one)
        w = Add(v, v)
      }>
    }"""
    agree(model_of(text, TRIPS), x=np.array([0.5, -1.5], np.float32))


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("prepend", [0, 1])
@pytest.mark.parametrize("axes", [(0, 0), (1, 1), (-1, -1)])
def test_scans(backward: int, prepend: int, axes: tuple[int, int]) -> None:
    model = model_of(
        f"""
    g (float[4] h, float[4, 4] x) => (float[4] y, float[a, b] z) {{
      y, z = Scan <num_scan_inputs = 1, scan_input_axes = [{axes[0]}], scan_output_axes = [{axes[1]}],
                   scan_input_directions = [{backward}], scan_output_directions = [{prepend}],
                   body = l (float[4] s, float[4] e) => (float[4] t, float[4] o) {{ t = Add(s, e) o = Mul(t, s) }}>
             (h, x)
    }}"""
    )
    agree(model, h=floats(4), x=floats(4, 4))


def test_nested_loops_share_outer_tensors() -> None:
    text = """
    g (float[2] x) => (float[2] y) {
      y = Loop (m, , x) <body = l (int64 i, bool k, float[2] v) => (k1, w) {
        k1 = Identity(k)
        w = Loop (i, , v) <body = n (int64 j, bool q, float[2] u) => (q1, r) { q1 = Identity(q) r = Add(u, x) }>
      }>
    }"""
    agree(model_of(text, TRIPS), x=np.array([0.5, -1.5], np.float32))


def test_a_loop_without_trips_gives_what_it_was_given() -> None:
    text = """g (float[2] x) => (float[2] y) {
      z = Neg(x)
      y = Loop (zero, , z) <body = l (int64 i, bool k, float[2] v) => (k1, w) { k1 = Identity(k) w = Exp(v) }> }"""
    agree(model_of(text, {"zero": np.array(0, np.int64)}), x=np.array([0.5, -1.5], np.float32))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("(n, , x)", "its trip count is computed at run time"),
        ("(, c, x)", "its condition is computed at run time"),
        ("(many, , x)", "it has more than 10000 trips"),
        ("(, , x)", "it never ends"),
    ],
)
def test_loops_that_are_not_unrolled(call: str, reason: str) -> None:
    text = f"""g (float[2] x, int64 n, bool c) => (float[2] y) {{
      y = Loop {call} <body = l (int64 i, bool k, float[2] v) => (k1, w) {{ k1 = Identity(k) w = Add(v, x) }}> }}"""
    with pytest.raises(ModelError, match=reason):
        load_model(model_of(text, {"many": np.array(10**6, np.int64)}))


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_without_condition_does_not_ask_its_body(known: bool) -> None:
    """As the specification has it, whether it is unrolled or the host's."""
    text = f"""g (float[2] x{"" if known else ", int64 n"}) => (float[2] y) {{
      y = Loop ({"six" if known else "n"}, , x) <body = l (int64 i, bool k, float[2] v) => (more, w) {{
        more = Less(i, i)
        w = Add(v, v)
      }}> }}"""
    program = ppuc.compile(model_of(text, {"six": np.array(6)}), "ppu-tiny")
    feeds = {"x": np.ones(2, np.float32)} | ({} if known else {"n": np.array(6)})
    assert program.run(feeds).outputs["y"].tolist() == [64, 64]


def test_a_loop_that_only_data_can_end_runs_on_the_host() -> None:
    text = """g (float[2] x) => (float[2] y) {
      h = Neg(x)
      d = Loop (, yes, h) <body = l (int64 i, bool k, float[2] v) => (more, w) {
        w = Sub(v, one)
        s = ReduceMax<keepdims = 0>(w)
        more = Greater(s, zero)
      }>
      y = Add(d, h)
    }"""
    model = model_of(text, {**TRIPS, "one": np.float32([1, 1]), "zero": np.array(0, np.float32)})
    program = ppuc.compile(model, "ppu-tiny")
    assert program.plan is not None
    assert [n.node for n in program.plan.nodes] == ["Loop_1"]
    assert program.plan.nodes[0].reason.startswith("Loop (its condition is computed at run time); without products")
    x = np.array([-2.5, 0.25], np.float32)
    np.testing.assert_array_equal(program.run({"x": x}).outputs["y"], -2 * x - 3)


def test_data_that_a_branch_depends_on_is_not_fixed() -> None:
    """A program made for one picture is of no use: the branch goes to the host instead."""
    text = """g (float[32] x) => (float[32] y) {
        sum = ReduceSum<keepdims = 0>(x)
        zero = Constant<value_float = 0.0>()
        positive = Greater(sum, zero)
        y = If(positive) <then_branch = t () => (float[32] a) { a = Neg(x) },
                         else_branch = e () => (float[32] b) { b = Abs(x) }>
    }"""
    x = np.linspace(-1, 2, 32, dtype=np.float32)
    model = model_of(text)
    program = ppuc.compile(model, values={"x": x})
    assert not program.fixed
    assert program.plan is not None
    np.testing.assert_array_equal(program.run({"x": x}).outputs["y"], -x)
    np.testing.assert_array_equal(program.run({"x": -x}).outputs["y"], np.abs(x))

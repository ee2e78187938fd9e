"""Kernels of several products over the same rows equal the kernels that they are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ppuc
from ppuc.compiler.lowering.kernels.back_to_back import BackToBackLowering
from ppuc.compiler.lowering.kinds import lower_group
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Mma, Store
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.reduction import CumsumAttrs
from ppuc.ir.rewrite import without_dead_ops
from ppuc.ir.types import DType
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from tests.support.joined_kernels import checked, join_always, kinds
from tests.support.onnx_text import model_of
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

TINY, LARGE = load_target("ppu-tiny"), load_target("zhenwu-m890")


def made(module: Module) -> list[Op]:
    """The groups of several products."""
    return [op for op in module.graph.ops if op.name == "group" and op.attrs.kind == "back-to-back"]  # type: ignore[attr-defined]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are joined wherever a kernel exists."""
    join_always(monkeypatch)


def linear(s: Sketch, x: Value, outputs: int) -> Value:
    k = x.type.dims[-1]
    return s.op("add", s.matmul(x, s.weight(k, outputs, scale=1 / math.sqrt(k))), s.weight(outputs))


def gelu(s: Sketch, x: Value) -> Value:
    inner = s.op("add", s.op("erf", s.op("mul", x, s.number(0.5**0.5))), s.number(1.0))
    return s.op("mul", s.op("mul", x, inner), s.number(0.5))


def mlp(s: Sketch, x: Value, wide: int) -> Value:
    """x + MLP(norm(x))."""
    width = x.type.dims[-1]
    return s.op("add", x, linear(s, gelu(s, linear(s, s.layer_norm(x), wide)), width))


def windows(s: Sketch, x: Value, side: int) -> Value:
    """[n, (h side) (w side), c] -> [n h w, side^2, c] for square images."""
    n, tokens, c = x.type.dims
    count = math.isqrt(tokens) // side
    y = s.transpose(s.reshape(x, n, count, side, count, side, c), 0, 1, 3, 2, 4, 5)
    return s.reshape(y, n * count * count, side * side, c)


def image(s: Sketch, x: Value, n: int, side: int) -> Value:
    """The inverse of `windows`."""
    _, points, c = x.type.dims
    count = math.isqrt(x.type.dims[0] // n)
    y = s.transpose(s.reshape(x, n, count, count, side, side, c), 0, 1, 3, 2, 4, 5)
    return s.reshape(y, n, count * count * points, c)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize(("rows", "width", "wide"), [(5, 16, 32), (49, 48, 192), (130, 32, 80)])
def test_a_block_of_a_transformer_after_its_attention(
    target: Target, precision: str, rows: int, width: int, wide: int
) -> None:
    """Projection, residual, norm, MLP, residual, norm, and the product of the next attention."""
    s = Sketch()
    a, x = s.param(1, rows, width), s.param(1, rows, width)
    x = mlp(s, s.op("add", linear(s, a, width), x), wide)
    module = checked(s, target, linear(s, s.layer_norm(x), 3 * width), x, precision=precision)
    if target is LARGE:  # on the smallest target l1 has no room for some
        assert made(module)
    if target is LARGE and precision == "bf16":
        assert kinds(module).count("matmul") == 0


@pytest.mark.usefixtures("always")
def test_rows_in_another_order() -> None:
    """Windows of an image are the same rows: reads and writes follow the transposes."""
    s = Sketch()
    x = s.param(2, 64, 32)
    y = windows(s, s.layer_norm(x), 4)
    qkv = s.transpose(s.reshape(linear(s, y, 96), 8, 16, 3, 2, 16), 2, 0, 3, 1, 4)
    z = image(s, linear(s, s.param(8, 16, 32), 32), 2, 4)
    out = mlp(s, s.op("add", z, x), 64)
    module = checked(s, LARGE, qkv, out, precision="bf16")
    joint = made(module)
    assert any(op.results[0].type.dims[0] == 3 for op in joint)
    assert any(sum(o.name == "matmul" for o in op.body.ops) == 3 for op in joint if op.body is not None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize(("size", "stride"), [(6, 1), (9, 2)])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_a_window_and_the_products_that_follow(target: Target, size: int, stride: int, precision: str) -> None:
    """RepViT's block, and the end of an inverted residual with the start of the next."""
    s = Sketch()
    x = s.op("relu", s.conv(s.param(2, 3, size, size + 2), 32, 3))
    y = s.op("add", s.conv(x, 32, 3, stride, groups=32), s.weight(32, 1, 1))
    wide = gelu(s, s.op("add", s.conv(y, 64, 1), s.weight(64, 1, 1)))
    y = s.op("add", y, s.op("add", s.conv(wide, 32, 1), s.weight(32, 1, 1)))
    module = checked(s, target, s.op("neg", y), precision=precision)
    assert any(o.name == "conv" for op in made(module) for o in (op.body.ops if op.body is not None else ()))


@pytest.mark.usefixtures("always")
def test_what_others_read_is_written_once() -> None:
    s = Sketch()
    x = linear(s, s.param(1, 40, 32), 32)
    y = linear(s, s.layer_norm(x), 48)
    module = checked(s, LARGE, y, x, s.op("tanh", s.reshape(x, 40 * 32)))
    (joint,) = made(module)
    assert len(joint.results) == 2


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("head", ["norm", "window", "product", "two results"])
def test_units_that_divide_columns_store_once_what_all_of_them_compute(head: str, precision: str) -> None:
    """The rows are few: units share them, and each computes the columns of its own."""
    s = Sketch()
    if head == "window":
        image = s.op("relu", s.conv(s.param(1, 3, 6, 6), 128, 3))
        x = s.op("add", s.conv(image, 128, 3, groups=128), s.weight(128, 1, 1))
        y = s.op("relu", s.op("add", s.conv(x, 512, 1), s.weight(512, 1, 1)))
        results = [y, s.op("neg", x)]
    else:
        x = s.param(1, 24, 64)
        x = s.op("add", linear(s, x, 64) if head == "product" else x, s.param(1, 24, 64))
        norm = s.layer_norm(x)
        results = [linear(s, norm, 640), x, *([norm] if head == "two results" else [])]
    module = checked(s, LARGE, *results, precision=precision)
    statements = [(loops, stmt) for kernel in module.kernels for loops, stmt in kernel.statements()]
    assert any(isinstance(stmt, Store) and any(loop.var == "first" for loop in loops) for loops, stmt in statements)


@pytest.mark.usefixtures("always")
def test_weights_larger_than_l1_are_loaded_in_parts() -> None:
    small = override(override(LARGE, "l1.bytes=98304"), "acc.bytes=98304")
    s = Sketch()
    module = checked(s, small, mlp(s, s.param(1, 48, 64), 512), precision="bf16")
    assert made(module)


@pytest.mark.usefixtures("always")
def test_products_of_several_chunks_are_issued_before_the_next_product() -> None:
    s = Sketch()
    module = checked(s, LARGE, mlp(s, s.param(1, 48, 64), 512), precision="bf16")
    assert any(isinstance(stmt, Mma) and stmt.continues for k in module.kernels for _, stmt in k.statements())


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Sketch, list[Value]]:
    """Rows through a random sequence of norms, products, residuals and turns; some values are results, too."""
    s = Sketch(draw(st.integers(0, 99)))
    batch, side = draw(st.sampled_from([(1, 4), (2, 2), (1, 6)]))
    width = draw(st.sampled_from([16, 24, 48]))
    x: Value = s.param(batch, (2 * side) ** 2, width)
    results, old = [], x
    for _ in range(draw(st.integers(1, 5))):
        step = draw(st.sampled_from(["norm", "linear", "mlp", "residual", "turn", "gelu", "scale"]))
        if step == "norm":
            x = s.layer_norm(x)
        elif step == "linear":
            x = linear(s, x, draw(st.sampled_from([16, 40, 64])))
        elif step == "mlp":
            x = mlp(s, x, draw(st.sampled_from([32, 96])))
        elif step == "residual" and old.type == x.type:
            x = s.op("add", x, old)
        elif step == "turn" and x.type.dims[1] == (2 * side) ** 2:
            x = image(s, linear(s, windows(s, x, side), x.type.dims[-1]), batch, side)
        elif step == "gelu":
            x = gelu(s, x)
        elif step == "scale":
            x = s.op("mul", x, s.op("tanh", s.param(batch, 1, x.type.dims[-1])))
        if draw(st.booleans()):
            old = x
        if draw(st.integers(0, 3)) == 0 and all(r is not x for r in results) and x not in s.params:
            results.append(x)
    last = linear(s, x, draw(st.sampled_from([32, 192])))
    return s, [last, *results]


@pytest.mark.usefixtures("always")
@given(bodies(), st.sampled_from([TINY, LARGE]), st.sampled_from(["model", "bf16"]))
@settings(max_examples=25)
def test_any_sequence_of_stages(body: tuple[Sketch, list[Value]], target: Target, precision: str) -> None:
    s, results = body
    checked(s, target, *results, precision=precision)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(2, 24, 5, 6), (1, 20, 7, 1), (3, 17, 1, 8)])
def test_channels_that_are_not_last_are_what_a_product_sums(shape: tuple[int, ...], target: Target) -> None:
    """Scaled in the layout in which they are stored, before a transpose, with another operand of that shape."""
    s = Sketch()
    n, c, high, wide = shape
    x = s.op("add", s.op("mul", s.param(*shape), s.number(3.0)), s.param(*shape))
    y = s.matmul(s.transpose(x, 0, 2, 3, 1), s.weight(c, 16, scale=0.2))
    assert y.type.dims == (n, high, wide, 16)
    module = checked(s, target, s.op("relu", y), precision="model")
    assert kinds(module) == ["back-to-back"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
def test_features_in_another_order_are_written(target: Target) -> None:
    """Weights that are parameters cannot take the permutation over."""
    s = Sketch()
    h = s.op("relu", s.matmul(s.param(1, 40, 32), s.param(32, 32)))
    turned = s.reshape(s.transpose(s.reshape(h, 1, 40, 4, 8), 0, 1, 3, 2), 1, 40, 32)
    checked(s, target, s.matmul(turned, s.param(32, 48)))
    s = Sketch()
    y = linear(s, s.param(1, 40, 16), 16)
    z = linear(s, y, 16)
    turned = s.reshape(s.transpose(s.reshape(y, 1, 40, 4, 4), 0, 1, 3, 2), 1, 40, 16)
    checked(s, target, s.op("add", z, turned))


@pytest.mark.usefixtures("always")
def test_a_product_of_each_head_is_its_own() -> None:
    s = Sketch()
    heads = s.transpose(s.reshape(linear(s, s.param(1, 40, 32), 64), 40, 4, 16), 1, 0, 2)
    back = s.reshape(s.transpose(linear(s, heads, 16), 1, 0, 2), 1, 40, 64)
    checked(s, LARGE, linear(s, back, 24))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("heads", [1, 4])
def test_a_scale_of_each_row_and_heads_stored_apart(heads: int) -> None:
    """As where rows are quantized with scales of their own: a tile of scales has fewer axes than one of heads."""
    s = Sketch()
    x = s.layer_norm(s.param(1, 40, 32))
    scale = s.op("add", s.reduce("max", s.op("abs", x), 2), s.number(1.0))
    y = s.op("mul", s.matmul(s.op("div", x, scale), s.weight(32, 64)), scale)
    module = checked(s, LARGE, s.transpose(s.reshape(y, 1, 40, heads, 64 // heads), 0, 2, 1, 3))
    assert bool(made(module)) == (heads == 1)


@pytest.mark.usefixtures("always")
def test_kernels_that_would_read_one_another_stay_apart() -> None:
    """Two streams, each of which reads a mean over the rows of the other."""
    s = Sketch()
    one, other = (linear(s, s.param(1, 40, 32), 32) for _ in range(2))
    norms = [s.layer_norm(x) for x in (one, other)]
    means = [linear(s, s.mean(s.op("tanh", x), 1), 48) for x in (one, other)]
    results = [s.op("add", s.matmul(n, s.weight(32, 48)), m) for n, m in zip(norms, reversed(means), strict=True)]
    checked(s, LARGE, *results, precision="bf16")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("shape", [(3, 9), (9, 3)])
def test_an_image_of_one_row(shape: tuple[int, int]) -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(2, 3, *shape), 16, 3))
    attrs = ConvAttrs((1, 1), (0, 0), (0, 0), (1, 1), 16)
    y = s.op("conv", x, s.weight(16, 1, 3, 3, scale=0.3), attrs=attrs)
    checked(s, LARGE, s.op("neg", s.conv(y, 24, 1)))


@pytest.mark.usefixtures("always")
def test_repeated_features_are_summed_as_often_as_they_are_repeated() -> None:
    s = Sketch()
    x = s.op("tanh", s.expand(s.param(1, 40, 1), 1, 40, 32))
    checked(s, LARGE, linear(s, s.op("sub", x, s.reduce("sum", x, 2)), 16))
    s = Sketch()
    checked(s, LARGE, linear(s, s.op("relu", linear(s, s.expand(s.param(1, 40, 1), 1, 40, 32), 16)), 16))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_means_of_large_images_do_not_overflow(precision: str) -> None:
    """They are taken by rows, and what is between the two kernels is stored in 16 bits."""
    s = Sketch()
    x = s.param(1, 8, 64, 1024)
    y = linear(s, s.reshape(s.mean(s.op("relu", s.conv(x, 8, 1)), 2, 3), 1, 8), 16)
    feeds = {x.name: np.full(x.type.dims, 200, np.float32)}
    module = compiled(module_of(s.graph(y), precision=precision), LARGE, feeds, PIPELINE)
    assert any(r.type.dims == (1, 64, 1, 8) for op in module.graph.ops for r in op.results)


def refused(graph: Graph, match: str) -> None:
    names = {v.name: v.name for v in (*graph.params, *graph.results)}
    with pytest.raises(NotFusable, match=match):
        BackToBackLowering("k", graph, names, (), LARGE)


def test_ops_that_leave_their_rows_are_refused() -> None:
    s = Sketch()
    x = s.param(1, 16, 16, dtype=DType.BF16)
    refused(s.graph(s.op("relu", x)), "has no product")
    y = s.matmul(x, s.param(16, 16, dtype=DType.BF16))
    turned = s.transpose(y, 0, 2, 1)
    for result, why in (
        (s.op("add", y, turned), "combines rows with features"),
        (
            s.op("sub", s.reshape(y, 1, 16, 16, 1), s.reshape(y, 1, 16, 1, 16)),
            "every row, or feature, with every other",
        ),
        (
            s.op("sub", s.reshape(y, 1, 1, 16, 16), s.reshape(y, 1, 16, 1, 16)),
            "every row, or feature, with every other",
        ),
        (s.reduce("sum", y, 1), "a reduction over rows"),
        (s.matmul(x, s.param(16, 1, dtype=DType.BF16)), "single column"),
        (s.matmul(turned, s.param(16, 8, dtype=DType.BF16)), "sums over rows"),
        (s.op("cumsum", y, attrs=CumsumAttrs(1, False, False)), "keep to its rows"),
    ):
        refused(without_dead_ops(s.graph(result)), why)


def test_the_kind_lowers_by_name() -> None:
    s = Sketch()
    x, w, v = (s.param(*shape, dtype=DType.BF16) for shape in ((64, 32), (32, 32), (32, 48)))
    h = s.op("cast", s.op("relu", s.matmul(x, w)), attrs=CastAttrs(DType.BF16))
    graph = s.graph(s.matmul(h, v))
    names = {p.name: p.name for p in (*graph.params, *graph.results)}
    kernel, _ = lower_group("back-to-back", "k", graph, names, (), LARGE).finish()
    assert sum(isinstance(stmt, Mma) for _, stmt in kernel.statements()) >= 2


def test_names_of_programs_do_not_collide() -> None:
    """The stages of a kernel have numbered programs; so have kernels that begin with the same node."""
    text = """p (float[2,7] x) => (float[2,3] y, float[2,2] u, float[2,2] v, float[7,18] z) {
        t = Transpose <perm = [1, 0]> (x)  u = MatMul(x, t)  v = Mul(u, d)  y = MatMul(u, c)  z = MatMul(t, q)
    }"""
    constants = {"c": np.ones((2, 3), np.float32), "d": np.ones(1, np.float32), "q": np.ones((2, 18), np.float32)}
    model = model_of(text, constants)
    for node, name in zip(model.graph.node, ["Turn_0", "Product_1", "Mul_2", "Product_4", "Product_11"], strict=True):
        node.name = name
    names = [v.name for v in ppuc.compile(model, target="zhenwu-m890", precision="fp32").artifact.vectors]
    assert len(set(names)) == len(names)

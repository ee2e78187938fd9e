"""Attention as the first stage of a kernel of products over the same rows.

`checked` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.lowering.kernels.back_to_back import BackToBackLowering
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Load, Mma
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.joined_kernels import checked, join_always
from tests.support.pass_graphs import Sketch

TINY, LARGE = load_target("ppu-tiny"), load_target("zhenwu-m890")
TARGETS = [LARGE, load_target("zhenwu-810e"), load_target("ppu-edge"), TINY]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are joined wherever a kernel exists."""
    join_always(monkeypatch)


def joined(module: Module) -> list[Op]:
    """The groups in which attention is one of several stages."""
    groups = [op for op in module.graph.ops if op.body is not None and op.attrs.kind == "back-to-back"]  # type: ignore[attr-defined]
    return [op for op in groups if op.body is not None and any(o.name == "attention" for o in op.body.ops)]


def linear(s: Sketch, x: Value, outputs: int) -> Value:
    k = x.type.dims[-1]
    return s.op("add", s.matmul(x, s.weight(k, outputs, scale=1 / math.sqrt(k))), s.weight(outputs))


def attention(
    s: Sketch, batch: int, heads: int, m: int, width: int, *, groups: int = 0, keys: int = 0, columns: int = 0,
    mask: tuple[int, ...] | None = None, causal: bool = False, packed: bool = False,
) -> Value:  # fmt: skip
    """[batch, m, heads * columns]: the merged heads of attention; `packed` operands are parts of one product."""
    groups, keys, columns = groups or heads, keys or m, columns or width
    if packed:
        whole = s.reshape(s.op("tanh", s.param(batch, m, 3 * heads * width)), batch, m, 3, heads, width)
        parts = s.transpose(whole, 2, 0, 3, 1, 4)
        q, k, v = (
            s.reshape(s.slice(parts, [i, 0, 0, 0, 0], [1, batch, heads, m, width]), batch, heads, m, width)
            for i in range(3)
        )
    else:
        q = s.op("tanh", s.param(batch, heads, m, width))
        k, v = s.op("tanh", s.param(batch, groups, keys, width)), s.op("tanh", s.param(batch, groups, keys, columns))
    operands = [q, k, v, *([s.param(*mask)] if mask is not None else [])]
    y = s.op("attention", *operands, attrs=AttentionAttrs(1 / math.sqrt(width), causal))
    return s.reshape(s.transpose(y, 0, 2, 1, 3), batch, m, heads * columns)


CASES = {
    "heads": {"batch": 2, "heads": 3, "m": 20, "width": 24},
    "one head": {"batch": 1, "heads": 1, "m": 40, "width": 16},
    "a head of a row": {"batch": 5, "heads": 2, "m": 1, "width": 16, "keys": 9},
    "grouped": {"batch": 1, "heads": 6, "m": 33, "width": 8, "groups": 2},
    "one group": {"batch": 2, "heads": 4, "m": 17, "width": 16, "groups": 1},
    "cross": {"batch": 2, "heads": 2, "m": 21, "width": 16, "keys": 13, "columns": 32},
    "packed": {"batch": 2, "heads": 4, "m": 49, "width": 24, "packed": True},
    "bias": {"batch": 3, "heads": 2, "m": 19, "width": 16, "mask": (1, 2, 19, 19)},
    "bias of windows": {"batch": 4, "heads": 2, "m": 16, "width": 16, "mask": (4, 1, 16, 16)},
    "padding": {"batch": 2, "heads": 2, "m": 18, "width": 16, "mask": (2, 1, 1, 18)},
    "mask of rows": {"batch": 2, "heads": 2, "m": 18, "width": 16, "mask": (18, 1)},
    "causal": {"batch": 2, "heads": 2, "m": 37, "width": 16, "causal": True},
    "causal with a past": {"batch": 1, "heads": 2, "m": 20, "width": 16, "keys": 33, "causal": True},
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_projection(case: str, precision: str, target: Target) -> None:
    s = Sketch()
    x = attention(s, **CASES[case])  # type: ignore[arg-type]
    module = checked(s, target, linear(s, x, 32), precision=precision)
    if target is LARGE:
        assert joined(module)


@pytest.mark.parametrize(
    ("heads", "mask", "fits"), [(9, True, True), (10, True, False), (11, False, True), (12, False, False)]
)
def test_more_heads_than_a_unit_has_rings_for_stay_apart(heads: int, mask: bool, fits: bool) -> None:
    """Also where joining is cheaper by its price."""
    s = Sketch()
    x = attention(s, 1, heads, 4, 16, mask=(1, heads, 4, 4) if mask else None)
    assert bool(joined(checked(s, LARGE, linear(s, x, 64), precision="bf16"))) == fits


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_a_block_of_a_transformer(target: Target, precision: str) -> None:
    """Attention, projection, residual, norm, MLP, residual."""
    s = Sketch()
    y = s.op("add", linear(s, attention(s, 1, 4, 30, 16), 64), s.param(1, 30, 64))
    wide = s.op("relu", linear(s, s.layer_norm(y), 96))
    module = checked(s, target, s.op("add", y, linear(s, wide, 64)), precision=precision)
    if target is LARGE and precision == "bf16":
        (joint,) = joined(module)
        assert joint.body is not None
        assert sum(o.name == "matmul" for o in joint.body.ops) == 3


@pytest.mark.usefixtures("always")
def test_windows_of_an_image() -> None:
    """The rows of the projection are those of attention in another order."""
    s = Sketch()
    y = s.reshape(attention(s, 4, 2, 16, 16, mask=(1, 2, 16, 16)), 2, 2, 4, 4, 32)
    image = s.reshape(s.transpose(y, 0, 2, 1, 3, 4), 1, 64, 32)
    module = checked(s, LARGE, s.op("add", linear(s, image, 32), s.param(1, 64, 32)), precision="bf16")
    assert joined(module)


@pytest.mark.usefixtures("always")
def test_ops_between_attention_and_its_projection() -> None:
    """A gate of the merged heads is applied to each head."""
    s = Sketch()
    x = s.op("mul", attention(s, 2, 3, 20, 16), s.op("sigmoid", s.param(2, 20, 48)))
    module = checked(s, LARGE, linear(s, s.op("mul", x, s.weight(48)), 32), precision="bf16")
    assert joined(module)


@pytest.mark.usefixtures("always")
def test_units_that_divide_the_columns_compute_all_heads() -> None:
    s = Sketch()
    module = checked(s, LARGE, linear(s, attention(s, 1, 2, 16, 32), 512), precision="bf16")
    (joint,) = joined(module)
    (kernel,) = [k for k in module.kernels if k.name == joint.attrs.kernel]  # type: ignore[attr-defined]
    assert kernel.units > 1


@settings(max_examples=12)
@given(
    st.sampled_from([LARGE, TINY]), st.sampled_from(["model", "bf16"]), st.integers(1, 3), st.integers(1, 5),
    st.integers(1, 2), st.integers(1, 50), st.integers(1, 40), st.integers(2, 33), st.integers(2, 40),
    st.sampled_from(["", "bias", "windows", "padding", "causal"]), st.booleans(),
)  # fmt: skip
def test_random_shapes(
    target: Target, precision: str, batch: int, groups: int, repeat: int, m: int, more: int, width: int, columns: int,
    kind: str, norm: bool,
) -> None:  # fmt: skip
    heads, keys = groups * repeat, m + more if kind == "causal" else more
    masks = {"bias": (1, heads, m, keys), "windows": (batch, 1, m, keys), "padding": (batch, 1, 1, keys)}
    with pytest.MonkeyPatch.context() as patch:
        join_always(patch)
        s = Sketch()
        x = attention(
            s, batch, heads, m, width, groups=groups, keys=keys, columns=columns, mask=masks.get(kind),
            causal=kind == "causal",
        )  # fmt: skip
        y = linear(s, x, 48)
        y = linear(s, s.op("relu", s.layer_norm(y)), 17) if norm else y
        checked(s, target, y, precision=precision)


def lowering(graph: Graph) -> BackToBackLowering:
    names = {v.name: v.name for v in (*graph.params, *graph.results)}
    return BackToBackLowering("k", graph, names, (), LARGE)


def small(s: Sketch, heads: int = 2, m: int = 16, width: int = 16) -> Value:
    """The merged heads of attention of three parameters."""
    q, k, v = (s.param(1, heads, m, width, dtype=DType.BF16) for _ in range(3))
    y = s.op("attention", q, k, v, attrs=AttentionAttrs(0.25))
    return s.reshape(s.transpose(y, 0, 2, 1, 3), 1, m, heads * width)


def test_every_head_multiplies_its_rows_of_the_weights() -> None:
    s = Sketch()
    graph = s.graph(s.matmul(small(s, heads=3), s.param(48, 32, dtype=DType.BF16)))
    kernel, _ = lowering(graph).lower().finish()
    products = [stmt for _, stmt in kernel.statements() if isinstance(stmt, Mma)]
    assert len(products) == 9
    assert [m.continues for m in products[-3:]] == [False, True, True]
    loads = [stmt for _, stmt in kernel.statements() if isinstance(stmt, Load)]
    assert len(loads) == 4  # all heads of q, k and v at once, and the weights


def test_what_has_no_such_kernel_is_refused() -> None:
    def refused(s: Sketch, result: Value, match: str) -> None:
        with pytest.raises(NotFusable, match=match):
            lowering(s.graph(result))

    s = Sketch()
    x = small(s)
    refused(s, s.matmul(s.op("sub", x, s.reduce("max", x, 2)), s.param(32, 8, dtype=DType.BF16)), "reduced, or read")
    s = Sketch()
    x = small(s)
    refused(s, s.op("add", s.matmul(x, s.param(32, 32, dtype=DType.BF16)), x), "read by others")
    s = Sketch()
    refused(s, s.matmul(small(s, heads=33), s.param(33 * 16, 8, dtype=DType.BF16)), "many heads")
    s = Sketch()
    q, k, v = (s.param(1, 2, 16, 16, dtype=DType.BF16) for _ in range(3))
    y = s.transpose(s.op("attention", q, k, v, attrs=AttentionAttrs(0.25)), 0, 2, 3, 1)
    refused(s, s.matmul(s.reshape(y, 1, 16, 32), s.param(32, 8, dtype=DType.BF16)), "another order")

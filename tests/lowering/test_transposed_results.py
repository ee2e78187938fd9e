"""Results of products that lie in memory in another order than their tiles: the vector engine transposes these."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.ir.graph import Value
from ppuc.ir.kernel import Store
from ppuc.ir.module import Module
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.joined_kernels import checked
from tests.support.pass_graphs import Sketch

TINY, LARGE = load_target("ppu-tiny"), load_target("zhenwu-m890")


def row_lengths(module: Module) -> list[int]:
    """Of the tile of every stored result, the elements along its last axis that are contiguous in memory."""
    found = []
    for kernel in module.kernels:
        shapes = {b.name: b.shape for b in kernel.buffers}
        views = {p.name: p.view for p in kernel.params}
        for _, stmt in kernel.statements():
            if isinstance(stmt, Store):
                moving = [i for i, index in enumerate(stmt.index) if f"${len(shapes[stmt.src]) - 1}" in str(index)]
                contiguous = bool(moving) and views[stmt.dst].strides[moving[0]] == 1
                found.append(shapes[stmt.src][-1] if contiguous else 1)
    return found


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_an_image_with_channels_first_is_written_in_rows(precision: str) -> None:
    s = Sketch()
    image = s.op("relu", s.conv(s.param(1, 3, 40, 64), 16, 3, 2))
    module = checked(s, LARGE, image, precision=precision)
    assert row_lengths(module)[-1] >= 16


def test_a_residual_with_channels_first_is_read_in_rows() -> None:
    s = Sketch()
    x = s.param(1, 24, 96)
    y = s.transpose(s.matmul(x, s.weight(96, 48)), 0, 2, 1)
    module = checked(s, LARGE, s.op("add", y, s.param(1, 48, 24)))
    assert row_lengths(module)[-1] >= 16


@st.composite
def products(draw: st.DrawFn) -> tuple[Sketch, Value]:
    """A product of odd sizes, what may follow it, and a transpose of its result."""
    s = Sketch(draw(st.integers(0, 99)))
    batch, m, k, n = (
        draw(st.integers(1, 3)),
        draw(st.integers(2, 70)),
        draw(st.integers(2, 40)),
        draw(st.integers(2, 70)),
    )
    y = s.matmul(s.param(batch, m, k), s.weight(k, n, scale=0.2))
    after = draw(st.sampled_from(["nothing", "bias", "softmax", "norm", "residual"]))
    if after == "bias":
        y = s.op("add", y, s.weight(n))
    elif after == "softmax":
        y = s.softmax(y)
    elif after == "norm" and n > 2:  # that of two elements is their order, which jumps where they are nearly equal
        y = s.layer_norm(y)
    elif after == "residual":
        y = s.op("add", y, s.transpose(s.param(batch, n, m), 0, 2, 1))
    return s, s.transpose(y, *draw(st.permutations(range(3))))


@given(products(), st.sampled_from([TINY, LARGE]), st.sampled_from(["model", "bf16"]))
@settings(max_examples=30)
def test_any_order_of_a_product(made: tuple[Sketch, Value], target: Target, precision: str) -> None:
    s, result = made
    checked(s, target, result, precision=precision)

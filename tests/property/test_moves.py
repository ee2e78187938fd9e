"""Chains of rolls, windows, shuffles and focus layers around products: ONNX Runtime, the importer, and the program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from ppuc.compiler.frontend.load import load_model
from ppuc.targets.description import load_target
from tests.support.against_onnxruntime import assert_agrees, floats
from tests.support.pass_graphs import module_of
from tests.support.whole_pipeline import compiled

TARGETS = ("ppu-tiny", "ppu-edge", "zhenwu-m890", "zhenwu-810e")
STEPS = 2.0**9
"""Allowed rounding errors: sums of 64 products, one after another."""


class Drawn:
    """An ONNX model being written down; `shape` is that of the last tensor."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.last = shape, "x"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.given = floats(*shape)

    def constant(self, array: np.ndarray | Sequence[int]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, shape: Sequence[int] = (), **attributes: object) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [*inputs], [name], name=name, **attributes))
        if shape:
            self.last, self.shape = name, (*shape,)
        return name

    def part(self, axis: int, start: int, stop: int, step: int = 1) -> str:
        bounds = (self.constant(np.array([n])) for n in (start, stop, axis, step))
        return self.node("Slice", self.last, *bounds)

    def roll(self, axis: int, by: int) -> None:
        size = self.shape[axis]
        parts = [self.part(axis, by % size, size), self.part(axis, 0, by % size)]
        self.node("Concat", *parts, shape=self.shape, axis=axis)

    def view(self, split: Sequence[int], perm: Sequence[int], shape: Sequence[int]) -> None:
        self.node("Reshape", self.last, self.constant(np.array(split)), shape=split)
        self.node("Transpose", self.last, shape=[split[p] for p in perm], perm=[*perm])
        self.node("Reshape", self.last, self.constant(np.array(shape)), shape=shape)

    def focus(self) -> None:
        n, h, w, c = self.shape
        parts = []
        for down in (0, 1):
            for across in (0, 1):
                shape, last = self.shape, self.last
                self.last = self.part(1, down, h, 2)
                parts.append(self.part(2, across, w, 2))
                self.shape, self.last = shape, last
        self.node("Concat", *parts, shape=(n, h // 2, w // 2, 4 * c), axis=3)

    def product(self, columns: int) -> None:
        k = self.shape[-1]
        weights = np.random.default_rng(k + columns).standard_normal((k, columns)) / np.sqrt(k)
        self.node("MatMul", self.last, self.constant(weights.astype(np.float32)), shape=(*self.shape[:-1], columns))

    def model(self) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", self.given.shape), (self.last, self.shape))
        ]
        graph = helper.make_graph(self.nodes, "moves", infos[:1], infos[1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def step(d: Drawn, name: str, number: int) -> None:
    """One step on [n, h, w, c]; one that does not fit the shape is left out."""
    n, h, w, c = d.shape
    side = 4 if number % 2 else 2
    if name == "roll":
        d.roll(1 + number % 3, 1 + number)
    elif name == "windows" and h % side == w % side == 0:
        d.view((n, h // side, side, w // side, side, c), (0, 1, 3, 2, 4, 5), (n * h * w // side**2, side, side, c))
    elif name == "image" and n % 4 == 0:
        d.view((n // 4, 2, 2, h, w, c), (0, 1, 3, 2, 4, 5), (n // 4, 2 * h, 2 * w, c))
    elif name == "shuffle" and c % 4 == 0:
        d.view((n, h, w, 4, c // 4), (0, 1, 2, 4, 3), d.shape)
    elif name == "focus" and h % 2 == w % 2 == 0 and c <= 16:
        d.focus()
    elif name == "flip":
        d.node("Identity", d.part(2, -1, -(2**31), -1), shape=d.shape)
    elif name == "product":
        d.product(16)
    elif name == "relu":
        d.node("Relu", d.last, shape=d.shape)


STEP = st.tuples(
    st.sampled_from(("roll", "roll", "windows", "image", "shuffle", "focus", "flip", "product", "relu")),
    st.integers(0, 6),
)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8, deadline=None)
@given(
    shape=st.sampled_from([(1, 8, 8, 16), (4, 4, 8, 8), (2, 12, 4, 12)]), steps=st.lists(STEP, min_size=2, max_size=7)
)
def test_any_chain_of_moves(shape: tuple[int, ...], steps: list[tuple[str, int]], target: str) -> None:
    d = Drawn(*shape)
    for name, number in steps:
        step(d, name, number)
    d.node("Neg", d.last, shape=d.shape)
    model = d.model()
    assert_agrees(model, {"x": d.given}, STEPS)
    graph = load_model(model).graph
    compiled(module_of(graph), load_target(target), {p.name: d.given for p in graph.params})

"""What programs and results look like at a prompt and in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import ppuc
from ppuc.ir.errors import UsageError
from tests.support.small_models import mlp

HOSTILE = "</td><script>alert(1)</script>"


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; collects the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile() -> onnx.ModelProto:
    """A model with markup in its names."""
    x, y = (helper.make_tensor_value_info(n + HOSTILE, TensorProto.FLOAT, [4, 4]) for n in "xy")
    node = helper.make_node("Exp", [x.name], [y.name], name=HOSTILE)
    graph = helper.make_graph([node], HOSTILE, [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("model", [mlp(), hostile()], ids=["mlp", "hostile"])
def test_texts_fit_a_screen_and_html_is_sound(model: onnx.ModelProto) -> None:
    dims = {"N": 40} if len(model.graph.node) > 1 else {}
    program = ppuc.compile(model, target="ppu-tiny", dims=dims)
    name = program.inputs[0].name
    inputs = {name: np.ones(program.inputs[0].type.dims, np.float32)}
    shown = (program, program.time(), program.run(inputs), program.time().profile, ppuc.verify(program, inputs))
    for thing in shown:
        assert type(thing).__name__ in repr(thing)
        assert len(repr(thing)) < 500
        assert "script" not in Balanced(thing._repr_html_()).tags


def test_rows_are_the_kernels() -> None:
    profile = ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 40}).time().profile
    rows = profile.rows()
    assert [(r["kernel"], r["cycles"]) for r in rows] == [(k.name, k.end - k.start) for k in profile.kernels]
    assert sum(r["instructions"] for r in rows) + len(profile.copies) == profile.instructions


def test_pandas() -> None:
    profile = ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 40}).time().profile
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="pip install pandas"):
            profile.to_pandas()
        return
    frame = profile.to_pandas()
    assert list(frame.columns) == list(profile.rows()[0])
    assert frame["macs"].sum() == sum(k.macs for k in profile.kernels)

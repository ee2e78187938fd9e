"""Reads the tables in `tests/frontend/op_rules`: models of one node, legal ones and ones that break a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tests.support.onnx_text import model_of

FOLDER = Path(__file__).parents[1] / "frontend" / "op_rules"
DTYPES = {"f": "f4", "d": "f8", "i": "i8", "j": "i4", "b": "i1", "u": "u1", "t": "?"}
_CONSTANT = re.compile(
    r"#([fdijbut])"
    r"(?:(?P<shape>\d+(?:x\d+)*)|\[(?P<list>[^\]]*)\]|\((?P<scalar>[^)]*)\)|:(?P<nested>\[[\[\]0-9, -]*\])|)"
)
_HAS_OUTPUTS = re.compile(r"\w+(, \w+)* = ")


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes over the same declared inputs, in one opset."""

    file: str
    declared: str
    opset: int
    legal: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def name(self) -> str:
        first = re.search(r"(\w+)(<[^(]*>)?\(", (*self.legal, *self.broken)[0])
        return f"{self.file}-{first[1] if first else ''}-{self.opset}-{self.declared}"


def blocks() -> Iterator[Block]:
    """Every block of every file."""
    for path in sorted(FOLDER.glob("*.txt")):
        for text in path.read_text(encoding="utf-8").split("\n\n")[1:]:
            head, *rows = text.strip().split("\n")
            declared, opset = head.split(" @ ")
            legal, broken = (tuple(r[2:] for r in rows if r[0] == sign) for sign in "+-")
            yield Block(path.stem, declared, int(opset), legal, broken)


def model_of_row(declared: str, node: str, opset: int) -> onnx.ModelProto:
    """The model of one row; its output is declared without a type."""
    constants: dict[str, np.ndarray] = {}

    def named(match: re.Match[str]) -> str:
        name = f"c{len(constants)}"
        constants[name] = _constant(match)
        return name

    body = _CONSTANT.sub(named, node)
    body = body if _HAS_OUTPUTS.match(body) else f"y = {body}"
    model = model_of(f"g ({declared}) => (float y) {{ {body} }}", constants, opset)
    model.ir_version = 10
    model.graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info("y"))
    return model


def _constant(match: re.Match[str]) -> np.ndarray:
    dtype = np.dtype(DTYPES[match[1]])
    number = float if dtype.kind == "f" else int
    if match["shape"] is not None:
        dims = [int(n) for n in match["shape"].split("x")]
        return np.zeros(dims, dtype) if match[1] in "ij" else np.ones(dims, dtype)
    if match["nested"] is not None:
        return np.array(json.loads(match["nested"]), dtype)
    if match["list"] is not None:
        return np.array([number(text) for text in match["list"].split(",") if text], dtype)
    return np.array(number(match["scalar"] or 1), dtype)

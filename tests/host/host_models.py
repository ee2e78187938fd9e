"""Models of which a part runs on the host, and how tests run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import parser

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.program.compiled import CompiledProgram

TINY = "ppu-tiny"
HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>'
MIXED = """g (float[4, 6] x) => (float[] y, float[4, 6] z) {
    a = Relu(x)
    c = Cast<to = 11>(a)
    d = Exp(c)
    e = Cast<to = 1>(d)
    z = Add(e, x)
    i = NonZero(z)
    f = Cast<to = 1>(i)
    y = ReduceSum<keepdims = 0>(f)
}"""
CUSTOM = """g (float[4, 6] x) => (float[4, 6] y) {
    a = Relu(x)
    b = com.example.Swirl<angle = 2>(a)
    y = Neg(b)
}"""
OPS = """
import numpy as np
import ppuc

@ppuc.host_op("com.example::Swirl")
def swirl(x, angle=0):
    return np.roll(x, angle)
"""


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEADER + text)


def x46() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((4, 6), np.float32)


def compiled(source: onnx.ModelProto, **options: Any) -> CompiledProgram:
    return ppuc.compile(source, TINY, **options)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])

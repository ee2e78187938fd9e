"""Models that a rewrite of ONNX Runtime aborts on, which would end the process."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.validation.oracle import Oracle
from tests.support.onnx_text import model_of

LOOP = """
    (float[3, 4] x) => (float[4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        flat = Reshape(d, all)
        part = Slice(flat, first, last)
        zero = Constant<value_floats = [0.0, 0.0, 0.0, 0.0]>()
        y = Loop(n, "", zero) <body = body (int64 i, bool go, float[4] a) => (bool on, float[4] b) {
            on = Identity(go)
            b = Add(a, part)
        }>
    }
"""


@pytest.mark.parametrize("scale", [0.125, 0.5])
def test_a_loop_may_read_a_dequantized_view(scale: float) -> None:
    constants = {
        "s": np.float32(scale),
        "z": np.int8(3),
        "all": np.array([-1]),
        "first": np.array([5]),
        "last": np.array([9]),
        "n": np.int64(3),
    }
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    found = Oracle(model_of(f"g {LOOP}", constants)).run({"x": x})["y"]
    np.testing.assert_allclose(found, 3 * scale * np.rint(x / scale).reshape(-1)[5:9], rtol=1e-6)

"""Convolutions with large dilations: their halo fits no memory, but the input of each tap does."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.entry import compile, verify
from tests.support.single_node import node_model

Shape = tuple[int, ...]
CASES: dict[str, tuple[Shape, Shape, dict[str, list[int] | int]]] = {
    "dilated by 1024": ((1, 72, 2200), (40, 72, 3), {"dilations": [1024]}),
    "dilated by 4096, causal": ((1, 32, 4500), (32, 32, 3), {"dilations": [4096], "pads": [8192, 0]}),
    "dilated and strided": ((2, 20, 301), (24, 20, 3), {"dilations": [100], "strides": [3], "pads": [50, 70]}),
    "atrous rate 24": ((1, 64, 33, 33), (40, 64, 3, 3), {"dilations": [24, 24], "pads": [24] * 4}),
    "atrous rate 36": ((1, 48, 41, 41), (32, 48, 3, 3), {"dilations": [36, 36], "pads": [36] * 4}),
    "128 taps in groups": ((1, 64, 39), (64, 16, 128), {"group": 4, "pads": [64, 64]}),
    "depthwise, dilated": ((1, 16, 2200), (16, 1, 3), {"group": 16, "dilations": [1024]}),
}


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890", "zhenwu-810e"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_window_that_reaches_far(case: tuple[Shape, Shape, dict[str, list[int] | int]], target: str) -> None:
    x, w, attributes = case
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(w, np.float32) / np.float32(np.sqrt(np.prod(w[1:])))
    image = rng.standard_normal(x, np.float32)
    model = node_model("Conv", {"x": image, "w": weights}, attributes, constants=["w"])
    result = verify(compile(model, target), {"x": image})
    assert result.ok, result.outputs[0].reason

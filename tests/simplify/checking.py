"""Simplifying a model and comparing it with the original."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.backend.test

from ppuc.compiler.simplify.driver import Simplified, simplify
from tests.support.onnx_text import model_of

rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def simplified(
    text: str, weights: Mapping[str, np.ndarray] | None = None, opset: int = 17
) -> tuple[Simplified, dict[str, int]]:
    """Simplify a graph and check it: the result agrees with the original, is valid, and stays if simplified again."""
    result = simplify(model_of(text, weights, opset))
    assert result.comparisons
    assert result.ok, [c.reason for c in result.comparisons]
    onnx.checker.check_model(result.model, full_check=True)
    again = simplify(result.model)
    assert [n.SerializeToString() for n in again.model.graph.node] == [
        n.SerializeToString() for n in result.model.graph.node
    ]
    return result, dict(result.after)

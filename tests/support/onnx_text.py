"""Small ONNX models written in ONNX's own text syntax."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser


def model_of(text: str, weights: Mapping[str, np.ndarray] | None = None, opset: int = 17) -> onnx.ModelProto:
    """A model whose graph (and functions) are `text`, with `weights` as initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "local" : 1]>\n{text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in (weights or {}).items())
    return model

"""Block-quantized weights of a layer: storage formats with a scale per block along the summed dimension, which no
engine multiplies.

Invariant: products read exactly the numbers that `ppuc.ir.microscaling` encodes, bit for bit; a tensor-wide scale is
applied in the product's epilogue.
"""

from __future__ import annotations

import functools

import numpy as np

from ppuc.compiler.blocks import Weights
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import BLOCKS
from ppuc.ir.microscaling import Blocks, encode_blocks
from ppuc.ir.types import DType


def in_blocks(layer: Layer, format: str) -> tuple[Weights, float] | None:
    """The weights of a matmul in a format of BLOCKS, as kernels read them, and their tensor-wide scale. None for layers
    that are not matmuls and for depths that are not a multiple of the block size."""
    if layer.kind != "matmul" or layer.weights is None or layer.weights.type.rank != 2:
        return None
    chosen, resource = BLOCKS[format], layer.weights
    transposed = layer.channel_axis == 0
    columns, rows = resource.type.dims if transposed else resource.type.dims[::-1]

    @functools.cache
    def encoded() -> Blocks:
        wide = resource.array().astype(np.float32)
        return encode_blocks(np.ascontiguousarray(wide if transposed else wide.T), chosen)

    def codes() -> np.ndarray:
        return encoded().codes.T if halves is not None else encoded().codes.T.view(chosen.element.numpy)

    def scale() -> np.ndarray:
        return encoded().scales.T.view(chosen.scale.numpy)

    halves = DType.F4E2M1 if chosen.element is DType.F4E2M1 else None
    stored = DType.U8 if halves is not None else chosen.element
    weights = Weights(rows, columns, chosen.size, stored, codes, chosen.scale, scale, halves)
    if not weights.fitted_block:
        return None
    return weights, float(encoded().tensor_scale) if chosen.scale is not DType.F8E8M0 else 1.0

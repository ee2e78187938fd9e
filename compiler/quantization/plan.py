"""Quantization plans: the format, scales and repaired weights of each layer.

Invariant: a plan is complete: together with the graph, it determines every bit of the quantized graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ppuc.ir.microscaling import MXFP4, MXFP8_E4M3, NVFP4, BlockFormat
from ppuc.ir.types import DType

FORMATS: Mapping[str, tuple[DType, ...]] = {
    "e4m3": (DType.F8E4M3,),
    "e5m2": (DType.F8E5M2,),
    "int8": (DType.I8, DType.U8),
    "mxfp8": (DType.F8E4M3,),
    "mxfp4": (DType.F4E2M1,),
    "nvfp4": (DType.F4E2M1,),
    "bf16": (),
}
"""Name in policies and reports -> types of the operands (int8: u8 for non-negative activations)."""

BLOCKS: Mapping[str, BlockFormat] = {"mxfp8": MXFP8_E4M3, "mxfp4": MXFP4, "nvfp4": NVFP4}
"""Weight-only formats: blocks with one scale each."""

LARGEST = {DType.F8E4M3: 448.0, DType.F8E5M2: 57344.0, DType.I8: 127.0, DType.U8: 255.0}
"""The largest number of each type; i8 leaves out -128, so that its range is symmetric."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """`scales`: the scale of each activation operand (empty: computed at run time, per row for matmuls and per sample
    otherwise). `unsigned`: whether each activation operand is stored as u8 (int8 only). `weight_scale` is f32[channels]
    or f32[1]; `weights` are the stored weights if they are not rounded to nearest; `bias` f32[channels] is added to the
    result; `offset` f32[channels] is subtracted from the first activation before it is stored. With `weights_only`,
    activations keep their type."""

    format: str = "e4m3"
    scales: tuple[float, ...] = ()
    unsigned: tuple[bool, ...] = ()
    weights_only: bool = False
    weight_scale: np.ndarray | None = None
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None
    offset: np.ndarray | None = None

    @property
    def dtype(self) -> DType:
        """The type of weights and signed activations."""
        return FORMATS[self.format][0]

    def input_dtype(self, operand: int) -> DType:
        """The type of an activation operand."""
        return DType.U8 if self.format == "int8" and self.unsigned and self.unsigned[operand] else self.dtype

    @property
    def quantized(self) -> bool:
        return self.format != "bf16"


@dataclass(frozen=True, slots=True)
class Plan:
    """The plans of layers by name; other layers are not quantized."""

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def with_layers(self, changed: Mapping[str, LayerPlan]) -> Plan:
        """The plan with the plans of some layers replaced."""
        return replace(self, layers={**self.layers, **changed})

    def only(self, names: Iterator[str] | set[str]) -> Plan:
        """The plan restricted to the layers in `names`; the others are not quantized."""
        kept = set(names)
        return Plan({n: p for n, p in self.layers.items() if n in kept})

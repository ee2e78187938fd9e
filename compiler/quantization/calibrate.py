"""Calibration: observes ranges in f32 and derives scales from them.

Invariant: the same model, samples and options give the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ppuc.compiler.options import Calibration
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.moves import with_shared_scales
from ppuc.compiler.quantization.observe import Observation, observe
from ppuc.compiler.quantization.plan import FORMATS, LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared, native, storage_plan
from ppuc.compiler.quantization.scales import activation_scale
from ppuc.ir.types import DType


def calibrated_plan(
    prepared: Prepared,
    format: str,
    samples: Iterable[Mapping[str, np.ndarray]],
    how: Calibration | None = None,
    each: Callable[[int], None] | None = None,
) -> Plan:
    """A plan with every layer in `format` and static scales from `samples` (feeds by ONNX name)."""
    if not native(prepared.target, format):
        return storage_plan(prepared, format)
    seen = observe(prepared.module.graph, prepared.layers, prepared.feeds(samples), each)
    plan = plan_from(prepared.layers, seen, format, how or Calibration())
    return with_shared_scales(prepared.module.graph, prepared.layers, plan)


def plan_from(layers: Iterable[Layer], seen: Mapping[str, Observation], format: str, how: Calibration) -> Plan:
    """A plan with every layer in `format` and scales from the observations of its operands."""
    return Plan({layer.name: layer_plan(layer, seen, format, how) for layer in layers})


def layer_plan(layer: Layer, seen: Mapping[str, Observation], format: str, how: Calibration) -> LayerPlan:
    """The plan of one layer in `format`. An operand that was always zero (the initial state of a sequence) does not
    determine a range: the layer then computes its scales at run time."""
    if format == "bf16" or (format == "int8" and layer.kind == "attention"):  # scores of bytes are too coarse
        return LayerPlan("bf16")
    operands = [seen[v.name] for v in layer.inputs]
    if not all(o.largest for o in operands):
        return LayerPlan(format if layer.kind != "attention" else "bf16")
    unsigned = tuple(format == "int8" and o.low >= 0 for o in operands)
    dtypes = [DType.U8 if u else FORMATS[format][0] for u in unsigned]
    headroom = how.for_samples(operands[0].samples).headroom
    assert headroom is not None
    scales = tuple(
        activation_scale(o, d, how.method, headroom, how.power_of_two) for o, d in zip(operands, dtypes, strict=True)
    )
    return LayerPlan(format, scales, unsigned)

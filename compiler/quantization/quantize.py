"""From an imported module and what the user asks for to the quantized module that the pipeline starts from.

Invariant: without data and without a policy nothing is guessed: activation scales are computed at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.quantization.calibrate import Calibration
from ppuc.compiler.quantization.data import Data, check_not_zero
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.policy import read_policy
from ppuc.compiler.quantization.prepare import Prepared, dynamic_plan, prepare
from ppuc.compiler.quantization.study import Request, repaired_plan, study
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module
from ppuc.targets.description import Target

if TYPE_CHECKING:
    import onnx

DYNAMIC = (
    "no calibration data: the scales of activations are computed at run time, one a row of a matmul and one a sample "
    "of a convolution; that costs time, and nothing is known about the accuracy (give --calibrate DATA)"
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """`policy` or `plan` decides all layers; else `data` gives scales; else they are computed at run time. `each` is
    told what is being done. `repair`: layers are repaired where the outputs gain. `studied` is called with what `study`
    says that the plan costs and brings; without it nobody looks."""

    data: Data | None = None
    policy: Path | None = None
    plan: Plan | None = None
    calibration: Calibration = field(default_factory=Calibration)
    each: Callable[[str], None] = lambda what: None
    repair: bool = True
    studied: Callable[[dict[str, Any]], None] | None = None

    def shapes(self, source: str | Path | onnx.ModelProto, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Sizes that the model leaves open and the data tell."""
        if self.data is None:
            return {}
        from ppuc.compiler.frontend.bind import declarations_of

        return self.data.shapes({d.name: d.shape for d in declarations_of(source)}, dims)


def quantized_module(module: Module, target: Target, how: Quantization | None) -> Module:
    """`module` with the layers of its graph in the formats that its precision and `how` ask for."""
    prepared = prepare(module, target)
    return prepared.quantized(chosen_plan(prepared, module.option("precision"), how or Quantization()))


def chosen_plan(prepared: Prepared, precision: str, how: Quantization) -> Plan:
    """The plan that `how` leads to. Raises UsageError for a mixed precision that nothing decides."""
    if how.plan is not None:
        return how.plan
    if how.policy is not None:
        return read_policy(how.policy, prepared.all_layers)
    if PRECISIONS[precision].per_layer:
        raise UsageError.of(
            "--precision mixed",
            "needs a policy that says which layer takes which format",
            hint="`ppuc quantize MODEL --calibrate DATA -o policy.toml` finds one; give it with --policy",
        )
    if how.data is None:
        return dynamic_plan(prepared, PRECISIONS[precision].layers)
    samples = list(how.data.samples(prepared.specs))
    check_not_zero(samples, how.data.where)
    if how.studied is None:
        return sampled_plan(prepared, precision, samples, how)
    made = study(prepared, samples, (), _request(precision, samples, how), how.each)
    how.studied(made.record)
    return made.plan


def sampled_plan(
    prepared: Prepared, precision: str, samples: Sequence[Mapping[str, np.ndarray]], how: Quantization
) -> Plan:
    """The plan from samples by ONNX name, without a study of it."""
    return repaired_plan(prepared, samples, _request(precision, samples, how), how.each)


def _request(precision: str, samples: Sequence[Mapping[str, np.ndarray]], how: Quantization) -> Request:
    return Request(precision, calibration=how.calibration.for_samples(len(samples)), repair=how.repair)

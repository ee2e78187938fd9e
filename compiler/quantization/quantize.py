"""From an imported module and what the user asks for to the quantized module that the pipeline starts from.

Invariant: without data and without a policy nothing is guessed: activation scales are computed at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ppuc.compiler.quantization.calibrate import Calibration, calibrated_plan
from ppuc.compiler.quantization.data import Data, check_not_zero
from ppuc.compiler.quantization.plan import BLOCKS, Plan
from ppuc.compiler.quantization.policy import read_policy
from ppuc.compiler.quantization.prepare import Prepared, dynamic_plan, prepare
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module
from ppuc.targets.description import Target

if TYPE_CHECKING:
    import onnx

FORMAT_OF = {"fp8": "e4m3", "int8": "int8", "mixed": "e4m3", **{name: name for name in BLOCKS}}
"""`--precision` -> format of the layers that no policy names."""

DYNAMIC = (
    "no calibration data: the scales of activations are computed at run time, one a row of a matmul and one a sample "
    "of a convolution; that costs time, and nothing is known about the accuracy (give --calibrate DATA)"
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """`policy` or `plan` decides all layers; else `data` gives scales; else they are computed at run time. `each` is
    called with the number of every calibration sample that is done."""

    data: Data | None = None
    policy: Path | None = None
    plan: Plan | None = None
    calibration: Calibration = field(default_factory=Calibration)
    each: Callable[[int], None] | None = None

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
    if precision == "mixed":
        raise UsageError.of(
            "--precision mixed",
            "needs a policy that says which layer takes which format",
            hint="`ppuc quantize MODEL --calibrate DATA -o policy.toml` finds one; give it with --policy",
        )
    format = FORMAT_OF[precision]
    if how.data is None:
        return dynamic_plan(prepared, format)
    samples = list(how.data.samples(prepared.specs))
    check_not_zero(samples, how.data.where)
    return calibrated_plan(prepared, format, samples, how.calibration, how.each)

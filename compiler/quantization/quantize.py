"""Quantizes an imported module according to the user's options, before the pipeline.

Invariant: without data and policy, activation scales are computed at run time instead of being guessed.
"""

from __future__ import annotations

from pathlib import Path

from ppuc.compiler.options import UNWATCHED, CompileOptions, Instrumentation
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.pipeline.dump import QUANTIZATION
from ppuc.compiler.pipeline.manager import QuantizedModule
from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.quantization.data import check_not_zero
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.policy import read_policy, write_policy
from ppuc.compiler.quantization.prepare import Prepared, dynamic_plan, prepare
from ppuc.compiler.quantization.study import repaired_plan, study
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module

DYNAMIC = (
    "no calibration data: the scales of activations are computed at run time, per row of a matmul and per sample "
    "of a convolution; that costs time, and nothing is known about the accuracy (give --calibrate DATA)"
)


def quantized_module(
    module: Module, options: CompileOptions, watch: Instrumentation = UNWATCHED, dump: Path | None = None
) -> QuantizedModule:
    """`module` quantized according to `options`. The plan is written to the folder of the dump, if there is one."""
    prepared = prepare(module, options)
    plan = chosen_plan(prepared, watch)
    if dump is not None:
        write_policy(dump / QUANTIZATION, plan, {"precision": options.precision})
    _remark_formats(prepared, plan)
    return QuantizedModule(prepared.quantized(plan), prepared.simulated(plan))


def chosen_plan(prepared: Prepared, watch: Instrumentation = UNWATCHED) -> Plan:
    """The plan for the options; progress and the study of the plan are reported to `watch`. Raises UsageError for a
    precision that needs a policy if there is none."""
    precision, how = PRECISIONS[prepared.options.precision], prepared.options.quantization
    if how.policy is not None:
        return read_policy(how.policy, prepared.all_layers)
    if precision.per_layer:
        raise UsageError.of(
            f"--precision {precision.name}",
            "needs a policy that says which layer takes which format",
            hint="`ppuc quantize MODEL --calibrate DATA -o policy.toml` finds one; give it with --policy",
        )
    if how.data is None:
        return dynamic_plan(prepared, precision.layers)
    samples = list(how.data.samples(prepared.specs, prepared.fixed))
    check_not_zero(samples, how.data.where)
    if watch.studied is None:
        return repaired_plan(prepared, samples, watch.quantizing)
    made = study(prepared, samples, each=watch.quantizing)
    watch.studied(made.record)
    return made.plan


def _remark_formats(prepared: Prepared, plan: Plan) -> None:
    """Emit a remark on the format of each layer."""
    if (remarks := listener()) is None:
        return
    for layer in prepared.all_layers:
        own = plan.layers.get(layer.name)
        entity, nodes = layer.op.results[0].name, (layer.name.partition("#")[0],)
        if own is None or not own.quantized:
            remarks.missed("format", entity, nodes, "stays in the format of the others", macs=layer.macs)
            continue
        scales = "weights alone" if own.weights_only else "scales from samples" if own.scales else "run-time scales"
        remarks.applied("format", entity, nodes, f"{own.format}, {scales}", macs=layer.macs)

"""Simulated time of a plan, in total and by layer.

Invariant: times come from the program that the plan compiles to; a layer's time is its kernel's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ppuc.compiler.alias import aliased
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.report.profile import profile_record
from ppuc.targets.simulator.run import simulate


@dataclass(frozen=True, slots=True)
class Times:
    """Cycles of a run; `layers` by layer name, where a kernel is named after it."""

    cycles: float
    seconds: float
    layers: Mapping[str, float]


def timed(prepared: Prepared, plan: Plan) -> Times:
    """Compile `plan` and simulate its timing, without values."""
    options = prepared.options
    made = Run(options.target, passes_of(options)).to_end(aliased(prepared.quantized(plan), options.aliases))
    profile = simulate(
        made.artifact.program, made.artifact.vectors, prepared.target, {}, None, check_hazards=False
    ).profile
    names = {layer.name.partition("#")[0]: layer.name for layer in reversed(prepared.layers)}
    layers: dict[str, float] = {}
    for row in profile_record(profile, prepared.target, {})["kernels"]:
        owner = next((names[node] for node in row["loc"] if node in names), None)
        if owner is not None:
            layers[owner] = layers.get(owner, 0.0) + row["cycles"]
    return Times(profile.cycles, profile.seconds, layers)

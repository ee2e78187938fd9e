"""What crosses the host's link between steps, and how long that takes.

A tensor crosses once in each direction, when the step that reads it first begins; a crossing pays the link's bytes a
second and the start and latency of one copy. Model inputs and outputs are where they are needed, as in programs without
host steps. The host's own computing is not modelled.

Invariant: a function of the plan and the target alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.compiler.host.plan import HostStep, Plan, PpuStep
from ppuc.ir.types import Space, parse_type
from ppuc.targets.cost import latency_clk
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor on its way to a step: `to_ppu` or back."""

    tensor: str
    step: int
    to_ppu: bool
    bytes: int

    def seconds(self, target: Target) -> float:
        """Time on the link."""
        wait = target.stage.start_ns + latency_clk(Space.HOST, target) * target.clk_ns
        return self.bytes / (target.host.gbs_per_dir * 1e9) + wait * 1e-9


def crossings(plan: Plan) -> tuple[Crossing, ...]:
    """Every crossing, in the order of the steps."""
    types = dict(plan.types)
    made_by: dict[str, bool] = {}
    seen: set[tuple[str, bool]] = set()
    found = []
    for number, step in enumerate(plan.steps):
        on_ppu = isinstance(step, PpuStep)
        for name in inputs_of(step):
            if made_by.get(name, on_ppu) != on_ppu and (name, on_ppu) not in seen:
                seen.add((name, on_ppu))
                found.append(Crossing(name, number, on_ppu, parse_type(types[name]).bytes))
        made_by.update(dict.fromkeys(outputs_of(step), on_ppu))
    return tuple(found)


def inputs_of(step: HostStep | PpuStep) -> tuple[str, ...]:
    """Names of the plan that a step reads."""
    return step.inputs if isinstance(step, HostStep) else tuple(name for name, _ in step.inputs)


def outputs_of(step: HostStep | PpuStep) -> tuple[str, ...]:
    """Names of the plan that a step gives."""
    return step.outputs if isinstance(step, HostStep) else tuple(name for name, _ in step.outputs)

"""Transfers over the host link between steps, and their time.

A tensor crosses once in each direction, when the first step that reads it begins. A crossing costs its bytes at the
link's bandwidth plus start and latency of one copy. Model inputs and outputs are already in place, as in programs
without host steps. Steps compiled at run time count as the PPU's; each trip of a loop that the host counts sends a
number there and a condition back. Host computation is not modelled.

Invariant: results depend only on the plan, the target, and the sizes and sides of the run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppuc.compiler.host.plan import HostStep, Plan, PpuStep, Step
from ppuc.ir.types import Space, parse_type
from ppuc.targets.cost import latency_clk
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Crossing:
    """A transfer of a tensor for a step: `to_ppu` or back."""

    tensor: str
    step: int
    to_ppu: bool
    bytes: int

    def seconds(self, target: Target) -> float:
        """Transfer time in seconds."""
        wait = target.stage.start_ns + latency_clk(Space.HOST, target) * target.clk_ns
        return self.bytes / (target.host.gbs_per_dir * 1e9) + wait * 1e-9


def crossings(
    plan: Plan, sizes: Mapping[str, int] | None = None, on_host: Collection[int] = ()
) -> tuple[Crossing, ...]:
    """Every crossing, in step order; tensors of unknown size only if `sizes` has them. `on_host` are deferred steps
    that the host computed."""
    known = {name: parse_type(text).bytes for name, text in plan.types} | dict(sizes or {})
    made_by: dict[str, bool] = {}
    seen: set[tuple[str, bool]] = set()
    found = []
    for number, step in enumerate(plan.steps):
        on_ppu = not isinstance(step, HostStep) and number not in on_host
        for name in inputs_of(step):
            if made_by.get(name, on_ppu) != on_ppu and (name, on_ppu) not in seen:
                seen.add((name, on_ppu))
                found += [Crossing(name, number, on_ppu, known[name])] if name in known else []
        made_by.update(dict.fromkeys(outputs_of(step), on_ppu))
    return tuple(found)


NUMBER_BYTES, CONDITION_BYTES = 8, 1


def decisions(asked: Mapping[int, int], trips: Mapping[int, int]) -> tuple[Crossing, ...]:
    """Transfers for control flow: a condition for each of the `asked` branches; for each of the `trips`, a condition
    and the trip's number."""
    there, back = ("number of the trip", True, NUMBER_BYTES), ("condition", False, CONDITION_BYTES)
    found = [(step, back) for step, count in sorted(asked.items()) for _ in range(count)]
    found += [(step, one) for step, count in sorted(trips.items()) for _ in range(count) for one in (there, back)]
    return tuple(Crossing(name, step, to_ppu, size) for step, (name, to_ppu, size) in found)


def host_rows(
    plan: Plan, target: Target, measured: Mapping[int, float], crossing: Sequence[Crossing]
) -> list[dict[str, Any]]:
    """The host steps as JSON-able values: nodes, bytes over the link, transfer time, and measured time on this computer
    (None unless they ran)."""
    makers = {name: number for number, step in enumerate(plan.steps) for name in outputs_of(step)}
    rows = []
    for number, step in enumerate(plan.steps):
        if isinstance(step, HostStep):
            near = [c for c in crossing if c.step == number or (c.to_ppu and makers.get(c.tensor) == number)]
            rows.append(
                {
                    "nodes": [n.node for n in step.nodes],
                    "ops": [n.op for n in step.nodes],
                    "from_ppu_bytes": sum(c.bytes for c in near if not c.to_ppu),
                    "to_ppu_bytes": sum(c.bytes for c in near if c.to_ppu),
                    "transfer_seconds": sum(c.seconds(target) for c in near),
                    "measured_seconds": measured.get(number),
                }
            )
    return rows


def inputs_of(step: Step) -> tuple[str, ...]:
    """Names of the plan that a step reads."""
    return tuple(name for name, _ in step.inputs) if isinstance(step, PpuStep) else step.inputs


def outputs_of(step: Step) -> tuple[str, ...]:
    """Names of the plan that a step defines."""
    return tuple(name for name, _ in step.outputs) if isinstance(step, PpuStep) else step.outputs

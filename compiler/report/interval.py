"""Uncertainty of a simulated time due to estimated numbers of the target.

Estimates on one subject are correlated, so they are varied together: all estimated numbers of a group (GROUPS) that the
program's time can depend on are moved by RELATIVE of their marks to the slower side, and the program is timed again; if
that matters, also to the faster side (otherwise its effect is assumed equal). Groups are independent: deviations to one
side are added in quadrature.

Invariant: the interval contains the time itself; a target without estimates gives an interval of no width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.ir.kernel import Mma
from ppuc.ir.program import Instr, Program, Queue, StreamNode
from ppuc.ir.types import DType, Space
from ppuc.targets.description import Leaf, Target
from ppuc.targets.simulator.result import Profile

RELATIVE = {"E": 0.2, "E-cal": 0.1}
"""Relative uncertainty of a number by its mark; other marks count as exact."""

INSTRUCTIONS = 20_000_000
"""Maximum instruction instances to simulate for an interval by default: less than ten seconds."""

MINOR = 0.003
"""Up to this relative effect on the time, a group is moved to one side only."""

GROUPS = {
    "tensor engine": ("tensor.",),
    "vector engine": ("vector.",),
    "l1 and acc": ("l1.", "acc."),
    "device memory": ("hbm.gbs", "hbm.efficiency", "hbm.refresh", "hbm.turnaround", "host."),
    "latency": ("l2.latency", "hbm.latency", "noc.hop", "load.start", "store.start", "stage.start"),
    "rows of transfers": ("load.row", "store.row"),
    "bandwidth on the chip": ("l2.", "noc.", "load.", "store."),
    "clock": ("clock.",),
    "issue, launch and synchronisation": ("",),
}
"""Groups of numbers by path prefix; the first match counts."""

_UNUSED = ("clock.min_mhz", "tensor.lanes")
"""Numbers that are read but do not affect time."""

_WHOLE = ("tensor.", "vector.")
"""Numbers that must be integers for the simulator."""

_UNITS = ("clk", "ns", "us", "B/clk", "GB/s", "op/clk", "lane", "ratio", "MHz")
if TYPE_CHECKING:
    from ppuc.compiler.options import Progress

_COSTS = ("clk", "ns", "us")
"""Units of numbers whose increase makes a target slower; others make it faster."""

_UNTIMED = ("energy", "power", "thermal", "temperature")
_ENERGY = {
    "vector": "vector_op_pj",
    "l1": "l1_pj_per_byte",
    "acc": "acc_pj_per_byte",
    "l2": "l2_pj_per_byte",
    "hbm": "hbm_pj_per_byte",
    "host": "link_pj_per_byte",
    "instructions": "instruction_pj",
}
"""Component of the energy -> the number that it is proportional to."""


def uncertain_numbers(program: Program, profile: Profile, target: Target) -> list[Leaf]:
    """The estimates that the time of `program` can depend on."""
    dtypes = {"i8" if d is DType.U8 else str(d) for d in tensor_dtypes(program)}
    moved = {s: profile.read_bytes.get(s, 0) + profile.write_bytes.get(s, 0) for s in Space}
    used = {
        "tensor": bool(dtypes),
        "vector": any(k.instructions.get(Queue.VECTOR, 0) for k in profile.kernels),
        "hbm": moved[Space.HBM] > 0,
        "host": moved[Space.HOST] > 0,
        "stage": bool(profile.copies),
    }
    found = []
    for leaf in target.leaves():
        head, _, last = leaf.path.rpartition(".")
        group = leaf.path.partition(".")[0]
        if leaf.mark not in RELATIVE or leaf.unit not in _UNITS or group in _UNTIMED or not used.get(group, True):
            continue
        if leaf.informational or leaf.path in _UNUSED or not leaf.value:
            continue
        if head == "tensor.ii_clk" and last not in dtypes:
            continue
        found.append(leaf)
    return found


def tensor_dtypes(program: Program) -> set[DType]:
    """Element types of the program's products."""
    found = set()
    for segment in program.segments:
        for kernel in segment.kernels:
            rings = {r.name: r.dtype for r in kernel.rings}
            for _, stream in kernel.streams:
                found |= {rings[i.stmt.a.buffer] for i in _instructions(stream) if isinstance(i.stmt, Mma)}
    return found


def _instructions(stream: tuple[StreamNode, ...]) -> Iterator[Instr]:
    for node in stream:
        if isinstance(node, Instr):
            yield node
        else:
            yield from _instructions(node.body)


def with_number(target: Target, path: str, value: Any) -> Target:
    """`target` with one number replaced, without checks: for timing an existing program, not for compiling."""
    changed: Target = _replaced(target, path.split("."), value)
    return changed


def _replaced(node: Any, path: list[str], value: Any) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(node, Mapping):
        return {**node, head: value}
    return dataclasses.replace(node, **{head: _replaced(getattr(node, head), rest, value) if rest else value})


def deviated(leaf: Leaf, *, slower: bool) -> float:
    """The varied value of a number."""
    sign = 1 if slower == (leaf.unit in _COSTS) else -1
    value = float(leaf.value * (1 + sign * RELATIVE[leaf.mark]))
    if leaf.unit == "ratio":
        return min(value, 1.0)
    if leaf.path.startswith(_WHOLE):
        return int(max(leaf.value + sign * max(1, round(leaf.value * RELATIVE[leaf.mark])), 1))
    return value


def groups_of(numbers: Sequence[Leaf]) -> dict[str, list[Leaf]]:
    """The numbers by group, in the order of GROUPS; empty groups are left out."""
    found: dict[str, list[Leaf]] = {name: [] for name in GROUPS}
    for leaf in numbers:
        found[next(name for name, heads in GROUPS.items() if leaf.path.startswith(heads))].append(leaf)
    return {name: group for name, group in found.items() if group}


def interval(
    program: CompiledProgram, profile: Profile, *, always: bool = False, progress: Progress = lambda *step: None
) -> dict[str, Any]:
    """The interval of a run's time and energy, as JSON-able values. Without `always`, a program with long runs gets
    none; neither does a run without simulated time. The record gives the reason."""
    from ppuc.targets.simulator.retime import Retimer

    if not profile.cycles:
        return {"skipped": "nothing ran on the PPU"}
    groups = groups_of(uncertain_numbers(program.artifact.program, profile, program.target))
    if 2 * len(groups) * profile.instructions > INSTRUCTIONS and not always:
        runs = f"up to {2 * len(groups)} runs of {profile.instructions} instructions each"
        return {"skipped": f"{runs}; --interval makes them"}
    base, rows = profile.seconds, list[dict[str, Any]]()
    timer = Retimer(program.artifact.program, program.artifact.vectors, program.target)

    def effect(group: Sequence[Leaf], *, slower: bool) -> float:
        target = program.target
        for leaf in group:
            target = with_number(target, leaf.path, deviated(leaf, slower=slower))
        return timer.seconds(target, [leaf.path for leaf in group]) - base

    for i, (name, group) in enumerate(groups.items()):
        progress(name, i, len(groups))
        up = effect(group, slower=True)
        down = effect(group, slower=False) if abs(up) > MINOR * base else -up
        numbers = [{"key": x.path, "value": x.value, "unit": x.unit, "mark": x.mark} for x in group]
        rows.append(
            {"group": name, "numbers": numbers, "seconds": [base + min(up, down, 0.0), base + max(up, down, 0.0)]}
        )
    rows.sort(key=lambda r: r["seconds"][0] - r["seconds"][1])
    low = math.hypot(*(base - r["seconds"][0] for r in rows))
    high = math.hypot(*(r["seconds"][1] - base for r in rows))
    return {
        "seconds": [max(0.0, base - low), base + high],
        "joules": _energy(program, profile, max(low, high) / base if base else 0.0),
        "relative": RELATIVE,
        "groups": rows,
    }


def _energy(program: CompiledProgram, profile: Profile, time: float) -> list[float]:
    """The interval of the energy; `time` is the relative uncertainty of the time, for static power."""
    marks = {leaf.path: RELATIVE.get(leaf.mark, 0.0) for leaf in program.target.leaves()}
    macs = [marks.get(f"energy.mac_pj.{d}", 0.0) for d in tensor_dtypes(program.artifact.program)]
    total = sum(profile.energy_joules.values())
    variance = 0.0
    for component, joules in profile.energy_joules.items():
        relative = marks.get(f"energy.{_ENERGY.get(component, '')}", 0.0)
        if component == "tensor":
            relative = max(macs, default=0.0)
        elif component == "static":
            relative = math.hypot(marks.get("power.idle_w", 0.0), time)
        variance += (joules * relative) ** 2
    return [max(0.0, total - math.sqrt(variance)), total + math.sqrt(variance)]

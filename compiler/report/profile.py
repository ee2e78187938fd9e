"""Breakdown of a run's time per kernel and per ONNX node, as records for tables and JSON.

Kernels overlap (the next one's weights load while this one computes), so a kernel is charged the time by which it
delays the end of the run; these charges and the launch add up to the total. A node is charged for the kernels
attributed to it.

Invariant: everything derives from the Profile and the target; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppuc.compiler.report.waterfall import waterfall
from ppuc.ir.program import UNIT_QUEUES, Program, Queue
from ppuc.ir.types import Space
from ppuc.targets.description import Target
from ppuc.targets.simulator.launch import launch_clk
from ppuc.targets.simulator.result import STALL_CAUSES, KernelStats, Profile
from ppuc.targets.simulator.time_breakdown import PARTS, bound_by, time_split


def profile_record(
    profile: Profile,
    target: Target,
    nodes: Mapping[str, str],
    program: Program | None = None,
    launched: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The run as JSON-able values; `nodes` attributes each kernel to an ONNX node. Cycles of the chip's clock, bytes,
    and shares of 1. With the `program` that ran, there is also a waterfall; `launched` holds the launch counts of
    segments launched several times."""
    kernels = _kernels(profile, target, nodes, _launches(profile, target, program, launched or {}))
    charged = {row["kernel"]: row["cycles"] for row in kernels}
    energy = dict(profile.energy_joules)
    return {
        "target": profile.target,
        "target_hash": profile.target_hash,
        "clock_ghz": profile.clock_ghz,
        "cycles": profile.cycles,
        "seconds": profile.seconds,
        "launch_cycles": profile.launch_cycles,
        "instructions": profile.instructions,
        "values": profile.values,
        "host_seconds": profile.host_seconds,
        "utilisation": _chip_utilisation(profile, target),
        "read_bytes": _spaces(profile.read_bytes),
        "write_bytes": _spaces(profile.write_bytes),
        "energy_joules": {**energy, "total": sum(energy.values())},
        "power": _power(profile),
        "hazards": [str(h) for h in profile.hazards],
        "split": {part: sum(row["split"][part] for row in kernels) for part in PARTS},
        "waterfall": waterfall(profile, program, target, charged) if program is not None else None,
        "kernels": kernels,
        "nodes": _nodes(kernels),
    }


def _kernels(
    profile: Profile, target: Target, nodes: Mapping[str, str], launches: Mapping[str, float]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    reached = 0.0
    for stats in sorted(profile.kernels, key=lambda k: (k.end, k.start)):
        charged = max(0.0, stats.end - reached - launches.get(stats.name, 0.0))
        reached = max(reached, stats.end)
        rows.append(_kernel(stats, charged, profile, target, nodes))
    return rows


def _launches(
    profile: Profile, target: Target, program: Program | None, launched: Mapping[str, int]
) -> dict[str, float]:
    """Launch cycles before a kernel: before the first one to end of each segment, or before each kernel on a target
    that launches kernels individually. Without the program, all launches come before the first one to end."""
    end = {k.name: (k.end, k.start) for k in profile.kernels}
    if program is None:
        return {min(end, key=lambda name: end[name]): profile.launch_cycles} if end else {}
    found: dict[str, float] = {}
    for segment in program.segments:
        names = sorted((k.name for k in segment.kernels if k.name in end), key=lambda name: end[name])
        times = launched.get(segment.name, 1)
        found |= {name: times * launch_clk(target, first=True) for name in names[:1]}
        if target.launch.granularity == "kernel":
            found |= {name: times * launch_clk(target, first=False) for name in names[1:]}
    return found


def _kernel(
    stats: KernelStats, charged: float, profile: Profile, target: Target, nodes: Mapping[str, str]
) -> dict[str, Any]:
    split = time_split(stats, charged)
    return {
        "kernel": stats.name,
        "node": nodes.get(stats.name, stats.loc[0] if stats.loc else stats.name),
        "loc": list(stats.loc),
        "cycles": charged,
        "share": charged / profile.cycles if profile.cycles else 0.0,
        "start": stats.start,
        "end": stats.end,
        "units": stats.units,
        "bound_by": bound_by(split),
        "split": split,
        "utilisation": kernel_utilisation(stats, target),
        "macs": stats.macs,
        "read_bytes": _spaces(stats.read_bytes),
        "write_bytes": _spaces(stats.write_bytes),
        "instructions": {str(q): stats.instructions.get(q, 0) for q in UNIT_QUEUES},
        "busy": {str(q): stats.busy.get(q, 0.0) for q in UNIT_QUEUES},
        "stall": {str(q): {c: stats.stall.get(q, {}).get(c, 0.0) for c in STALL_CAUSES} for q in UNIT_QUEUES},
    }


def kernel_utilisation(stats: KernelStats, target: Target) -> dict[str, float]:
    """Shares of the whole chip's peak over the kernel's own span: useful tensor work, vector queues busy, bytes of hbm
    and of l2."""
    span = max(stats.cycles, 1e-9)
    return {
        "tensor": stats.ideal_tensor / span,
        "vector": stats.busy.get(Queue.VECTOR, 0.0) / (span * target.cu),
        "hbm": _bytes(stats, Space.HBM) / (span * hbm_bytes_per_clk(target)),
        "l2": _bytes(stats, Space.L2) / (span * target.l2.bytes_per_clk_total),
    }


def hbm_bytes_per_clk(target: Target) -> float:
    """Nameplate bandwidth of the device memory in bytes per cycle."""
    return target.hbm.gbs * target.clk_ns


def _bytes(stats: KernelStats, space: Space) -> int:
    return stats.read_bytes.get(space, 0) + stats.write_bytes.get(space, 0)


def _power(profile: Profile) -> dict[str, Any]:
    """Mean power of the run, and what power and temperature limits make of one that repeats without pause."""
    state = profile.power
    return {
        "watts": profile.joules / profile.seconds if profile.seconds else 0.0,
        "sustained_seconds": profile.sustained_seconds,
        "throttled_seconds": profile.throttled_seconds,
        "temperature_c": None if state is None else state.temperature_c,
    }


def _chip_utilisation(profile: Profile, target: Target) -> dict[str, float]:
    span = max(profile.cycles, 1e-9)
    moved = {s: profile.read_bytes.get(s, 0) + profile.write_bytes.get(s, 0) for s in (Space.HBM, Space.L2)}
    return {
        "tensor": sum(k.ideal_tensor for k in profile.kernels) / span,
        "vector": sum(k.busy.get(Queue.VECTOR, 0.0) for k in profile.kernels) / (span * target.cu),
        "hbm": moved[Space.HBM] / (span * hbm_bytes_per_clk(target)),
        "l2": moved[Space.L2] / (span * target.l2.bytes_per_clk_total),
    }


def _spaces(counts: Mapping[Space, int]) -> dict[str, int]:
    return {str(space): counts.get(space, 0) for space in (Space.HBM, Space.L2)}


def _nodes(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kernels summed by the node they are booked on, in the order of the first one's end."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in kernels:
        groups.setdefault(row["node"], []).append(row)
    return [_node(node, rows) for node, rows in groups.items()]


def _node(node: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    cycles = sum(r["cycles"] for r in rows)
    split = {part: sum(r["split"][part] for r in rows) for part in PARTS}
    fused = list(dict.fromkeys(name for r in rows for name in r["loc"] if name != node))
    weights = [r["cycles"] / cycles if cycles else 1 / len(rows) for r in rows]
    return {
        "node": node,
        "fused": fused,
        "kernels": [r["kernel"] for r in rows],
        "cycles": cycles,
        "share": sum(r["share"] for r in rows),
        "bound_by": bound_by(split),
        "split": split,
        "utilisation": {
            key: sum(w * r["utilisation"][key] for w, r in zip(weights, rows, strict=True))
            for key in rows[0]["utilisation"]
        },
        "macs": sum(r["macs"] for r in rows),
        "read_bytes": {s: sum(r["read_bytes"][s] for r in rows) for s in rows[0]["read_bytes"]},
        "write_bytes": {s: sum(r["write_bytes"][s] for r in rows) for s in rows[0]["write_bytes"]},
    }

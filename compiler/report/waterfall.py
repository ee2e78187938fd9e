"""The efficiency waterfall: from the time of a perfect machine to the time of the run, with the cause of each loss.

Each bound is a time of the whole model, in cycles, with everything ideal except what it names. Engines overlap with
each other and with memory, so a bound is the larger of the tensor engines' and the vector engines' sums over kernels:

    ideal       useful arithmetic at the chip's peak: that of the 16-bit formats, or of the operands' own if faster
    format      ... at the peak of the formats in use
    shape       ... in whole fragments, which the units share evenly; the lanes of a unit work on different results
    compulsory  max(that, weights, inputs and outputs in device memory moved once at its sustained rate)
    tiles       max(that, arithmetic as the kernels issue it: lanes that their tiles leave empty, units they do not use)
    traffic     max(that, all bytes moved, of hbm and of l2, at their sustained rates)
    exposed     the run: what latency, synchronisation, uneven work and missing overlap add
    launch      ... and the launches of segments
    host        ... and transfers between the PPU and the host's steps; what the host computes is not simulated

A part is the difference of two neighbouring bounds. Invariants: no part is negative; the parts, added up in any order,
are exactly the total (all bounds are multiples of the total's last binary digit).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ppuc.ir.program import Program, Queue
from ppuc.ir.types import Space
from ppuc.targets.cost import hbm_bytes_per_clk, l2_bytes_per_clk
from ppuc.targets.description import Target
from ppuc.targets.simulator.result import KernelStats, Profile
from ppuc.targets.simulator.time_breakdown import time_split

STEPS: tuple[tuple[str, str, str], ...] = (
    ("ideal", "algorithm", "arithmetic at the chip's 16-bit peak"),
    ("format", "silicon", "slower number format"),
    ("shape", "silicon", "fragments and lanes not filled"),
    ("compulsory", "algorithm", "weights, inputs, outputs moved once"),
    ("tiles", "compiler", "lanes and units that tiles leave empty"),
    ("traffic", "compiler", "all further traffic of hbm and l2"),
    ("exposed", "compiler", "latency, waiting, uneven work"),
    ("launch", "system", "launches"),
    ("host", "host", "transfers to and from the host"),
)
"""Name, owner and description of each step, from the ideal on."""

CAUSES = ("latency", "sync", "idle", "overlap")
"""Components of the exposed part: latency and issue; waiting for other kernels; units that wait for the last one;
missing overlap of engines and memories."""


def waterfall(profile: Profile, program: Program, target: Target, charged: Mapping[str, float]) -> dict[str, Any]:
    """The waterfall as JSON-able values, in cycles. `charged` are the cycles attributed to each kernel."""
    bounds = _bounds(profile, program, target)
    host = profile.host_seconds * profile.clock_ghz * 1e9
    total = profile.cycles + host
    digit = math.ulp(total)
    limits = [*bounds, profile.cycles - profile.launch_cycles, profile.cycles, total]
    parts: list[dict[str, Any]] = []
    reached = 0.0
    for (name, owner, meaning), limit in zip(STEPS, limits, strict=True):
        bound = total if name == "host" else min(max(math.floor(limit / digit) * digit, reached), total)
        share = (bound - reached) / total if total else 0.0
        parts.append({"part": name, "owner": owner, "meaning": meaning, "cycles": bound - reached, "share": share})
        reached = bound
    causes = _causes(profile, charged, bounds[-1])
    exposed = next(p for p in parts if p["part"] == "exposed")
    weight = max(sum(causes.values()), 1e-9)
    exposed["causes"] = {cause: exposed["cycles"] * amount / weight for cause, amount in causes.items()}
    return {
        "total_cycles": total,
        "efficiency": parts[0]["cycles"] / total if total else 0.0,
        "parts": parts,
        "owners": _owners(parts),
        "compulsory_bytes": compulsory_bytes(profile, program),
    }


def _bounds(profile: Profile, program: Program, target: Target) -> list[float]:
    """Bounds of the model's cycles up to all traffic, ascending."""
    kernels = profile.kernels
    vector = sum(k.ideal_vector for k in kernels)
    issued = [sum(k.engine.get(q, 0.0) / k.units for k in kernels) for q in (Queue.TENSOR, Queue.VECTOR)]
    moved = {s: profile.read_bytes.get(s, 0) + profile.write_bytes.get(s, 0) for s in (Space.HBM, Space.L2)}
    hbm = hbm_bytes_per_clk(target)
    found = [
        max(sum(_at_peak(k, target) for k in kernels), vector),
        max(sum(k.ideal_tensor for k in kernels), vector),
        max(sum(k.shaped_tensor for k in kernels), vector),
        compulsory_bytes(profile, program) / hbm,
        max(issued),
        max(moved[Space.HBM] / hbm, moved[Space.L2] / l2_bytes_per_clk(target)),
    ]
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1])
    return found


def _at_peak(stats: KernelStats, target: Target) -> float:
    """Cycles of the kernel's multiply-accumulates in the faster of its own and a 16-bit format."""
    fast = [d for d in ("bf16", "f16") if target.tensor.supports(d)]
    return min([stats.ideal_tensor, *(stats.macs / target.peak_macs_per_clk(d) for d in fast)])


def compulsory_bytes(profile: Profile, program: Program) -> int:
    """Device-memory bytes that any program for the model must move: the read part of each weight and input, and the
    written part of each output, once."""
    total = 0
    updated = {tensor for _, tensor in program.inputs} & {tensor for _, tensor in program.outputs}
    for tensor in program.tensors:
        if tensor.space is Space.HBM and tensor.role in ("const", "input", "output"):
            read, written = (moved.get(tensor.name, 0) for moved in (profile.tensor_read, profile.tensor_write))
            total += min(tensor.bytes, written if tensor.role == "output" else read)
            total += min(tensor.bytes, written) if tensor.name in updated else 0
    return total


def _causes(profile: Profile, charged: Mapping[str, float], hidden: float) -> dict[str, float]:
    """Cycles that each cause claims; engines and memories claim at most `hidden` cycles."""
    causes = dict.fromkeys(CAUSES, 0.0)
    working = 0.0
    for stats in profile.kernels:
        split = time_split(stats, charged.get(stats.name, 0.0))
        for cause in ("latency", "sync", "idle"):
            causes[cause] += split[cause]
        working += sum(split[part] for part in ("tensor", "vector", "l1", "l2", "hbm"))
    causes["overlap"] = max(0.0, working - hidden)
    if not any(causes.values()):
        causes["latency"] = 1.0
    return causes


def _owners(parts: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the total by owner."""
    owners: dict[str, float] = {}
    for part in parts:
        owners[part["owner"]] = owners.get(part["owner"], 0.0) + part["share"]
    return owners

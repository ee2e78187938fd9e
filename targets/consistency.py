"""Consistency rules between the numbers of a target, beyond type and sign of each.

Invariant: a finding names the leaf that must change, or the table with contradicting leaves.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator

from ppuc.ir.errors import Diagnostic
from ppuc.targets.schema import MOST_IN_FLIGHT, PEAKS, Target

_PEAK_TOLERANCE = 0.02

Finding = tuple[str, str, str | None, str | None]
"""Path, rule, got, expected."""


def contradictions(t: Target) -> Iterator[Finding]:
    """Every inconsistency between leaves."""
    if not t.clock.min_mhz <= t.clock.base_mhz <= t.clock.max_mhz:
        clocks = (t.clock.min_mhz, t.clock.base_mhz, t.clock.max_mhz)
        yield "clock", "must ascend from min to base to max", str(clocks), None
    shares = {
        "clock.sustained": t.clock.sustained, "hbm.efficiency": t.hbm.efficiency, "attention.reread": t.attention.reread
    }  # fmt: skip
    for path, share in shares.items():
        if share > 1:
            yield path, "must be at most 1", str(share), None
    if t.cu % t.cu_per_ce:
        yield "cu_per_ce", "does not divide cu", f"{t.cu} units in groups of {t.cu_per_ce}", None
    if t.tensor.organisation == "lanes" and t.tensor.dataflow != "output":
        yield "tensor.dataflow", "must be output for lanes: they keep the accumulator", t.tensor.dataflow, "output"
    if t.tensor.organisation == "systolic":
        yield from _check_arrays(t)
    if math.prod(t.tensor.lane_grid) != t.tensor.lanes:
        yield "tensor.lane_grid", "does not multiply to tensor.lanes", str(t.tensor.lane_grid), str(t.tensor.lanes)
    for flag, dtypes in (("native_fp8", ("f8e4m3", "f8e5m2")), ("native_mx", ("f4e2m1",))):
        claimed = getattr(t.tensor, flag)
        for dtype in dtypes:
            if t.tensor.supports(dtype) != claimed:
                state = "listed" if t.tensor.supports(dtype) else "not listed"
                yield f"tensor.{flag}", f"disagrees with tensor.ii_clk.{dtype}", f"{json.dumps(claimed)}, {state}", None
    if t.l2.bytes_per_clk_total > t.l2.slices * t.l2.bytes_per_clk_per_slice:
        limit = f"at most {t.l2.slices * t.l2.bytes_per_clk_per_slice} (slices x bytes_per_clk_per_slice)"
        yield "l2.bytes_per_clk_total", "is more than the slices give", str(t.l2.bytes_per_clk_total), limit
    for name in ("refresh", "turnaround"):
        value = getattr(t.hbm, name)
        if value >= 1:
            yield f"hbm.{name}", "must be below 1, or no bandwidth remains", str(value), None
    if t.alignment_bytes & (t.alignment_bytes - 1):
        yield "alignment_bytes", "must be a power of two", str(t.alignment_bytes), None
    if t.instruction_bytes != 32:
        yield "instruction_bytes", "must be the width of the only encoding", str(t.instruction_bytes), "32"
    for mover in ("load", "store"):
        if (queues := getattr(t, mover).queues_per_cu) != 1:
            yield f"{mover}.queues_per_cu", "is fixed: programs have one stream per queue", str(queues), "1"
    yield from _check_depths(t)
    limits = (t.thermal.ambient_c, *dataclasses.astuple(t.temperature))
    if list(limits) != sorted(limits):
        yield "temperature", "must ascend from ambient to sw_limit, hw_slow and shutdown", str(limits), None
    if t.power.idle_w > t.power.tdp_w:
        yield "power.idle_w", "is above power.tdp_w", str(t.power.idle_w), f"at most {t.power.tdp_w}"


def _check_depths(t: Target) -> Iterator[Finding]:
    """Check that queue depths do not exceed the simulator's limit."""
    depths = {
        "load.in_flight": t.load.in_flight,
        "store.in_flight": t.store.in_flight,
        "stage.in_flight": t.stage.in_flight,
        "sync.queue_depth": t.sync.queue_depth,
    }
    for path, depth in depths.items():
        if depth > MOST_IN_FLIGHT:
            yield (
                path,
                "exceeds what the simulator keeps in flight",
                str(depth),
                f"at most {MOST_IN_FLIGHT}",
            )


def _check_arrays(t: Target) -> Iterator[Finding]:
    """Fragments of a systolic engine are [1, C, R] (weights stay) or [R, C, 1] (results stay)."""
    streamed = 0 if t.tensor.dataflow == "weight" else 2
    for dtype, fragment in t.tensor.fragment.items():
        if fragment[streamed] != 1:
            expected = "[1, C, R]" if streamed == 0 else "[R, C, 1]"
            yield f"tensor.fragment.{dtype}", "is not one step of a systolic array", str(list(fragment)), expected


def contradicted_peaks(target: Target, where: str) -> Iterator[Diagnostic]:
    """Published peaks that contradict the target's other numbers."""
    for leaf in target.provenance:
        root, _, dtype = leaf.path.partition(".")
        if root != PEAKS:
            continue
        if not target.tensor.supports(dtype):
            yield Diagnostic(f"{where}: {leaf.path}", f"the tensor engine has no ii_clk for {dtype}", str(leaf.value))
        elif abs(leaf.value / target.peak_tops(dtype) - 1) > _PEAK_TOLERANCE:
            formula = "2 x cu x lanes x m x n x k / ii_clk x max_mhz"
            expected = f"{target.peak_tops(dtype):.4g} within 2 % ({formula})"
            yield Diagnostic(
                f"{where}: {leaf.path}", "disagrees with the tensor engine's timing", str(leaf.value), expected
            )


__all__ = ["Finding", "contradicted_peaks", "contradictions"]

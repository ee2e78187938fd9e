"""Breakdown of each kernel's time: engines, bandwidth, latency, synchronisation.

Queues of a unit work concurrently, so several may claim a cycle; it goes to the first of: the tensor engine, the vector
engine, operand delivery by l1 and acc. Remaining cycles are divided in proportion to the activities of the load and
store queues (data phases by memory, waits for latency, issue, waits for counters). Unclaimed cycles are idle: the
unit's share of the kernel has not begun or is over.

Invariant: the parts of a kernel sum to the cycles that it is charged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ppuc.ir.program import Queue
from ppuc.ir.types import Space

if TYPE_CHECKING:
    from ppuc.targets.simulator.result import KernelStats

PARTS = ("tensor", "vector", "l1", "l2", "hbm", "latency", "sync", "idle")
"""Parts of a kernel's time. l1, l2 and hbm are bandwidth."""

_ENGINES = (Queue.TENSOR, Queue.VECTOR)
_TRANSFERS = (Queue.LOAD, Queue.STORE)


def time_split(stats: KernelStats, charged: float) -> dict[str, float]:
    """`charged` cycles divided among PARTS, as means over the kernel's units."""
    left = charged
    parts = dict.fromkeys(PARTS, 0.0)
    waits = sum(stats.operand_wait.get(q, 0.0) for q in _ENGINES)
    first = {"tensor": stats.engine.get(Queue.TENSOR, 0.0), "vector": stats.engine.get(Queue.VECTOR, 0.0), "l1": waits}
    for part, claimed in first.items():
        parts[part] = min(claimed / stats.units, left)
        left -= parts[part]
    claims = {part: cycles / stats.units for part, cycles in _waits(stats).items()}
    scale = min(1.0, left / max(sum(claims.values()), 1e-9))
    for part, cycles in claims.items():
        parts[part] = cycles * scale
    parts["idle"] = max(0.0, charged - sum(parts.values()))
    return parts


def _waits(stats: KernelStats) -> dict[str, float]:
    """Cycles, summed over units, that transfers and issue claim."""
    issue = sum(stats.busy.get(q, 0.0) - stats.engine.get(q, 0.0) - stats.operand_wait.get(q, 0.0) for q in _ENGINES)
    stalls = [stats.stall.get(q, {}) for q in (*_TRANSFERS, *_ENGINES)]
    return {
        "l2": stats.transfer.get(Space.L2, 0.0),
        "hbm": stats.transfer.get(Space.HBM, 0.0),
        "latency": max(0.0, issue if stats.engine else 0.0) + sum(s.get("latency", 0.0) for s in stalls),
        "sync": sum(s.get("sync", 0.0) for s in stalls),
    }


def bound_by(split: Mapping[str, float]) -> str:
    """A kernel's bottleneck: the largest of PARTS, excluding idle."""
    return max((part for part in PARTS if part != "idle"), key=lambda part: split[part])


__all__ = ["PARTS", "bound_by", "time_split"]

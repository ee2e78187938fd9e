"""Remarks of memory-space assignment: which tensors live in l2, which are staged there, and why others stay in device
memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.passes.memory.capacity import step_name
from ppuc.compiler.passes.memory.l2_choice import Candidate, occupied
from ppuc.compiler.passes.remarks import Collector
from ppuc.ir.graph import Graph
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Placed:
    """An assignment for `graph`: `values` and `staged` are the candidates for l2, `chosen` those assigned to it. Copies
    of staged ones begin at `starts`; `readers` are the steps that read each staging candidate. `capacity` is the number
    of bytes of l2 that the choice assumed."""

    graph: Graph
    values: Sequence[Candidate]
    staged: Sequence[Candidate]
    chosen: Sequence[Candidate]
    starts: Mapping[str, int]
    readers: Mapping[str, Sequence[int]]
    capacity: int


def remark_memories(placed: Placed, target: Target, remarks: Collector) -> None:
    """A remark on every candidate for l2."""
    ops, names = placed.graph.ops, {c.name for c in placed.chosen}
    loc = {r.name: op.loc for op in ops for r in op.results}
    loc |= {name: ops[steps[0]].loc for name, steps in placed.readers.items()}
    taken, rate = occupied(placed.chosen, len(ops)), hbm_bytes_per_clk(target)
    for c in placed.values:
        if c.name in names:
            remarks.applied("in-l2", c.name, loc[c.name], bytes=c.bytes, saved_bytes=int(c.saved))
    for c in placed.staged:
        if c.name in names:
            ahead = placed.readers[c.name][0] - placed.starts[c.name]
            remarks.applied("staged", c.name, loc[c.name], bytes=c.bytes, saved_bytes=int(c.saved), steps_ahead=ahead)
    for decision, candidates in (("kept-in-hbm", placed.values), ("not-staged", placed.staged)):
        for c in candidates:
            if c.name not in names:
                why, saved = _no_room(c, placed, taken.tolist()), int(c.saved)
                lost = saved / rate
                remarks.missed(decision, c.name, loc[c.name], why, bytes=c.bytes, saved_bytes=saved, lost_clk=lost)
    _remark_excluded(placed, target, loc, remarks)


def _remark_excluded(placed: Placed, target: Target, loc: Mapping[str, Sequence[str]], remarks: Collector) -> None:
    """Remarks on constants and inputs that do not benefit from staging."""
    types = {v.name: v.type for v in placed.graph.params} | {
        r.name: r.type for op in placed.graph.ops for r in op.results
    }
    candidates = {c.name for c in placed.staged}
    for name in placed.readers:
        if name not in candidates:
            size = types[name].bytes
            why = "it is larger than l2" if size > target.l2.bytes else "few rows read it: each byte is read about once"
            remarks.missed("not-staged", name, loc[name], why, bytes=size, saved_bytes=0)


def _no_room(c: Candidate, placed: Placed, taken: Sequence[int]) -> str:
    """Why a candidate does not fit l2 beside the chosen ones: they leave no room for it at one step at least."""
    if c.bytes > placed.capacity:
        return f"it is larger than l2, which holds {placed.capacity:,} bytes"
    full = [step for step in range(c.start, c.end + 1) if taken[step] + c.bytes > placed.capacity]
    fullest = max(full, key=lambda step: (taken[step], -step))
    held = f"{taken[fullest]:,} of {placed.capacity:,} bytes"
    first, last = (step_name(placed.graph, step) for step in (full[0], full[-1]))
    between = f"at {first}" if first == last else f"from {first} to {last}"
    return f"no room {between}: tensors that save more per byte take {held}"

"""Description of a deadlock: every blocked queue, its instruction and what the instruction waits for."""

from __future__ import annotations

import numpy as np

from ppuc.ir.program import UNIT_QUEUES
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.counters import blocks_of, counts_of
from ppuc.targets.simulator.decode import FlatSegment


def describe_deadlock(flat: FlatSegment, state: t.State, at_most: int = 12) -> str:
    """One line per blocked queue, the first `at_most` of them."""
    lines = [f"segment {flat.segment.name}: deadlock at cycle {state.core['now'][0]:.0f}"]
    blocked = np.flatnonzero(state.stream["cause"] != t.B_NONE).tolist()
    for s in blocked[:at_most]:
        index = int(state.stream["head"][s])
        info = flat.instrs[index]
        place = f"unit {s // 4} {UNIT_QUEUES[s % 4]}" if info.kernel >= 0 else f"stage {info.queue}"
        loops = ", ".join(f"%{v} = {state.place['at'][s, d]}" for d, v in enumerate(info.loops))
        where = f" at {loops}" if loops else ""
        lines.append(f"  {place}: {flat.instr_name(index)}{where} waits for {_reason(flat, state, s)}")
    if len(blocked) > at_most:
        lines.append(f"  and {len(blocked) - at_most} more queues")
    return "\n".join(lines)


def _reason(flat: FlatSegment, state: t.State, s: int) -> str:
    cause, what = int(state.stream["cause"][s]), int(state.stream["what"][s])
    if cause == t.B_COUNTER:
        group = flat.segment.counters[what]
        counts = counts_of(flat.code, state)[blocks_of(flat.code, np.array([what]))].tolist()
        missing = [b for b, (n, e) in enumerate(zip(counts, group.expect, strict=True)) if n < e]
        shown = ", ".join(f"block {b} ({counts[b]} of {group.expect[b]})" for b in missing[:4])
        return f"counter {group.name}: {shown or 'nothing'}"
    if cause == t.B_ROOM:
        return "room in its queue"
    if cause == t.B_BLOCK:
        return "an earlier tile of its kernel to be stored"
    ring, unit = flat.rings[what], s // 4
    if cause == t.B_DATA:
        return f"a filled slot of %{ring.name} ({state.filled['pushed'][unit, what]} pushed)"
    if cause == t.B_AFTER:
        return f"the rings before %{ring.name} to retire: {', '.join('%' + name for name in ring.after)}"
    popped = [
        f"{state.reader['popped'][unit, what, q]} popped by {UNIT_QUEUES[q]}"
        for q in range(4)
        if UNIT_QUEUES[q] in ring.consumers
    ]
    return f"a free slot of %{ring.name} ({state.filled['claimed'][unit, what]} claimed, {', '.join(popped)})"

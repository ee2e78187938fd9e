"""Events of a run as a table and as a Chrome / Perfetto trace.

One track per queue of every unit and per stage queue. Times of the trace are microseconds of simulated time.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ppuc.ir.program import UNIT_QUEUES
from ppuc.targets.schema import Target
from ppuc.targets.simulator.flatten import FlatSegment

EVENT = np.dtype(
    [
        ("start", "f8"),
        ("end", "f8"),
        ("unit", "i4"),
        ("queue", "i4"),
        ("instr", "i4"),
        ("kernel", "i4"),
        ("segment", "i4"),
    ]
)
"""start, end in cycles; unit (-1 on stage queues); queue: index into UNIT_QUEUES, or the stage queue's number; instr:
index into the run's event names; kernel: index into the profile's kernels, -1 for copies."""


class EventTable:
    """Collects log rows; `names` are the texts of instructions, segment after segment."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._tables: list[np.ndarray] = []
        self._open: FlatSegment | None = None
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []
        self._begin, self._segment, self._kernels = 0.0, -1, 0

    def open(self, flat: FlatSegment, begin: float) -> None:
        """Start the segment that begins at cycle `begin`."""
        self._close()
        self._open, self._begin, self._segment = flat, begin, self._segment + 1

    def consume(self, times: np.ndarray, rows: np.ndarray) -> None:
        """Keep log rows."""
        self._chunks.append((times.copy(), rows[:, :3].copy()))

    def table(self) -> np.ndarray:
        """All events, of dtype EVENT, in order of their starts."""
        self._close()
        return np.concatenate(self._tables) if self._tables else np.empty(0, EVENT)

    def _close(self) -> None:
        if self._open is None:
            return
        flat = self._open
        times = np.concatenate([t for t, _ in self._chunks])
        rows = np.concatenate([r for _, r in self._chunks])
        starts, ends = np.flatnonzero(rows[:, 0] == 0), np.flatnonzero(rows[:, 0] == 1)
        # A stream's completions come in the order of its starts: stable sorts by stream pair them up.
        starts = starts[np.argsort(rows[starts, 1], kind="stable")]
        ends = ends[np.argsort(rows[ends, 1], kind="stable")]
        stream, instr = rows[starts, 1], rows[starts, 2]
        units = 4 * flat.machine.units
        out = np.empty(len(starts), EVENT)
        out["start"], out["end"] = self._begin + times[starts], self._begin + times[ends]
        out["unit"] = np.where(stream < units, stream // 4, -1)
        out["queue"] = np.where(stream < units, stream % 4, stream - units)
        kernel = flat.code.ins[instr, 0]
        out["kernel"] = np.where(kernel >= 0, kernel + self._kernels, -1)
        out["instr"], out["segment"] = instr + len(self.names), self._segment
        self._tables.append(out[np.argsort(out["start"], kind="stable")])
        self.names += [flat.instr_name(i) for i in range(len(flat.instrs))]
        self._kernels += len(flat.segment.kernels)
        self._open, self._chunks = None, []


def write_trace(path: Path, events: np.ndarray, names: tuple[str, ...], target: Target) -> None:
    """Write a Chrome trace (JSON array form) that Perfetto opens."""
    us = target.clk_ns * 1e-3
    with path.open("w", encoding="utf-8") as out:
        out.write("[\n")
        for text in _tracks(events):
            out.write(json.dumps(text) + ",\n")
        for e in events:
            unit, queue = int(e["unit"]), int(e["queue"])
            kernel, _, text = names[e["instr"]].partition("/")
            record = {
                "ph": "X",
                "name": text.partition(": ")[2] or names[e["instr"]],
                "cat": kernel,
                "pid": unit + 1,
                "tid": queue,
                "ts": round(float(e["start"]) * us, 6),
                "dur": round(float(e["end"] - e["start"]) * us, 6),
            }
            out.write(json.dumps(record) + ",\n")
        out.write('{"ph": "M", "name": "process_sort_index", "pid": 0, "args": {"sort_index": 0}}\n]\n')


def _tracks(events: np.ndarray) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for unit in np.unique(events["unit"]).tolist():
        name = "stage" if unit < 0 else f"unit {unit}"
        out.append({"ph": "M", "name": "process_name", "pid": unit + 1, "args": {"name": name}})
        for queue in np.unique(events["queue"][events["unit"] == unit]).tolist():
            label = f"stage {queue}" if unit < 0 else str(UNIT_QUEUES[queue])
            out.append({"ph": "M", "name": "thread_name", "pid": unit + 1, "tid": queue, "args": {"name": label}})
    return out


__all__ = ["EVENT", "EventTable", "write_trace"]

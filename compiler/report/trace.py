"""Writes a run as a trace for Perfetto (ui.perfetto.dev) and chrome://tracing, in the Chrome trace event format.

A process per unit with a track per queue, and a process for the chip with the stage queues and counters over time
(trace_counters.py). Times are microseconds of simulated time. A queue with several transfers in flight gets a track for
each, because viewers nest overlapping events on one track. Arrows lead from the instruction that filled a ring's slot,
or completed the counters, to each one that waited for it; they start in the middle of their source, so that rounding
keeps them on it.

Invariant: events of one track do not overlap; a trace has at most `limit` instructions and as many arrows, and reports
what it omits. Whole units are omitted (all run the same text); counters always cover all units.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.report.trace_counters import counter_tracks
from ppuc.ir.files import whole_file
from ppuc.ir.program import UNIT_QUEUES

if TYPE_CHECKING:
    from ppuc.targets.simulator.run import RawResult

LANES = 64
"""Track ids reserved per queue: more than its transfers in flight."""

LIMIT = 100_000
"""Default maximum of instructions, and of arrows, in a trace: about 40 MB."""


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """The shown part of a trace."""

    instructions: int
    of_instructions: int
    units: int
    of_units: int
    arrows: int
    of_arrows: int

    def __str__(self) -> str:
        left_out = []
        if self.units < self.of_units:
            left_out.append(f"{self.units} of {self.of_units} units")
        if self.instructions < self.of_instructions:
            left_out.append(f"{self.instructions} of {self.of_instructions} instructions")
        if self.arrows < self.of_arrows:
            left_out.append(f"{self.arrows} of {self.of_arrows} arrows")
        return "everything" if not left_out else ", ".join(left_out) + "; counters cover the whole run"


def write_trace(path: str | Path, raw: RawResult, nodes: Mapping[str, str], limit: int = LIMIT) -> TraceSummary:
    """Write the events of a traced simulation, compressed if the name of `path` ends in .gz, which Perfetto reads as
    well; `nodes` gives each kernel's ONNX node. Raises UsageError if `path` cannot be written."""
    with whole_file(path) as file:
        if Path(path).suffix != ".gz":
            with io.TextIOWrapper(file, "utf-8") as text:
                return _write(text, raw, nodes, limit)
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as text:
            return _write(text, raw, nodes, limit)


def _write(file: IO[str], raw: RawResult, nodes: Mapping[str, str], limit: int) -> TraceSummary:
    shown = _shown(raw, limit)
    tracks, lanes = _tracks(raw, shown)
    arrows = _arrows(raw, shown, limit)
    total = 0 if raw.details is None else len(raw.details.flows)
    units, of_units = (_units(raw, chosen) for chosen in (shown, np.ones_like(shown)))
    summary = TraceSummary(int(shown.sum()), len(shown), len(units), len(of_units), len(arrows), total)
    profile = raw.profile
    about = {"target": profile.target, "target_hash": profile.target_hash, "shown": str(summary)}
    file.write(f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(about)}, "traceEvents": [\n')
    for event in _slices(raw, nodes, shown, lanes):
        file.write(json.dumps(event, ensure_ascii=False) + ",\n")
    for event in _flow_events(raw, arrows, lanes):
        file.write(json.dumps(event, ensure_ascii=False) + ",\n")
    for event in counter_tracks(raw):
        file.write(json.dumps(event) + ",\n")
    file.write(",\n".join(json.dumps(name) for name in _track_names(tracks)) + "\n]}\n")
    return summary


def _units(raw: RawResult, chosen: np.ndarray) -> set[int]:
    """Units that have a chosen event."""
    return set() if raw.events is None else {u for u in np.unique(raw.events["unit"][chosen]).tolist() if u >= 0}


def _shown(raw: RawResult, limit: int) -> np.ndarray:
    """Mask of the events shown: the chip's, and those of as many units as fit, from unit 0 on; if unit 0 alone does not
    fit, as many of its first events as fit."""
    if raw.events is None:
        return np.zeros(0, bool)
    unit = raw.events["unit"]
    counts = np.bincount(unit + 1)
    fitting = int(np.searchsorted(np.cumsum(counts), limit, side="right"))
    shown = unit + 1 < max(fitting, 2)
    shown[np.flatnonzero(shown)[limit:]] = False
    return shown


def _tracks(raw: RawResult, shown: np.ndarray) -> tuple[dict[tuple[int, int, int], int], dict[int, tuple[int, int]]]:
    """(unit, queue, lane) -> track id, and event -> (process id, track id)."""
    tracks: dict[tuple[int, int, int], int] = {}
    lanes: dict[int, tuple[int, int]] = {}
    free: dict[tuple[int, int], list[float]] = {}
    if raw.events is None:
        return tracks, lanes
    chosen = np.flatnonzero(shown)
    columns = (raw.events[name][chosen].tolist() for name in ("start", "end", "unit", "queue"))
    for event, start, end, unit, queue in zip(chosen.tolist(), *columns, strict=True):
        lane = _lane(free.setdefault((unit, queue), []), start, end)
        lanes[event] = unit + 1, tracks.setdefault((unit, queue, lane), queue * LANES + lane)
    return tracks, lanes


def _lane(ends: list[float], start: float, end: float) -> int:
    """The first lane that is free at `start`; events come in order of their starts."""
    for lane, busy_until in enumerate(ends):
        if busy_until <= start:
            ends[lane] = end
            return lane
    ends.append(end)
    return len(ends) - 1


def _arrows(raw: RawResult, shown: np.ndarray, limit: int) -> np.ndarray:
    """The flows between shown events; counter flows first if there are too many."""
    if raw.details is None or not len(shown):
        return np.zeros(0, [("source", "i8"), ("sink", "i8"), ("label", "i4")])
    flows = raw.details.flows
    flows = flows[shown[flows["source"]] & shown[flows["sink"]]]
    of_rings = np.array([label.startswith("%") for label in raw.details.labels], bool)
    kept: np.ndarray = flows[np.argsort(of_rings[flows["label"]], kind="stable")][:limit]
    return kept


def _slices(
    raw: RawResult, nodes: Mapping[str, str], shown: np.ndarray, lanes: Mapping[int, tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """One complete event per instruction instance."""
    if raw.events is None:
        return
    kernels = raw.profile.kernels
    us = 1e-3 / raw.profile.clock_ghz
    chosen = np.flatnonzero(shown)
    columns = (raw.events[name][chosen].tolist() for name in ("start", "end", "instr", "kernel"))
    for event, start, end, instr, kernel in zip(chosen.tolist(), *columns, strict=True):
        name = kernels[kernel].name if kernel >= 0 else ""
        text = raw.event_names[instr].partition(": ")[2] or raw.event_names[instr]
        node = nodes.get(name, name)
        pid, tid = lanes[event]
        yield {
            "name": f"{text.partition(' ')[0]} {node}" if name else text.partition("[")[0],
            "cat": name or "copy",
            "ph": "X",
            "ts": round(start * us, 6),
            "dur": round((end - start) * us, 6),
            "pid": pid,
            "tid": tid,
            "args": {"node": node, "kernel": name, "instruction": text, "cycles": round(end - start, 3)},
        }


def _flow_events(raw: RawResult, arrows: np.ndarray, lanes: Mapping[int, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Two events per arrow."""
    if raw.events is None or raw.details is None:
        return
    us = 1e-3 / raw.profile.clock_ghz
    middle = (raw.events["start"] + raw.events["end"]) / 2
    for number, (source, sink, label) in enumerate(arrows.tolist()):
        name = raw.details.labels[label]
        common = {"name": name, "cat": "ring" if name.startswith("%") else "counter", "id": number}
        pid, tid = lanes[source]
        yield {**common, "ph": "s", "ts": round(float(middle[source]) * us, 6), "pid": pid, "tid": tid}
        pid, tid = lanes[sink]
        start = float(raw.events["start"][sink])
        yield {**common, "ph": "f", "bp": "e", "ts": round(start * us, 6), "pid": pid, "tid": tid}


def _track_names(tracks: Mapping[tuple[int, int, int], int]) -> Iterator[dict[str, Any]]:
    """Names and order of processes and tracks. Unit -1 is the chip, whose queues are the stage queues; there is always
    a process."""
    for unit in sorted({unit for unit, _, _ in tracks} | {-1}):
        yield _meta("process_name", unit + 1, 0, name="chip" if unit < 0 else f"CU {unit}")
        yield _meta("process_sort_index", unit + 1, 0, sort_index=unit + 1)
    for (unit, queue, lane), track in sorted(tracks.items()):
        name = f"stage {queue}" if unit < 0 else str(UNIT_QUEUES[queue])
        yield _meta("thread_name", unit + 1, track, name=f"{name} +{lane}" if lane else name)
        yield _meta("thread_sort_index", unit + 1, track, sort_index=track)


def _meta(kind: str, pid: int, tid: int, **args: object) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}

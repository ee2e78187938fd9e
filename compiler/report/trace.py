"""A run as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: a process per unit, tracks per queue.

Times are microseconds of simulated time. A queue with several transfers in flight gets a track for each, because
viewers nest what overlaps on one track. Invariant: events of one track do not overlap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ppuc.ir.errors import UsageError
from ppuc.ir.program import UNIT_QUEUES

if TYPE_CHECKING:
    from ppuc.targets.simulator.run import RawResult

LANES = 64
"""Track ids left free for each queue: more than any queue has transfers in flight."""


def write_trace(path: str | Path, raw: RawResult, nodes: Mapping[str, str]) -> int:
    """Write the events of a simulation that was asked for a trace; `nodes` gives each kernel's ONNX node. Returns the
    number of instructions. Raises UsageError when `path` cannot be written."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            count = _write(file, raw, nodes)
        os.replace(partial, target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UsageError.of(str(target), "the trace cannot be written", got=error.strerror) from error
    return count


def _write(file: IO[str], raw: RawResult, nodes: Mapping[str, str]) -> int:
    tracks: dict[tuple[int, int, int], int] = {}
    count = 0
    file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
    for event in _events(raw, nodes, tracks):
        file.write(json.dumps(event, ensure_ascii=False) + ",\n")
        count += 1
    names = list(_track_names(tracks))
    file.write(",\n".join(json.dumps(name) for name in names) + "\n]}\n")
    return count


def _events(
    raw: RawResult, nodes: Mapping[str, str], tracks: dict[tuple[int, int, int], int]
) -> Iterator[dict[str, Any]]:
    """One complete event per instruction instance; `tracks` collects (unit, queue, lane) -> track id."""
    if raw.events is None:
        return
    kernels = raw.profile.kernels
    us = 1e-3 / raw.profile.clock_ghz
    free: dict[tuple[int, int], list[float]] = {}
    columns = (raw.events[name].tolist() for name in ("start", "end", "unit", "queue", "instr", "kernel"))
    for start, end, unit, queue, instr, kernel in zip(*columns, strict=True):
        lane = _lane(free.setdefault((unit, queue), []), start, end)
        track = tracks.setdefault((unit, queue, lane), queue * LANES + lane)
        name = kernels[kernel].name if kernel >= 0 else ""
        yield {
            "name": raw.event_names[instr],
            "cat": name or "copy",
            "ph": "X",
            "ts": round(start * us, 6),
            "dur": round((end - start) * us, 6),
            "pid": unit + 1,
            "tid": track,
            "args": {"kernel": name, "node": nodes.get(name, ""), "cycles": end - start},
        }


def _lane(ends: list[float], start: float, end: float) -> int:
    """The first lane that is free at `start`; events come in order of their starts."""
    for lane, busy_until in enumerate(ends):
        if busy_until <= start:
            ends[lane] = end
            return lane
    ends.append(end)
    return len(ends) - 1


def _track_names(tracks: Mapping[tuple[int, int, int], int]) -> Iterator[dict[str, Any]]:
    """Names of processes and tracks. Unit -1 is the chip, whose queues are the stage queues; there is always a
    process."""
    for unit in sorted({unit for unit, _, _ in tracks} | {-1}):
        yield _meta("process_name", unit + 1, 0, "chip" if unit < 0 else f"CU {unit}")
    for (unit, queue, lane), track in sorted(tracks.items()):
        name = f"stage {queue}" if unit < 0 else str(UNIT_QUEUES[queue])
        yield _meta("thread_name", unit + 1, track, f"{name} +{lane}" if lane else name)


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}

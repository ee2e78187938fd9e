"""A run as a trace that Chrome (about:tracing) and Perfetto open: one process per unit, one track per queue.

Times are microseconds of simulated time. Invariant: events of one track do not overlap, so no viewer nests them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ppuc.ir.errors import UsageError
from ppuc.ir.program import Queue

CHIP = "chip"
_QUEUES = tuple(Queue)


def write_trace(path: str | Path, raw: Any, nodes: Mapping[str, str]) -> int:
    """Write the events of a simulation that was asked for a trace; `nodes` names each kernel's ONNX node. Returns the
    number of events. Raises UsageError when `path` cannot be written."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            count = _write(file, raw, nodes)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError.of(str(target), "the trace cannot be written", got=error.strerror) from error
    return count


def _write(file: IO[str], raw: Any, nodes: Mapping[str, str]) -> int:
    count = 0
    file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
    for count, event in enumerate(_events(raw, nodes), 1):
        file.write((",\n" if count > 1 else "") + json.dumps(event, ensure_ascii=False))
    file.write("\n]}\n")
    return count


def _events(raw: Any, nodes: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    events = raw.events
    kernels = raw.profile.kernels
    yield from _tracks(events)
    us = 1e-3 / raw.profile.clock_ghz
    starts, lengths = events["time_start"] * us, (events["time_end"] - events["time_start"]) * us
    columns = (
        events["unit"].tolist(),
        events["queue"].tolist(),
        events["kernel"].tolist(),
        events["name_index"].tolist(),
    )
    for start, length, unit, queue, kernel, name in zip(starts.tolist(), lengths.tolist(), *columns, strict=True):
        stats = kernels[kernel] if 0 <= kernel < len(kernels) else None
        arguments = {"kernel": stats.name, "node": nodes.get(stats.name, "")} if stats is not None else {}
        yield {
            "name": raw.event_names[name],
            "cat": stats.name if stats is not None else str(_QUEUES[queue]),
            "ph": "X",
            "ts": round(start, 6),
            "dur": round(length, 6),
            "pid": unit + 1,
            "tid": queue,
            "args": arguments,
        }


def _tracks(events: np.ndarray) -> Iterator[dict[str, Any]]:
    """Names of processes and tracks; unit -1 is the chip, with the stage queues."""
    pairs = np.unique(np.stack([events["unit"], events["queue"]], 1), axis=0) if len(events) else np.zeros((0, 2), int)
    for unit in sorted({int(u) for u, _ in pairs}):
        yield _meta("process_name", unit + 1, 0, CHIP if unit < 0 else f"CU {unit}")
    for unit, queue in pairs.tolist():
        yield _meta("thread_name", unit + 1, queue, str(_QUEUES[queue]) if queue < len(_QUEUES) else f"stage {queue}")


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}

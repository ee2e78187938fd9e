"""Counters over the time of a run: bandwidth, power, occupancy of l1, transfers in flight.

An instruction's bytes and energy are spread evenly over its time, and means are taken over BINS equal parts of the run.
Invariant: a counter's mean over all bins, times the run's time, is the profile's total (bytes, joules).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ppuc.targets.simulator.run import RawResult

BINS = 1000


def counter_tracks(raw: RawResult) -> Iterator[dict[str, Any]]:
    """Counter events of the chip, in the Chrome trace event format."""
    if raw.events is None or raw.details is None or not raw.profile.cycles:
        return
    ghz = raw.profile.clock_ghz
    edges = np.linspace(0.0, raw.profile.cycles, BINS + 1)
    for name, (unit, values) in counters(raw).items():
        previous = None
        for at, value in zip((edges[:-1] / ghz * 1e-3).tolist(), values.tolist(), strict=True):
            shown = float(f"{value:.4g}")
            if shown != previous:
                yield {"name": name, "ph": "C", "ts": round(at, 6), "pid": 0, "tid": 0, "args": {unit: shown}}
            previous = shown
        end = round(raw.profile.cycles / ghz * 1e-3, 6)
        yield {"name": name, "ph": "C", "ts": end, "pid": 0, "tid": 0, "args": {unit: 0.0}}


def counters(raw: RawResult) -> dict[str, tuple[str, np.ndarray]]:
    """Counter -> (unit, mean of each bin)."""
    events, details = raw.events, raw.details
    if events is None or details is None:
        return {}
    edges = np.linspace(0.0, raw.profile.cycles, BINS + 1)
    width = edges[1] - edges[0]
    start, end, instr = events["start"], events["end"], events["instr"]
    bin_seconds = width / (raw.profile.clock_ghz * 1e9)

    def rate(amount: np.ndarray) -> np.ndarray:
        per_bin: np.ndarray = spread(start, end, amount, edges) / bin_seconds
        return per_bin

    transfers = (events["unit"] < 0) | (events["queue"] < 2)
    in_flight = spread(start[transfers], end[transfers], (end - start)[transfers], edges) / width
    return {
        "hbm bandwidth": ("GB/s", rate(details.hbm_bytes[instr]) * 1e-9),
        "l2 bandwidth": ("GB/s", rate(details.l2_bytes[instr]) * 1e-9),
        "power": ("W", rate(details.joules[instr]) + details.idle_w),
        "l1 in use, all units": ("KiB", _held(details.occupancy, edges) / 1024),
        "transfers in flight": ("transfers", in_flight),
    }


def spread(start: np.ndarray, end: np.ndarray, amount: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The part of each amount, spread evenly from start to end, that falls into each bin."""
    end = np.maximum(end, start + 1e-3)
    rate = amount / (end - start)
    return _differences(_ramp(start, rate, edges) - _ramp(end, rate, edges))


def _differences(reached: np.ndarray) -> np.ndarray:
    """Differences of a sum that is monotonic up to rounding."""
    steps: np.ndarray = reached[1:] - reached[:-1]
    noise = 1e-12 * float(np.abs(reached).max(initial=0.0))
    return np.where(steps > noise, steps, 0.0)


def _ramp(begin: np.ndarray, rate: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Sum over i of rate[i] * max(0, at - begin[i])."""
    order = np.argsort(begin, kind="stable")
    reached = np.searchsorted(begin[order], at, side="right")
    rates = np.concatenate([[0.0], np.cumsum(rate[order])])
    weighted = np.concatenate([[0.0], np.cumsum(rate[order] * begin[order])])
    total: np.ndarray = at * rates[reached] - weighted[reached]
    return total


def _held(changes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean bytes held in each bin."""
    held: np.ndarray = _differences(_ramp(changes["time"], changes["bytes"].astype(np.float64), edges))
    held /= edges[1] - edges[0]
    return held

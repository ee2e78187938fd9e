"""A target's numbers in the event loop's units: cycles, bytes per cycle, and latencies in whole ticks."""

from __future__ import annotations

import numpy as np

from ppuc.ir.types import Space
from ppuc.targets.cost import (
    engine_of,
    gap_clk,
    hbm_bytes_per_clk,
    hop_offsets,
    l2_bytes_per_clk,
    latency_clk,
    mesh_bytes_per_clk,
    shared_fragments,
    stream_rate,
)
from ppuc.targets.schema import Target
from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator import tables as t


def machine_of(target: Target) -> t.Machine:
    """The tables of `target`."""
    hbm, host = hbm_bytes_per_clk(target), target.host.gbs_per_dir * target.clk_ns
    capacity = [min(hbm, mesh_bytes_per_clk(target)), l2_bytes_per_clk(target), host]
    capacity += [float(target.noc.ce_port_bytes_per_clk)] * target.ces
    capacity += [float(target.l2.bytes_per_clk_per_cu)] * target.cu
    return t.Machine(
        numbers=_numbers(target),
        mover=_movers(target, max(hbm, host)),
        latency=ticks(np.array([latency_clk(s, target) for s in (Space.HBM, Space.L2, Space.HOST)])),
        hop=ticks(np.repeat(hop_offsets(target), target.cu_per_ce)),
        capacity=np.array(capacity),
    )


def ticks(clk: np.ndarray) -> np.ndarray:
    """The nearest whole numbers of ticks, in cycles."""
    return np.asarray(np.round(clk * t.TICKS) / t.TICKS)


def whole(clk: float) -> float:
    """The nearest whole number of ticks, in cycles."""
    return round(clk * t.TICKS) / t.TICKS


def _numbers(target: Target) -> np.ndarray:
    numbers = rec.rows(rec.Numbers, 1)
    values: dict[str, float] = {
        "units": target.cu,
        "ces": target.ces,
        "cu_per_ce": target.cu_per_ce,
        "lane_rows": target.tensor.lane_grid[0],
        "lane_cols": target.tensor.lane_grid[1],
        "shared_rows": shared_fragments(target)[0],
        "shared_cols": shared_fragments(target)[1],
        "lanes": target.vector.lanes,
        "sfu": target.vector.sfu_per_clk,
        "sfu_beside_lanes": target.vector.sfu_beside_lanes,
        "engine": engine_of(target),
        "gap": gap_clk(target),
        "whole_tiles": target.launch.tiles != "streaming",
        "burst": target.hbm.burst_bytes,
        "activate": target.hbm.activate_bytes,
        "banks": target.hbm.banks,
        "interleave": target.hbm.interleave_bytes,
        "cached": target.l2.managed == "cache",
        "write_back": target.l2.writes == "back",
        "multicast": target.noc.multicast != "none",
        "issue": whole(target.issue_clk),
        "ring_op": whole(target.sync.ring_op_clk),
        "l1_rate": target.l1.bytes_per_clk,
        "acc_rate": target.acc.bytes_per_clk,
        "turnaround": target.hbm.turnaround,
        "l2_bytes": target.l2.bytes,
        "dispatch": whole(target.launch.dispatch_clk),
        "bump": whole(target.sync.counter_bump_ns / target.clk_ns),
        "open_rows": stream_rate(target.cu, target.hbm.banks, target.hbm.interleave_bytes, target.hbm.activate_bytes),
    }
    for name, value in values.items():
        numbers[name] = value
    return numbers


def _movers(target: Target, stage_rate: float) -> np.ndarray:
    """By instruction kind; `room` by queue."""
    movers, load, store = rec.rows(rec.Mover, 5), target.load, target.store
    movers["start"] = [whole(x) for x in (load.start_clk, store.start_clk, 0, 0, target.stage.start_ns / target.clk_ns)]
    movers["row"] = [load.row_clk, store.row_clk, 0, 0, 0]
    movers["rate"] = [load.bytes_per_clk, store.bytes_per_clk, 0, 0, stage_rate]
    depth = target.sync.queue_depth
    movers["room"] = [load.in_flight, store.in_flight, depth, depth, target.stage.in_flight]
    return movers


__all__ = ["machine_of", "ticks"]

"""Laws of simulated time, on random programs and machines: bounds, conservation, equal shares, closed forms, and that
values do not depend on time."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ppuc.ir.kernel import View
from ppuc.ir.program import Program
from ppuc.ir.types import DType, Space
from ppuc.targets import cost
from ppuc.targets.description import Target, load_target, override
from ppuc.targets.simulator.result import Profile
from ppuc.targets.simulator.run import simulate
from tests.support.simulator_programs import RELU, Gemm, chain_program, copy_program, gemm_program

TINY = override(load_target("ppu-tiny"), "l2.bytes=1048576")  # room for whatever is drawn
CHANCE = 0.02
"""Queues that meet by chance may change order when one of them slows down, as in any list schedule (Graham 1969): a law
over whole programs holds to this on all but contrived ones, so those laws are tested on fixed examples."""

sizes = st.integers(1, 70)
spaces = st.sampled_from([Space.L2, Space.HBM])


@st.composite
def gemms(draw: st.DrawFn) -> Gemm:
    return Gemm(
        draw(sizes), draw(sizes), draw(sizes), depth=draw(st.integers(1, 3)),
        grid=draw(st.sampled_from([(1, 1), (2, 1), (1, 2)])), a_space=draw(spaces), b_space=draw(spaces),
    )  # fmt: skip


@st.composite
def machines(draw: st.DrawFn) -> Target:
    """ppu-tiny with other numbers."""
    pick = st.sampled_from
    return override(
        TINY,
        f"l1.bytes_per_clk={draw(pick([8, 32, 128]))}",
        f"load.bytes_per_clk={draw(pick([4, 16, 64]))}",
        f"l2.latency_ns={draw(pick([0, 33.3, 500]))}",
        f"hbm.latency_ns={draw(pick([0, 77.7, 900]))}",
        f"sync.queue_depth={draw(pick([1, 2, 16]))}",
        f"hbm.banks={draw(pick([1, 4, 64]))}",
        f"launch.tiles={draw(pick(['streaming', 'persistent', 'blocks']))}",
        f"l2.managed={draw(pick(['software', 'cache']))}",
        f"l2.writes={draw(pick(['back', 'through']))}",
    )


def timed(program: Program, target: Target) -> Profile:
    return simulate(program, (RELU,), target, {}, None).profile


def feeds(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {t.name: rng.standard_normal(t.elements).astype(np.float32) for t in program.tensors if t.role == "input"}


# Bounds.


@given(gemms(), machines())
@settings(max_examples=60, deadline=None)
def test_time_is_at_least_what_each_resource_needs(g: Gemm, target: Target) -> None:
    p = timed(gemm_program(g), target)
    moved = {s: p.read_bytes.get(s, 0) + p.write_bytes.get(s, 0) for s in Space}
    needed = {
        "tensor": g.m * g.n * g.k / target.peak_macs_per_clk(DType.F32),
        "l2": moved[Space.L2] / target.l2.bytes_per_clk_total,
        "hbm": moved[Space.HBM] / cost.hbm_bytes_per_clk(target),
        "ports": (moved[Space.L2] + moved[Space.HBM]) / (target.noc.ce_port_bytes_per_clk * target.ces),
        "launch": target.segment_launch_us * 1e3 / target.clk_ns,
    }
    if target.l2.managed == "cache":
        needed.pop("ports")  # a miss crosses l2 and device memory on one way through the port
    assert p.cycles >= max(needed.values()), needed


@given(gemms(), machines())
@settings(max_examples=60, deadline=None)
def test_bytes_are_conserved(g: Gemm, target: Target) -> None:
    """What is fetched is what the tiles hold, whatever the machine; what enters l1 leaves memory; what is stored is the
    result, once."""
    p = timed(gemm_program(g), target)
    row_tiles, col_tiles = -(-g.m // g.tm), -(-g.n // g.tn)
    read = 4 * (g.m * g.k * col_tiles + g.k * g.n * row_tiles)
    outside = [p.read_bytes.get(s, 0) for s in (Space.L2, Space.HBM)]
    assert sum(p.tensor_read.values()) == sum(outside) == read
    assert p.tensor_write == {"y": 4 * g.m * g.n}
    assert p.kernels[0].macs == g.m * g.n * g.k
    assert p.write_bytes[Space.ACC] >= 4 * g.m * g.n
    if target.l2.managed == "software" or target.l2.writes == "through":
        assert sum(p.write_bytes.get(s, 0) for s in (Space.L2, Space.HBM)) == 4 * g.m * g.n


# Monotony.

LONGER = [
    "l2.latency_ns", "hbm.latency_ns", "load.start_clk", "load.row_clk", "issue_clk", "sync.ring_op_clk",
    "store.start_clk", "tensor.fill_clk", "segment_launch_us",
]  # fmt: skip
FASTER = [
    "hbm.gbs", "l2.bytes_per_clk_total", "l2.bytes_per_clk_per_cu", "noc.ce_port_bytes_per_clk", "load.bytes_per_clk",
    "l1.bytes_per_clk", "acc.bytes_per_clk", "vector.lanes",
]  # fmt: skip


def value_of(target: Target, path: str) -> float:
    return float(next(leaf.value for leaf in target.leaves() if leaf.path == path))


@given(gemms(), machines(), st.sampled_from(LONGER), st.floats(1.1, 8))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_time_does_not_fall_when_a_cost_grows(g: Gemm, target: Target, path: str, factor: float) -> None:
    value = value_of(target, path)
    slower = override(target, f"{path}={int(value * factor) + 1 if path.endswith('clk') else value * factor + 1}")
    program = gemm_program(g)
    assert timed(program, slower).cycles >= timed(program, target).cycles * (1 - CHANCE)


@given(gemms(), machines(), st.sampled_from(FASTER))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_time_does_not_fall_when_bandwidth_falls(g: Gemm, target: Target, path: str) -> None:
    value = value_of(target, path)
    assume(value > 1)
    slower = override(target, f"{path}={int(value) // 2 if path != 'hbm.gbs' else value / 2}")
    program = gemm_program(g)
    assert timed(program, slower).cycles >= timed(program, target).cycles * (1 - CHANCE)


@given(st.integers(1, 12), st.integers(1, 40), machines())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_more_work_takes_no_less_time(tiles: int, cols: int, target: Target) -> None:
    times = [timed(copy_program(4 * n, 8 * cols, 4), target).cycles for n in (tiles, tiles + 1, 2 * tiles + 1)]
    assert all(a <= b for a, b in itertools.pairwise(times))


# Shares.


@given(st.integers(2, 12), st.integers(1, 32), spaces)
@settings(max_examples=40, deadline=None)
def test_identical_queues_get_equal_shares(tiles: int, cols: int, space: Space) -> None:
    """Two units that copy the same amount, side by side, through resources that cannot serve both at full rate."""
    tight = override(TINY, "noc.hop_clk=0", "l2.bytes_per_clk_total=8", "hbm.gbs=4", "noc.ce_port_bytes_per_clk=12")
    program = copy_program(2 * 4 * tiles, 8 * cols, 4, space=space, units=2)
    events = simulate(program, (RELU,), tight, {}, None, trace=True).events
    assert events is not None
    by_unit = [events[events["unit"] == u] for u in range(2)]
    for field in ("start", "end"):
        assert np.array_equal(by_unit[0][field], by_unit[1][field])


# Closed forms without contention.


@given(st.integers(1, 64), st.integers(1, 6), spaces)
@settings(max_examples=40, deadline=None)
def test_one_copy_alone_takes_its_closed_form(cols: int, rows: int, space: Space) -> None:
    rates = (
        "l2.bytes_per_clk_per_slice",
        "l2.bytes_per_clk_total",
        "l2.bytes_per_clk_per_cu",
        "noc.ce_port_bytes_per_clk",
    )
    plenty = [f"{rate}=1000000" for rate in (*rates, "hbm.gbs")]
    free = override(TINY, "noc.hop_clk=0", "hbm.turnaround=0", *plenty)
    program = copy_program(rows, cols, rows, space=space)
    load, store = free.load, free.store
    size, latency = 4 * rows * cols, cost.latency_clk(space, free)
    # One contiguous run each way; two ring operations an instruction; ends are rounded up to ticks.
    issue = free.issue_clk + 2 * free.sync.ring_op_clk
    expected = issue + load.start_clk + latency + max(size / load.bytes_per_clk, load.row_clk)
    expected += issue + store.start_clk + max(size / store.bytes_per_clk, store.row_clk) + latency
    cycles = timed(program, free).cycles - free.segment_launch_us * 1e3 / free.clk_ns
    assert cycles == pytest.approx(expected, abs=6 / 4096)


# The parts of the model that share.


def test_a_meshs_links_bound_what_all_units_draw() -> None:
    """A 4 x 4 mesh carries 16 times what its centre links do, whose load is one CE's draw: here below what l2 gives."""
    large = load_target("zhenwu-m890")
    narrow = override(large, "noc.link_bytes_per_clk=64")
    assert cost.mesh_of(large) == (4, 4)
    assert cost.l2_bytes_per_clk(large) == large.l2.bytes_per_clk_total
    assert cost.l2_bytes_per_clk(narrow) == 16 * 64
    program = copy_program(64 * 32, 1024, 32, space=Space.L2, units=64)
    p, free = timed(program, narrow), timed(program, large)
    moved = p.read_bytes[Space.L2] + p.write_bytes[Space.L2]
    assert p.cycles >= moved / (16 * 64)
    assert p.cycles > 2 * free.cycles


def test_one_router_has_no_links() -> None:
    assert cost.mesh_bytes_per_clk(TINY) == TINY.ces * TINY.noc.ce_port_bytes_per_clk


def test_l1_is_shared_by_the_engines_of_a_unit() -> None:
    """A product whose operands need all of l1 waits for what the load engine writes there."""
    g = Gemm(16, 16, 512, depth=3)
    narrow = override(TINY, "l1.bytes_per_clk=8", "tensor.operand_reuse=16,16", "tensor.ii_clk.f32=1")
    p = timed(gemm_program(g), narrow)
    through_l1 = (p.read_bytes[Space.L1] + p.write_bytes[Space.L1]) / 8
    assert through_l1 > 1.5 * float(cost.mma_cycles(16, 16, 512, DType.F32, narrow)), "operands alone need less"
    assert p.cycles >= 0.95 * through_l1
    assert timed(gemm_program(g), override(narrow, "l1.bytes_per_clk=1000000")).cycles < 0.75 * p.cycles


def test_many_live_streams_close_each_others_rows() -> None:
    rates = [cost.stream_rate(n, 64, 256, 248) for n in (1, 2, 16, 64, 128, 1 << 20)]
    assert rates[0] == 1.0
    assert all(b < a for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(1 / float(cost.visit_weight(256, 0, True, 96, 248)), rel=1e-3), "as at random"
    # Loads and stores of both units are four streams, twice as many as the rate is stated for.
    few, many = (override(TINY, f"hbm.banks={n}", "hbm.activate_bytes=1000", "hbm.gbs=2") for n in (1, 1 << 20))
    program = copy_program(256, 64, 4, space=Space.HBM, units=2)
    assert timed(program, override(few, "hbm.banks=2")).cycles > 1.02 * timed(program, many).cycles


def test_the_depth_of_a_queue_limits_what_is_under_way() -> None:
    deep = override(TINY, "tensor.fill_clk=400")
    g = Gemm(16, 16, 256, tk=4, depth=3)
    times = [timed(gemm_program(g), override(deep, f"sync.queue_depth={n}")).cycles for n in (1, 2, 16)]
    assert times[0] > times[1] >= times[2]
    assert times[0] - times[2] > 10 * 400, "with one place, every product waits for the one before to leave"


def test_a_cache_writes_back_what_has_to_go() -> None:
    program = copy_program(64, 64, 4, space=Space.HBM)
    size = 64 * 64 * 4
    cached = override(TINY, "l2.managed=cache", "l2.writes=back")
    assert timed(program, cached).write_bytes.get(Space.HBM, 0) == 0, "all of it stays"
    small = timed(program, override(cached, "l2.bytes=4096")).write_bytes
    # Both tensors pass through 4 KiB: the results are written back but for what the cache holds at the end.
    assert size - 4096 - 2 * 1024 <= small[Space.HBM] <= size
    through = timed(program, override(cached, "l2.writes=through"))
    assert through.write_bytes[Space.HBM] == size
    assert through.cycles > timed(program, cached).cycles


def test_a_transposing_load_pays_for_every_element() -> None:
    """Rows are contiguous in memory and in the tile: a box with transposed tile axes has rows of one element."""
    slow = override(TINY, "load.row_clk=8")
    straight = copy_program(16, 16, 16)
    (kernel,) = straight.segments[0].kernels
    source = dataclasses.replace(kernel.params[0], view=View((16, 16), (1, 16), 0))
    turned = dataclasses.replace(kernel, params=(source, kernel.params[1]))
    segment = dataclasses.replace(straight.segments[0], kernels=(turned,))
    p, q = timed(straight, slow), timed(dataclasses.replace(straight, segments=(segment,)), slow)
    assert q.tensor_read == p.tensor_read
    assert q.cycles - p.cycles > 0.8 * 8 * (256 - 1), "255 rows more, less the time that one row's bytes take anyway"
    assert cost.longer_row(1, 16, 1) == 16
    assert cost.longer_row(16, 4, 16) == 64
    assert cost.longer_row(16, 4, 32) == 0
    assert cost.longer_row(16, 1, 32) == 16


# Values.


@given(gemms(), machines())
@settings(max_examples=25, deadline=None)
def test_values_do_not_depend_on_time(g: Gemm, target: Target) -> None:
    program = gemm_program(g)
    expected = simulate(program, (RELU,), TINY, {}, feeds(program))
    got = simulate(program, (RELU,), target, {}, feeds(program))
    assert np.array_equal(expected.outputs["y"], got.outputs["y"])
    assert got.profile.hazards == ()


@given(machines())
@settings(max_examples=10, deadline=None)
def test_values_of_a_chain_do_not_depend_on_time(target: Target) -> None:
    program = chain_program(m=80)
    expected = simulate(program, (RELU,), TINY, {}, feeds(program)).outputs["y"]
    assert np.array_equal(expected, simulate(program, (RELU,), target, {}, feeds(program)).outputs["y"])

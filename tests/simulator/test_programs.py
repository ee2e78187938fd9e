"""The simulator on hand-built programs: values, closed-form times, statistics, deadlocks and hazards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from ppuc.ir.errors import InputError, InternalError
from ppuc.ir.program import Instr, KernelProgram, Program, Queue, Segment, StreamLoop, StreamNode
from ppuc.ir.types import DType, Space
from ppuc.targets.cost import hbm_bytes_per_clk, mma_cycles
from ppuc.targets.description import load_target, override
from ppuc.targets.simulator.result import Profile
from ppuc.targets.simulator.run import RawResult, simulate
from tests.support.simulator_programs import RELU, Gemm, chain_program, copy_program, gemm_program

TINY = load_target("ppu-tiny")


def feeds(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.elements).astype(np.float32) for t in program.tensors if t.role == "input"}


def run(program: Program, **options: bool | int) -> RawResult:
    return simulate(program, (RELU,), TINY, {}, feeds(program), **options)  # type: ignore[arg-type]


def gemm_reference(g: Gemm, inputs: dict[str, np.ndarray]) -> np.ndarray:
    a, b = inputs["a"].reshape(g.m, g.k), inputs["b"].reshape(g.k, g.n)
    return np.maximum(a.astype(np.float64) @ b.astype(np.float64), 0)


# Values.


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("sizes", [(32, 32, 32), (31, 17, 15), (33, 16, 47), (1, 1, 1)])
def test_gemm_values(depth: int, grid: tuple[int, int], sizes: tuple[int, int, int]) -> None:
    g = Gemm(*sizes, depth=depth, grid=grid)
    result = run(gemm_program(g))
    expected = gemm_reference(g, feeds(gemm_program(g)))
    got = result.outputs["y"].reshape(g.m, g.n)
    # f32 sums of k products of standard normals
    assert np.abs(got - expected).max() <= g.k * 2.0**-23 * 16
    assert result.profile.hazards == ()
    assert result.profile.kernels[0].macs == g.m * g.n * g.k


@pytest.mark.parametrize("rows", [7, 8, 9])
@pytest.mark.parametrize("units", [1, 2])
def test_copy_values(rows: int, units: int) -> None:
    program = copy_program(rows, 12, 4, units=units)
    assert np.array_equal(run(program).outputs["y"], feeds(program)["x"])


def test_chain_of_kernels_with_counters_and_taken_over_rings() -> None:
    program = chain_program()
    inputs = feeds(program)
    result = run(program)
    a, b, w = inputs["a"].reshape(40, 24), inputs["b"].reshape(24, 32), inputs["w0"].reshape(32, 24)
    hidden = np.maximum(a.astype(np.float64) @ b, 0)
    expected = np.maximum(hidden @ w, 0)
    assert np.abs(result.outputs["y"].reshape(40, 24) - expected).max() < 24 * 32 * 2.0**-23 * 16
    assert result.profile.hazards == ()
    first, second = result.profile.kernels
    assert second.start < first.end, "the second kernel's loads do not overlap the first kernel"


def test_timing_numbers_never_change_values() -> None:
    program = chain_program()
    slow = override(TINY, "l2.latency_ns=333", "tensor.ii_clk.f32=7", "hbm.gbs=1", "load.start_clk=1")
    inputs = feeds(program)
    fast, other = (simulate(program, (RELU,), t, {}, inputs) for t in (TINY, slow))
    assert fast.profile.cycles != other.profile.cycles
    assert np.array_equal(fast.outputs["y"], other.outputs["y"])


def test_a_run_is_deterministic_and_does_not_depend_on_the_log() -> None:
    program = chain_program()
    big, again, small = run(program), run(program), run(program, log_rows=1, trace=True)
    assert big.profile == again.profile == small.profile
    assert np.array_equal(big.outputs["y"], small.outputs["y"])
    traced = run(program, trace=True)
    assert traced.events is not None
    assert small.events is not None
    assert np.array_equal(traced.events, small.events)


def test_timing_only_needs_no_values_and_takes_the_same_time() -> None:
    program = chain_program()
    timing = simulate(program, (RELU,), TINY, {}, None)
    assert timing.outputs == {}
    assert not timing.profile.values
    assert timing.profile.cycles == run(program).profile.cycles


def test_inputs_are_checked() -> None:
    program = copy_program(8, 8, 4)
    with pytest.raises(InputError, match="input 'x': has no value"):
        simulate(program, (), TINY, {}, {})
    with pytest.raises(InputError, match="63 elements of float32"):
        simulate(program, (), TINY, {}, {"x": np.zeros(63, np.float32)})


# Time.

LAUNCH = TINY.segment_launch_us * 1e3 / TINY.clk_ns
ISSUE = TINY.issue_clk + 2 * TINY.sync.ring_op_clk


@pytest.mark.parametrize("space", [Space.L2, Space.HBM])
def test_one_tile_takes_the_sum_of_its_parts(space: Space) -> None:
    profile = run(copy_program(4, 16, 4, space=space)).profile
    latency = (TINY.l2 if space is Space.L2 else TINY.hbm).latency_ns / TINY.clk_ns
    rate = min(TINY.load.bytes_per_clk, hbm_bytes_per_clk(TINY)) if space is Space.HBM else TINY.load.bytes_per_clk
    load = ISSUE + TINY.load.start_clk + latency + 256 / rate
    store = ISSUE + TINY.store.start_clk + 256 / rate + latency
    assert profile.cycles == pytest.approx(LAUNCH + load + store, abs=0.01)


def test_short_rows_cost_address_generation_and_bursts() -> None:
    wide = run(copy_program(1, 64, 1, space=Space.HBM)).profile.cycles
    narrow = run(copy_program(64, 1, 64, space=Space.HBM)).profile.cycles
    assert narrow == wide, "contiguous rows are one run, however the view cuts them"
    target = override(TINY, "load.row_clk=100")
    program = chain_program()
    assert simulate(program, (RELU,), target, {}, None).profile.cycles > run(program).profile.cycles


def test_identical_flows_share_equally() -> None:
    target = override(TINY, "l2.bytes_per_clk_total=8")
    events = simulate(copy_program(8, 16, 4, units=2), (), target, {}, None, trace=True).events
    assert events is not None
    loads = events[events["queue"] == 0]
    alone = ISSUE + TINY.load.start_clk + TINY.l2.latency_ns / TINY.clk_ns
    assert loads["end"].tolist() == [LAUNCH + alone + 2 * 256 / 8] * 2


def test_mma_time_is_the_cost_model_plus_fill() -> None:
    g = Gemm(16, 16, 16)
    result = run(gemm_program(g), trace=True)
    assert result.events is not None
    mma = result.events[result.events["queue"] == 2][0]
    assert mma["end"] - mma["start"] == mma_cycles(16, 16, 16, DType.F32, TINY) + TINY.tensor.fill_clk
    assert result.profile.kernels[0].busy[Queue.TENSOR] == mma_cycles(16, 16, 16, DType.F32, TINY) + TINY.issue_clk + (
        6 * TINY.sync.ring_op_clk
    )


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("l2.bytes_per_clk_total", (16, 8, 4, 2)),
        ("noc.ce_port_bytes_per_clk", (16, 8, 4)),
        ("hbm.gbs", (4, 2, 1)),
        ("l2.latency_ns", (40, 80, 400)),
        ("load.start_clk", (0, 64, 256)),
        ("tensor.ii_clk.f32", (64, 128, 256)),
        ("vector.lanes", (8, 4, 1)),
    ],
)
def test_a_slower_machine_is_never_faster(key: str, values: tuple[int, ...]) -> None:
    programs = [chain_program(), gemm_program(Gemm(33, 32, 40, grid=(2, 1), b_space=Space.HBM))]
    for program in programs:
        times = [simulate(program, (RELU,), override(TINY, f"{key}={v}"), {}, None).profile.cycles for v in values]
        assert times == sorted(times)


def test_deeper_rings_are_never_slower() -> None:
    times = [run(gemm_program(Gemm(32, 32, 64, depth=d))).profile.cycles for d in (1, 2, 3)]
    assert times == sorted(times, reverse=True)


# Statistics.


def idle_times(profile: Profile) -> Iterator[float]:
    for k in profile.kernels:
        for queue, busy in k.busy.items():
            yield k.units * k.cycles - busy - sum(k.stall[queue].values())


@pytest.mark.parametrize(
    "program", [chain_program(), gemm_program(Gemm(40, 33, 50, grid=(2, 1))), copy_program(40, 8, 4)]
)
def test_busy_and_stalls_fit_into_the_kernel(program: Program) -> None:
    profile = run(program).profile
    assert min(idle_times(profile)) > -1e-6


def test_bytes_are_conserved() -> None:
    program = copy_program(10, 16, 4)
    profile = run(program).profile
    size = 10 * 16 * 4
    assert profile.read_bytes[Space.L2] == profile.write_bytes[Space.L2] == size
    assert profile.read_bytes[Space.L1] == profile.write_bytes[Space.L1] == size


def test_energy_sums_events() -> None:
    profile = run(gemm_program(Gemm(32, 32, 32))).profile
    assert profile.energy_joules["tensor"] == pytest.approx(32**3 * TINY.energy.mac_pj["f32"] * 1e-12)
    assert profile.energy_joules["static"] == pytest.approx(TINY.power.idle_w * profile.seconds)
    assert profile.energy_joules["instructions"] == pytest.approx(
        profile.instructions * TINY.energy.instruction_pj * 1e-12
    )


def test_trace_has_an_event_for_every_instruction_and_all_bytes_and_energy() -> None:
    result = run(chain_program(), trace=True)
    assert result.events is not None
    assert result.details is not None
    assert len(result.events) == result.profile.instructions
    instr = result.events["instr"]
    profile, energy = result.profile, result.profile.energy_joules
    for space, means in ((Space.HBM, result.details.hbm_bytes), (Space.L2, result.details.l2_bytes)):
        moved = profile.read_bytes.get(space, 0) + profile.write_bytes.get(space, 0)
        assert means[instr].sum() == pytest.approx(moved)
    dynamic = sum(energy.values()) - energy["static"]
    assert result.details.joules[instr].sum() == pytest.approx(dynamic)


def test_trace_flows_lead_forward_and_reach_every_wait() -> None:
    result = run(chain_program(), trace=True)
    assert result.events is not None
    assert result.details is not None
    flows, events = result.details.flows, result.events
    assert len(flows)
    source, sink = events[flows["source"]], events[flows["sink"]]
    assert (source["end"] <= sink["start"] + 1e-6).all()
    of_rings = np.array([label.startswith("%") for label in result.details.labels])[flows["label"]]
    assert (source["unit"] == sink["unit"])[of_rings].all()
    assert (source["queue"] != sink["queue"])[of_rings].all()
    assert (source["kernel"] < sink["kernel"])[~of_rings].all()
    assert (~of_rings).any()
    tensor = np.flatnonzero(events["queue"] == 2)
    assert set(tensor.tolist()) <= set(flows["sink"][of_rings].tolist())


def test_trace_occupancy_returns_to_zero_and_stays_within_l1() -> None:
    result = run(chain_program(), trace=True)
    assert result.details is not None
    changes = result.details.occupancy
    for unit in range(TINY.cu):
        held = np.cumsum(changes["bytes"][changes["unit"] == unit])
        assert 0 < held.max() <= TINY.l1.bytes
        assert held[-1] == 0


# Broken programs.


def instrs(body: tuple[StreamNode, ...]) -> Iterator[Instr]:
    for node in body:
        if isinstance(node, Instr):
            yield node
        else:
            yield from instrs(node.body)


def rewrite(body: tuple[StreamNode, ...], old: Instr, new: Instr) -> tuple[StreamNode, ...]:
    return tuple(
        (new if node is old else node)
        if isinstance(node, Instr)
        else dataclasses.replace(node, body=rewrite(node.body, old, new))
        for node in body
    )


def replace_instr(program: Program, kernel: int, old: Instr, new: Instr) -> Program:
    segment = program.segments[0]
    k: KernelProgram = segment.kernels[kernel]
    streams = tuple((q, rewrite(body, old, new)) for q, body in k.streams)
    kernels = list(segment.kernels)
    kernels[kernel] = dataclasses.replace(k, streams=streams)
    return dataclasses.replace(program, segments=(dataclasses.replace(segment, kernels=tuple(kernels)),))


def without_each(program: Program, kinds: tuple[str, ...]) -> Iterator[tuple[str, Program]]:
    """The program without one of its claims, waits or counter waits, and what was left out."""
    for i, kernel in enumerate(program.segments[0].kernels):
        for _, body in kernel.streams:
            for instr in instrs(body):
                for use in instr.rings:
                    if use.kind in kinds:
                        rings = tuple(u for u in instr.rings if u is not use)
                        changed = dataclasses.replace(instr, rings=rings)
                        yield f"{kernel.name}: {use.kind} %{use.ring}", replace_instr(program, i, instr, changed)
                for wait in instr.waits if "counter" in kinds else ():
                    changed = dataclasses.replace(instr, waits=tuple(w for w in instr.waits if w is not wait))
                    yield f"{kernel.name}: counter {wait.group}", replace_instr(program, i, instr, changed)


@pytest.mark.parametrize(
    "program",
    [
        copy_program(24, 8, 4),
        gemm_program(Gemm(48, 32, 64, depth=2)),
        chain_program(m=80),
        chain_program(m=80, depth=1),
    ],
)
def test_every_missing_wait_is_reported(program: Program) -> None:
    """Two are redundant in a gemm: loads complete in order, so the wait for B covers A's; and both tiles are popped
    by the same mma, so the claim of A's slot covers B's. Without them the values stay right."""
    right = run(program).outputs["y"]
    for what, broken in without_each(program, ("claim", "wait", "counter")):
        result = simulate(broken, (RELU,), TINY, {}, feeds(program))
        if ("wait %" in what and what.endswith(".at")) or ("claim %" in what and what.endswith(".bt")):
            assert result.profile.hazards == (), what
            assert np.array_equal(result.outputs["y"], right), what
        else:
            assert result.profile.hazards, what


def test_taking_over_bytes_without_after_is_reported() -> None:
    program = chain_program()
    segment = program.segments[0]
    second = segment.kernels[1]
    rings = tuple(dataclasses.replace(r, after=()) for r in second.rings)
    kernels = (segment.kernels[0], dataclasses.replace(second, rings=rings))
    broken = dataclasses.replace(program, segments=(dataclasses.replace(segment, kernels=kernels),))
    hazards = simulate(broken, (RELU,), TINY, {}, feeds(program)).profile.hazards
    assert {h.space for h in hazards} == {"l1", "acc"}


def test_a_hazard_names_both_instructions() -> None:
    broken = dict(without_each(copy_program(24, 8, 4), ("claim",)))["copy: claim %t"]
    (hazard,) = simulate(broken, (RELU,), TINY, {}, feeds(broken)).profile.hazards
    assert str(hazard) == (
        "read after write hazard in l1 on %t: copy/load: load.box %t <- %x and copy/store: store.box %y <- %t "
        "are not ordered"
    )


def test_a_missing_wait_gives_wrong_values() -> None:
    program = gemm_program(Gemm(32, 32, 32))
    right = run(program).outputs["y"]
    for what, broken in without_each(program, ("wait",)):
        wrong = simulate(broken, (RELU,), TINY, {}, feeds(program)).outputs["y"]
        assert np.array_equal(wrong, right) == (what == "gemm: wait %gemm.at")


def test_deadlock_names_the_instruction_and_its_ring() -> None:
    program = copy_program(24, 8, 4)
    (kernel,) = program.segments[0].kernels
    (store,) = instrs(kernel.streams[1][1])
    stuck = replace_instr(program, 0, store, dataclasses.replace(store, rings=store.rings[:1]))
    with pytest.raises(InternalError) as error:
        simulate(stuck, (RELU,), TINY, {}, feeds(program))
    assert str(error.value).splitlines()[1] == (
        "  unit 0 load: copy/load: load.box %t <- %x at %m = 8 waits for a free slot of %t "
        "(2 claimed, 0 popped by store)"
    )


def test_deadlock_names_the_counter() -> None:
    program = chain_program()
    segment = program.segments[0]
    broken = dataclasses.replace(
        program, segments=(Segment(segment.name, segment.kernels, segment.copies[:1], segment.counters),)
    )
    with pytest.raises(InternalError, match=r"waits for counter w\.in: block 1 \(0 of 1\)"):
        simulate(broken, (RELU,), TINY, {}, feeds(program))


def test_stream_loops_without_iterations_are_skipped() -> None:
    program = copy_program(4, 16, 4, units=2)  # the second unit has no tile
    result = run(program)
    assert result.profile.instructions == 2
    assert isinstance(program.segments[0].kernels[0].streams[0][1][0], StreamLoop)

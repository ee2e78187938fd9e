"""The timing model against closed forms and laws: systolic folds, device memory, distances, launches, tiles as blocks,
power."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.ir.kernel import Mma
from ppuc.ir.program import KernelProgram, Program, Queue, StreamLoop, StreamNode
from ppuc.ir.types import DType, Space
from ppuc.targets import cost
from ppuc.targets.description import Target, load_target, override, validation_targets
from ppuc.targets.simulator.launch import launches
from ppuc.targets.simulator.power import steady_power
from ppuc.targets.simulator.run import RawResult, simulate
from tests.support.simulator_programs import RELU, Gemm, chain_program, copy_program, gemm_program

TINY = load_target("ppu-tiny")
M890 = load_target("zhenwu-m890")
VALIDATION = validation_targets()


def timed(program: Program, target: Target) -> RawResult:
    return simulate(program, (RELU,), target, {}, None)


def systolic(rows: int, cols: int, dataflow: str, overlap: str) -> Target:
    """ppu-tiny with one array of rows x cols."""
    fragment = [1, cols, rows] if dataflow == "weight" else [rows, cols, 1]
    kept = {leaf.path.rpartition(".")[2] for leaf in TINY.provenance if leaf.path.startswith("tensor.fragment.")}
    edits = [f"tensor.fragment.{d}={fragment}" for d in kept] + [f"tensor.ii_clk.{d}=1" for d in kept]
    return override(
        TINY, "tensor.organisation=systolic", f"tensor.dataflow={dataflow}", f"tensor.overlap={overlap}", *edits,
        "tensor.fill_clk=0", "l1.bytes_per_clk=1000000",
    )  # fmt: skip


def serial_array(dataflow: str, side: int = 128) -> Target:
    """The validation core with an array of side x side, without overlap between folds."""
    target = load_target("systolic-128")
    fragment = [1, side, side] if dataflow == "weight" else [side, side, 1]
    shapes = [f"tensor.fragment.{d}={fragment}" for d in target.tensor.fragment]
    return override(target, "tensor.overlap=serial", f"tensor.dataflow={dataflow}", *shapes)


def one_op(op: str, x: list[int], w: list[int], y: list[int], **attributes: object) -> onnx.ModelProto:
    """A model of one product with constant weights."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    weights = numpy_helper.from_array(np.ones(w, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)], op, values[:1], values[1:], [weights]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def product(m: int, n: int, k: int) -> onnx.ModelProto:
    return one_op("MatMul", [m, k], [k, n], [m, n])


def convolution(channels: int, filters: int, side: int, window: int, stride: int) -> onnx.ModelProto:
    """A convolution of side x side points, padded so that ceil(side / stride) remain along both axes."""
    out, pad = -(-side // stride), window // 2
    shapes = [1, channels, side, side], [filters, channels, window, window], [1, filters, out, out]
    return one_op("Conv", *shapes, kernel_shape=[window] * 2, pads=[pad] * 4, strides=[stride] * 2)


def scale_sim(m: int, n: int, k: int, side: int, dataflow: str) -> int:
    """SCALE-Sim's cycles of a product on a side x side array."""
    if dataflow == "weight":
        return -(-k // side) * -(-n // side) * (3 * side + m - 2) - 1
    return -(-m // side) * -(-n // side) * (2 * side + k - 2) - 1


def engine_cycles(model: onnx.ModelProto, target: Target) -> float:
    """Cycles that the compiled model keeps the tensor engine."""
    artifact = compile_model(model, CompileOptions(target)).artifact
    profile = simulate(artifact.program, artifact.vectors, target, {}, None).profile
    return sum(kernel.engine.get(Queue.TENSOR, 0.0) for kernel in profile.kernels)


# The tensor engine.


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (8, 16), (32, 8), (128, 128)])
@pytest.mark.parametrize("dataflow", ["weight", "output"])
def test_a_serial_array_takes_scale_sims_closed_form(rows: int, cols: int, dataflow: str) -> None:
    target = systolic(rows, cols, dataflow, "serial")
    shape = cost.mma_shape(DType.F32, target)
    for m in (1, rows - 1, rows, rows + 1, 3 * rows + 2):
        for n in (1, cols, cols + 1, 5 * cols):
            for k in (1, rows, rows + 1, 4 * rows - 1):
                if dataflow == "weight":
                    folds, each = -(-k // rows) * -(-n // cols), 2 * rows + cols + m - 2
                else:
                    folds, each = -(-m // rows) * -(-n // cols), rows + cols + k - 2
                engine, drain = cost.mma_cycles(m, n, k, DType.F32, target), cost.drain_clk(target, shape, n, k)
                assert engine + drain == folds * each - 1, (m, n, k)


@pytest.mark.parametrize("dataflow", ["weight", "output"])
def test_the_simulator_runs_the_same_closed_form(dataflow: str) -> None:
    target = systolic(8, 8, dataflow, "serial")
    g = Gemm(16, 16, 16)
    events = simulate(gemm_program(g), (RELU,), target, {}, None, trace=True).events
    assert events is not None
    mma = events[events["queue"] == 2][0]
    assert mma["end"] - mma["start"] == 4 * ((2 * 8 + 8 + 16 - 2) if dataflow == "weight" else (8 + 8 + 16 - 2)) - 1


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("dataflow", ["weight", "output"])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (512, 512, 512), (300, 200, 700), (1, 129, 128), (1000, 64, 300), (32, 32, 1000), (128, 128, 4096),
        (511, 513, 1025), (16, 4096, 4096), (12544, 64, 147), (20000, 256, 512),
    ],
)  # fmt: skip
def test_compiled_products_take_the_closed_form_however_they_are_tiled(
    dataflow: str, m: int, n: int, k: int, side: int
) -> None:
    assert engine_cycles(product(m, n, k), serial_array(dataflow, side)) - 1 == scale_sim(m, n, k, side, dataflow)


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("dataflow", ["weight", "output"])
@pytest.mark.parametrize(
    ("channels", "filters", "points", "window", "stride"),
    [
        (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (128, 128, 56, 3, 2), (256, 512, 56, 1, 2),
        (1024, 256, 14, 1, 1), (512, 512, 7, 3, 1), (5, 7, 9, 3, 1),
    ],
)  # fmt: skip
def test_compiled_convolutions_take_the_closed_form_of_their_products(
    dataflow: str, channels: int, filters: int, points: int, window: int, stride: int, side: int
) -> None:
    rows, k = (-(-points // stride)) ** 2, channels * window**2
    model = convolution(channels, filters, points, window, stride)
    assert engine_cycles(model, serial_array(dataflow, side)) - 1 == scale_sim(rows, filters, k, side, dataflow)


@pytest.mark.parametrize("dataflow", ["weight", "output"])
@pytest.mark.parametrize("side", [100, 512])
def test_tiles_follow_arrays_of_any_side(side: int, dataflow: str) -> None:
    target = serial_array(dataflow, side)
    rows, filters, k = 25, 1030, 7 * 9
    assert engine_cycles(convolution(7, filters, 5, 3, 1), target) - 1 == scale_sim(rows, filters, k, side, dataflow)
    assert engine_cycles(product(rows, filters, k), target) - 1 == scale_sim(rows, filters, k, side, dataflow)


@pytest.mark.parametrize("dataflow", ["weight", "output"])
def test_tiles_chosen_for_folds_compute_the_same_values(dataflow: str) -> None:
    rng = np.random.default_rng(0)
    for model in (convolution(5, 7, 9, 3, 1), product(33, 20, 300)):
        sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        x = rng.standard_normal(sizes).astype(np.float32)
        assert ppuc.verify(ppuc.compile(model, serial_array(dataflow, 16)), {"x": x}).ok


def product_times(kernel: KernelProgram, g: Gemm, target: Target) -> list[float]:
    """Cycles of the products of a program with one kernel, in order, to their last result."""
    whole = gemm_program(g)
    (segment,) = whole.segments
    replaced = dataclasses.replace(whole, segments=(dataclasses.replace(segment, kernels=(kernel,)),))
    events = simulate(replaced, (RELU,), target, {}, None, trace=True).events
    assert events is not None
    products = events[events["queue"] == 2]
    return list(products["end"] - products["start"])


def test_a_sum_fills_and_drains_once_unless_another_product_interrupts_it() -> None:
    target, g = systolic(8, 8, "output", "serial"), Gemm(8, 8, 24, tm=8, tn=8, tk=8)
    kernel = g.kernel()
    whole = 8 + 8 + 8 - 2
    assert product_times(kernel, g, target) == [whole - 1, 8 - 1, 8 - 1]

    def twice(node: StreamNode) -> tuple[StreamNode, ...]:
        if isinstance(node, StreamLoop):
            return (dataclasses.replace(node, body=tuple(x for child in node.body for x in twice(child))),)
        assert isinstance(node.stmt, Mma)
        opens = [u for u in node.rings if u.kind in ("claim", "wait")]
        closes = tuple(u for u in node.rings if u not in opens)
        other = dataclasses.replace(node, stmt=dataclasses.replace(node.stmt, start=()), rings=closes)
        return dataclasses.replace(node, rings=tuple(opens)), other

    streams = tuple(
        (queue, tuple(x for node in body for x in twice(node)) if queue is Queue.TENSOR else body)
        for queue, body in kernel.streams
    )
    assert product_times(dataclasses.replace(kernel, streams=streams), g, target) == 6 * [whole - 1]


def test_a_pipelined_array_hides_preloads_behind_enough_rows() -> None:
    target = systolic(128, 128, "weight", "pipelined")
    assert cost.mma_cycles(1024, 256, 256, DType.F32, target) == 4 * 1024
    assert cost.mma_cycles(16, 256, 256, DType.F32, target) == 4 * 128, "a block of weights needs 128 cycles to load"
    assert cost.mma_cycles(16, 256, 64, DType.F32, target) == 2 * 64, "and one of 64 rows 64"
    shape = cost.mma_shape(DType.F32, target)
    assert cost.drain_clk(target, shape, 256, 256) == 128 + 128 + 128 - 2
    assert cost.drain_clk(target, shape, 20, 64) == 64 + 128 + 20 - 2, "sums pass all rows of the array"


@pytest.mark.parametrize(
    ("m", "n", "k", "clk"),
    [
        (1024, 512, 128, 1024),  # an array for each 128 columns
        (1024, 128, 128, 256),  # for each quarter of the rows
        (16, 128, 512, 128),  # for each block of the sum
        (16, 128, 640, 128 + 128),
        (16, 128, 600, 128 + 88),  # the fifth block has 88 rows
        (16, 256, 256, 128),  # two by two
    ],
)
def test_arrays_divide_rows_columns_or_the_sum(m: int, n: int, k: int, clk: int) -> None:
    four = override(systolic(128, 128, "weight", "pipelined"), "tensor.lanes=4", "tensor.lane_grid=[1,4]")
    assert cost.mma_cycles(m, n, k, DType.F32, four) == clk


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.sampled_from(["weight", "output"]),
    st.sampled_from(["serial", "pipelined"]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_more_work_never_takes_less_time(m: int, n: int, k: int, dataflow: str, overlap: str) -> None:
    one = systolic(16, 8, dataflow, overlap)
    for target in (one, override(one, "tensor.lanes=4", "tensor.lane_grid=[1,4]"), TINY):
        base = cost.mma_cycles(m, n, k, DType.F32, target)
        for grown in ((m + 1, n, k), (m, n + 1, k), (m, n, k + 1)):
            assert cost.mma_cycles(*grown, DType.F32, target) >= base
        assert base >= m * n * k / target.tensor.macs_per_clk(DType.F32) - 1


# Device memory.


def test_short_runs_waste_row_visits() -> None:
    weight = [float(cost.visit_weight(run, 4096, False, 96, 248)) for run in (256, 128, 96, 64, 32)]
    assert weight == [1, 1, 1, 1.5, 3]
    assert cost.visit_weight(64, 80, False, 96, 248) == 1.25, "reading through a narrow gap is cheaper"


def test_random_rows_pay_activations() -> None:
    rates = [1 / float(cost.visit_weight(run, 0, True, 96, 248)) for run in (64, 256, 4096)]
    assert rates == pytest.approx([0.24, 0.72, 1.0], abs=0.02)


def test_mixed_reads_and_writes_share_less() -> None:
    assert cost.mixed_rate(100, 1, 0, 0.15) == cost.mixed_rate(100, 0, 1, 0.15) == 100
    assert 72 <= cost.mixed_rate(100, 2, 1, 0.15) <= 87
    assert cost.mixed_rate(100, 1, 1, 0.15) == pytest.approx(85)


def test_powers_of_two_meet_in_few_channels_unless_addresses_are_hashed() -> None:
    direct = override(M890, "hbm.mapping=direct", "hbm.channels=64", "hbm.interleave_bytes=256")
    assert cost.channel_weight(256, 64 * 256, 128, direct) == 64
    assert cost.channel_weight(256, 65 * 256, 128, direct) == 1
    assert cost.channel_weight(256, 64 * 256, 128, M890) == 1


def test_direct_mapping_slows_strided_boxes_only() -> None:
    direct = override(TINY, "hbm.mapping=direct", "hbm.channels=8", "hbm.interleave_bytes=64")
    g = Gemm(32, 32, 64, b_space=Space.HBM)
    assert timed(gemm_program(g), direct).profile.cycles >= timed(gemm_program(g), TINY).profile.cycles
    flat = copy_program(16, 16, 4, space=Space.HBM)
    assert timed(flat, direct).profile.cycles == timed(flat, TINY).profile.cycles


# Distances.


def test_distances_on_a_mesh_average_out() -> None:
    offsets = cost.hop_offsets(M890)
    assert offsets.mean() == pytest.approx(0)
    assert offsets.max() == offsets[0] > 0 > offsets.min(), "corners are farthest"
    assert not cost.hop_offsets(override(M890, "noc.kind=crossbar")).any()


# Laws of whole programs.


@pytest.mark.parametrize("program", [chain_program(), gemm_program(Gemm(40, 33, 50, grid=(2, 1)))])
def test_a_program_takes_at_least_its_roofline(program: Program) -> None:
    p = timed(program, TINY).profile
    macs = sum(k.macs for k in p.kernels)
    l2 = (p.read_bytes.get(Space.L2, 0) + p.write_bytes.get(Space.L2, 0)) / TINY.l2.bytes_per_clk_total
    hbm = (p.read_bytes.get(Space.HBM, 0) + p.write_bytes.get(Space.HBM, 0)) / cost.hbm_bytes_per_clk(TINY)
    assert p.cycles >= max(macs / TINY.peak_macs_per_clk("f32"), l2, hbm)


@pytest.mark.parametrize("key", ["hbm.refresh", "hbm.turnaround", "noc.hop_clk", "load.row_clk", "sync.ring_op_clk"])
def test_costs_never_pay(key: str) -> None:
    """A copy that arrives later may take its share of l2 when fewer others want one, so programs whose queues meet
    by chance obey the law to within 1 %; where nothing else is shared it is strict."""
    values = (0, 0.25, 0.5) if key.startswith("hbm") else (0, 8, 64)
    for program, slack in ((chain_program(), 0.01), (copy_program(64, 8, 4, space=Space.HBM, units=2), 0.0)):
        times = [timed(program, override(TINY, f"{key}={v}")).profile.cycles for v in values]
        assert all(after >= (1 - slack) * before for before, after in itertools.pairwise(times)), times


# Launches.


def test_kernels_launched_one_by_one_wait_for_each_other() -> None:
    program = chain_program()
    alone = override(TINY, "launch.granularity=kernel", "launch.kernel_us=2")
    together, apart = timed(program, TINY).profile, timed(program, alone).profile
    gap = 2e3 / TINY.clk_ns
    assert together.kernels[1].start < together.kernels[0].end
    assert apart.kernels[1].start >= apart.kernels[0].end + gap
    assert apart.launch_cycles == together.launch_cycles + gap


def test_launches_partition_a_segment_and_keep_its_values() -> None:
    program = chain_program(m=80)
    alone = override(TINY, "launch.granularity=kernel")
    (segment,) = program.segments
    parts = launches(segment, alone)
    assert [k.name for part in parts for k in part.kernels] == [k.name for k in segment.kernels]
    assert sorted(c.start for part in parts for c in part.copies) == sorted(c.start for c in segment.copies)
    assert launches(segment, TINY) == (segment,)
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.standard_normal(t.elements).astype(np.float32) for t in program.tensors if t.role == "input"}
    results = [simulate(program, (RELU,), t, {}, feeds) for t in (TINY, alone)]
    assert results[1].profile.hazards == ()
    assert np.array_equal(results[0].outputs["y"], results[1].outputs["y"])


# Tiles as blocks, and a cached l2.

BLOCKS = override(TINY, "launch.tiles=blocks")


@pytest.mark.parametrize("sizes", [(48, 48, 32), (33, 47, 17), (80, 16, 16)])
def test_blocks_keep_values_and_deal_tiles_in_order(sizes: tuple[int, int, int]) -> None:
    program = gemm_program(Gemm(*sizes, grid=(2, 1)))
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.standard_normal(t.elements).astype(np.float32) for t in program.tensors if t.role == "input"}
    results = [simulate(program, (RELU,), t, {}, feeds) for t in (TINY, BLOCKS)]
    assert np.array_equal(results[0].outputs["y"], results[1].outputs["y"])
    assert results[1].profile.hazards == ()
    assert results[0].profile.kernels[0].macs == results[1].profile.kernels[0].macs
    assert results[1].profile.cycles >= results[0].profile.cycles


def test_the_last_wave_of_blocks_costs_a_whole_one() -> None:
    times = [timed(gemm_program(Gemm(16 * tiles, 16, 64)), BLOCKS).profile.cycles for tiles in (3, 4, 5, 6)]
    waves = np.diff(times)
    assert TINY.cu == 2
    assert waves[0] < 0.1 * waves[1], "the fourth tile runs beside the third"
    assert waves[2] < 0.1 * waves[1], "the sixth beside the fifth"


def test_a_cached_l2_fetches_a_shared_tile_once() -> None:
    g = Gemm(64, 16, 64, b_space=Space.HBM)
    cached = override(TINY, "l2.managed=cache")
    p = timed(gemm_program(g), cached).profile
    assert p.read_bytes[Space.HBM] == 64 * 16 * 4, "every tile of b comes from device memory once"
    assert timed(gemm_program(g), TINY).profile.read_bytes[Space.HBM] == 4 * 64 * 16 * 4
    both = Gemm(64, 16, 64, a_space=Space.HBM, b_space=Space.HBM)
    small = override(cached, "l2.bytes=4096")
    assert timed(gemm_program(both), cached).profile.read_bytes[Space.HBM] == 64 * 64 * 4 + 64 * 16 * 4
    evicted = timed(gemm_program(both), small).profile.read_bytes[Space.HBM]
    assert evicted == 64 * 64 * 4 + 4 * 64 * 16 * 4, "b is gone before it is read again"


# Power.


def test_power_within_limits_leaves_the_clock_alone() -> None:
    state = steady_power(M890, 0.1, 1e-3)
    assert state.clock == 1.0
    assert state.watts == pytest.approx(M890.power.idle_w + 100)


def test_power_over_the_limit_slows_the_clock_to_it() -> None:
    cap = min(M890.power.tdp_w, (M890.temperature.sw_limit_c - M890.thermal.ambient_c) / M890.thermal.c_per_w)
    state = steady_power(M890, 1.0, 1e-3)
    assert M890.power.idle_w + 1000 * state.clock == pytest.approx(cap)
    hot = steady_power(override(M890, "thermal.c_per_w=0.16"), 0.6, 1e-3)
    assert hot.temperature_c == pytest.approx(M890.temperature.sw_limit_c)
    assert 0 < hot.seconds_to_limit < M890.thermal.tau_s * 3


def test_throttled_time_is_reported() -> None:
    program = gemm_program(Gemm(64, 64, 64))
    hungry = override(TINY, "energy.mac_pj.f32=20000")
    p, q = timed(program, hungry).profile, timed(program, TINY).profile
    assert p.power is not None
    assert p.cycles == q.cycles
    assert q.throttled_seconds == 0.0
    launch = p.launch_cycles * TINY.clk_ns * 1e-9
    assert p.throttled_seconds == pytest.approx((p.seconds - launch) * (1 / p.power.clock - 1))
    assert p.sustained_seconds > q.sustained_seconds == q.seconds
    assert p.joules == pytest.approx(sum(p.energy_joules.values()))


# The validation machines.


@pytest.mark.parametrize("name", VALIDATION)
def test_validation_machines_load_and_fit_no_more_than_three_numbers(name: str) -> None:
    target = load_target(name)
    fitted = [leaf.path for leaf in target.leaves() if leaf.mark == "E-cal"]
    assert len(fitted) <= 3, fitted


def test_neighbours_share_a_read_where_the_network_multicasts() -> None:
    g = Gemm(32, 32, 64, tm=16, tn=32, a_space=Space.HBM, b_space=Space.HBM, grid=(2, 1))
    cached = override(TINY, "l2.managed=cache", "l2.bytes_per_clk_total=4")
    ways = (override(cached, f"noc.multicast={how}") for how in ("none", "within a CE"))
    alone, shared = (timed(gemm_program(g), target) for target in ways)
    assert TINY.cu_per_ce == 2
    assert shared.profile.cycles < alone.profile.cycles

"""The schema of a target: every number about a machine that the compiler or the simulator uses.

A target is a tree of frozen dataclasses. Each leaf declares its unit; the TOML files carry, next to each value, that
unit, a mark (how well the number is known) and its source. Frequencies are MHz, `*_clk` are cycles of the maximum
clock, GB are 10^9 bytes, and a rate named `per_cu`, `per_slice` or `total` is that of one unit, one slice or the chip.

Invariants (checked by ppuc.targets.description and ppuc.targets.consistency, for files and overrides): every leaf is
present, of its type and non-negative; a leaf whose unit is `a|b` holds one of these words; clocks and temperatures
ascend; the lane grid multiplies to the lanes; a systolic fragment has one streamed axis; `fragment`, `ii_clk` and
`energy.mac_pj` name the same element types, and f8 and f4 appear exactly when `native_fp8` and `native_mx` say so.
Every leaf that is not marked informational is read: changing it changes a time, an energy, a program or a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppuc.ir.types import DType

MARKS = {
    "F": "official: published by the vendor",
    "M": "measured or reported by a third party",
    "E": "estimate",
    "E-cal": "estimate fitted to measurements",
    "D": "design choice of this machine model",
}
"""How well a number is known."""

TENSOR_DTYPES = ("f32", "tf32", "bf16", "f16", "i8", "f8e4m3", "f8e5m2", "f4e2m1")
"""Element types that a tensor engine may list. tf32 is f32 rounded to 10 mantissa bits: a mode of the engine, not a
storage type; f4e2m1 is the element of MXFP4 blocks."""


PEAKS = "peak_tops"
"""The table of published peaks in a target file."""

INFORMATIONAL_DTYPES = ("tf32",)
"""Element types that no instruction multiplies yet: their rows of the tables by type are informational."""

MOST_IN_FLIGHT = 31
"""Maximum instructions in flight per queue in the simulator."""


def quantity(
    unit: str, *, zero: bool = False, informational: bool = False, usual: Any = None, hashed: bool = False
) -> Any:
    """A leaf of the schema, in `unit`; `zero` permits 0 (a missing feature, or a free cost). An `informational` leaf
    only describes the machine: neither compiler nor simulator reads it, except to check another leaf against it. A file
    may leave out a leaf with a `usual` value, and so does the target's hash, unless `hashed`: programs of machines
    without a feature stay valid when its keys are added to the schema (the first such keys are hashed)."""
    about = {"unit": unit, "zero": zero, "informational": informational, "usual": usual, "hashed": hashed}
    return field(metadata=about)


@dataclass(frozen=True, slots=True)
class Clock:
    """Clock range. Peaks hold at `max_mhz`; cycles are converted to time at `sustained` times that, the clock held
    under continuous load before any power limit."""

    min_mhz: float = quantity("MHz")
    base_mhz: float = quantity("MHz", informational=True)
    max_mhz: float = quantity("MHz")
    sustained: float = quantity("ratio")


@dataclass(frozen=True, slots=True)
class Launch:
    """How work is launched on the units. A segment costs `segment_launch_us`. With `granularity` kernel, each further
    kernel waits for the previous one and costs `kernel_us`; with segment, kernels overlap through their rings. `tiles`
    streaming: a unit runs the tiles of its grid position and loads the next one while it finishes the current one;
    persistent: the same, with tiles distributed in order over all units; blocks: distributed in order, a tile's loads
    wait for a free accumulator slot of its kernel, as a thread block waits for registers, and products take the time of
    whole tiles even at a tensor's edge. The units of a launch start `dispatch_clk` apart. Tiles distributed in order
    cover a square of the result at any time, so that a cached l2 serves their shared operands. `tile_sides` are the
    tile sides of the machine's kernel library; powers of two: 64, 128 and 256. Whole columns: a product whose operands
    and result fit a quarter of l1 is loaded whole; otherwise its weights are loaded first, where they fit three
    quarters, and rows stream past them, as compilers for large scratchpads do. Images of a convolution are loaded
    whole, too, as many as a quarter holds with the filters."""

    granularity: str = quantity("segment|kernel")
    kernel_us: float = quantity("us", zero=True)
    tiles: str = quantity("streaming|persistent|blocks")
    dispatch_clk: int = quantity("clk", zero=True)
    tile_sides: str = quantity("any|powers of two|whole columns")


@dataclass(frozen=True, slots=True)
class TensorEngine:
    """The matrix engine of one unit: `lanes` lanes in a grid, each starting one m x n x k fragment every `ii_clk`
    cycles. Lanes in a row of the grid share A fragments, lanes in a column share B fragments, and a lane reuses fetched
    operands for `operand_reuse` fragments of the result, in rows and columns. If tiles are taken in order, the operands
    may be swapped, which computes the transposed result, if fewer fragments then cover a tile. `f32` is full f32
    arithmetic.

    A lane of a systolic engine is an array of R x C cells. Dataflow weight: B's [R, C] block stays, rows of A stream,
    the fragment is [1, C, R]. Dataflow output: an [R, C] block of the result stays, k streams, the fragment is [R, C,
    1]. `ii_clk` is the interval between streamed elements. `overlap` serial: a fold (a lane's next stationary block; on
    lanes: the next instruction) begins when the previous one has drained; pipelined: it follows without a gap, with its
    operands preloaded."""

    organisation: str = quantity("lanes|systolic")
    dataflow: str = quantity("output|weight")
    overlap: str = quantity("pipelined|serial")
    lanes: int = quantity("lane")
    lane_grid: tuple[int, int] = quantity("rows,cols")
    operand_reuse: tuple[int, int] = quantity("rows,cols")
    fragment: Mapping[str, tuple[int, int, int]] = quantity("m,n,k")
    ii_clk: Mapping[str, int] = quantity("clk")
    fill_clk: int = quantity("clk", zero=True)
    native_fp8: bool = quantity("flag", informational=True)
    native_mx: bool = quantity("flag", informational=True)

    def supports(self, dtype: DType | str) -> bool:
        """Whether operands of `dtype` are multiplied without conversion."""
        return str(dtype) in self.ii_clk

    def macs_per_clk(self, dtype: DType | str) -> float:
        """Multiply-accumulates per cycle of one unit in steady state. Raises KeyError if `dtype` is not supported."""
        m, n, k = self.fragment[str(dtype)]
        return self.lanes * m * n * k / self.ii_clk[str(dtype)]


@dataclass(frozen=True, slots=True)
class VectorEngine:
    """The vector engine of one unit: `lanes` 32-bit operations and `sfu_per_clk` special functions per cycle. An
    operation on i64 counts as two. With `sfu_beside_lanes`, an instruction takes the longer of its lane operations and
    its special functions, as on a multiprocessor, where one warp uses the lanes while another uses the special-function
    units; else the sum."""

    lanes: int = quantity("lane")
    sfu_per_clk: int = quantity("op/clk")
    sfu_beside_lanes: bool = quantity("flag", usual=False, hashed=True)


@dataclass(frozen=True, slots=True)
class L1:
    """The software-managed memory of one unit."""

    bytes: int = quantity("B")
    banks: int = quantity("bank", informational=True)
    bytes_per_clk: int = quantity("B/clk")


@dataclass(frozen=True, slots=True)
class Accumulator:
    """The accumulator memory of one unit, and the rate at which the vector engine reads and writes it."""

    bytes: int = quantity("B")
    bytes_per_clk: int = quantity("B/clk")


@dataclass(frozen=True, slots=True)
class L2:
    """The memory of the chip between units and device memory, in slices on the NoC. `managed` software: the program
    places data in it; cache: it keeps tiles of device memory that units loaded or stored, with LRU replacement.
    `writes` of a cache: back or through. `latency_ns` is the mean over units and slices."""

    managed: str = quantity("software|cache")
    writes: str = quantity("back|through")
    bytes: int = quantity("B")
    bytes_per_clk_per_cu: int = quantity("B/clk")
    latency_ns: float = quantity("ns", zero=True)
    slices: int = quantity("slice", informational=True)
    bytes_per_clk_per_slice: int = quantity("B/clk", informational=True)
    bytes_per_clk_total: int = quantity("B/clk")


@dataclass(frozen=True, slots=True)
class Hbm:
    """Device memory of any kind: nameplate rate, the share of it that long reads sustain (`efficiency`), and `refresh`,
    the share of time that refreshing takes.

    `sector_bytes` is the smallest access. Contiguous runs shorter than `burst_bytes`, which is at least a sector, waste
    the rest of a burst. Random rows (gathers) pay an activation worth `activate_bytes` each, partly hidden by other
    banks. `turnaround` is the share of the rate lost when reads and writes mix evenly. Consecutive `interleave_bytes`
    lie in different channels; `mapping` direct: by address bits, so that rows at power-of-two distances conflict in few
    channels; hashed: evenly for any distance. Each channel has `banks` open rows; the more streams are live beyond one
    per unit, the more row misses they have. Arrays are laid out in tiles of `layout_tile` rows and columns: transfers
    of arrays with short axes also move padding."""

    kind: str = quantity("text", informational=True)
    bytes: int = quantity("B")
    gbs: float = quantity("GB/s")
    efficiency: float = quantity("ratio")
    refresh: float = quantity("ratio", zero=True)
    turnaround: float = quantity("ratio", zero=True)
    sector_bytes: int = quantity("B", informational=True)
    burst_bytes: int = quantity("B")
    activate_bytes: int = quantity("B", zero=True)
    channels: int = quantity("channel")
    banks: int = quantity("bank")
    interleave_bytes: int = quantity("B")
    mapping: str = quantity("hashed|direct")
    latency_ns: float = quantity("ns", zero=True)
    layout_tile: tuple[int, int] = quantity("rows,columns", usual=(1, 1))


@dataclass(frozen=True, slots=True)
class Noc:
    """The on-chip network between CEs, l2 slices and memory controllers. On a mesh of CEs with distributed slices, a
    CE's latency differs from the mean by `hop_clk` per router, both ways, and the links of the mesh bound the total
    traffic. Multicast within a CE lets units that load the same tile from a cached l2 share one read."""

    kind: str = quantity("mesh|crossbar|point")
    ce_port_bytes_per_clk: int = quantity("B/clk")
    link_bytes_per_clk: int = quantity("B/clk")
    hop_clk: int = quantity("clk", zero=True)
    multicast: str = quantity("none|within a CE")


@dataclass(frozen=True, slots=True)
class UnitMover:
    """A load or store queue of one unit: a transfer takes `start_clk` to start, then streams up to `bytes_per_clk` and
    one contiguous row of its box every `row_clk`; the starts and latencies of `in_flight` transfers overlap. A unit has
    one queue of each kind, with one stream in a program."""

    queues_per_cu: int = quantity("queue")
    start_clk: int = quantity("clk", zero=True)
    row_clk: int = quantity("clk", zero=True)
    in_flight: int = quantity("transfer")
    bytes_per_clk: int = quantity("B/clk")


@dataclass(frozen=True, slots=True)
class StageMover:
    """The chip's copy queues between l2, hbm and host."""

    queues: int = quantity("queue")
    start_ns: float = quantity("ns", zero=True)
    in_flight: int = quantity("transfer")


@dataclass(frozen=True, slots=True)
class Sync:
    """Cost and number of rings and counters: a kernel has at most `rings_per_cu` rings, the counters of a segment,
    each of which may serve several tensors one after another, are numbered below `counters_per_chip`. A compute queue
    has at most `queue_depth` instructions in flight."""

    ring_op_clk: int = quantity("clk", zero=True)
    counter_bump_ns: float = quantity("ns", zero=True)
    counters_per_chip: int = quantity("counter")
    rings_per_cu: int = quantity("ring")
    queue_depth: int = quantity("instruction")


@dataclass(frozen=True, slots=True)
class AttentionLibrary:
    """What a machine's library or compiler does beside an attention's loads, products and softmax; zero where only this
    compiler's kernels run. Before its attention kernel there are `kernels_before` others, for many queries and for one:
    the last rotates q and k and writes k and v to the cache. Thread blocks of this kernel take `block_us` to start and
    to end, and `blocks` of them share a unit: of many queries, of one query of the heads that share keys, and of one
    query of one head. Up to `group` heads that share keys are one block; if more share them, each head reads the keys
    itself, at `reread` of the rate of l2. Where products and softmax are kernels of their own, scores pass device
    memory `score_passes` times: written by the first product, read by the second and for what is reduced in between."""

    kernels_before: tuple[int, int] = quantity("prompt,token", zero=True, usual=(0, 0), hashed=True)
    block_us: float = quantity("us", zero=True, usual=0.0, hashed=True)
    blocks: tuple[int, int, int] = quantity("prompt,group,head", usual=(1, 1, 1), hashed=True)
    group: int = quantity("head", usual=1, hashed=True)
    reread: float = quantity("ratio", usual=1.0)
    score_passes: int = quantity("pass", zero=True, usual=0)


@dataclass(frozen=True, slots=True)
class SoftmaxLibrary:
    """How a machine's library computes a softmax along its innermost axis. Rows of up to `held` elements are kept in
    registers; 0: rows of any length are, as far as they fit l1. A longer row is a thread block's, which walks it once
    for the maximum, once for the sum and once for the result, computes exponentials anew, and loads nothing ahead;
    `rows` of these blocks share a unit."""

    held: int = quantity("element", zero=True, usual=0)
    rows: int = quantity("row", usual=1)


@dataclass(frozen=True, slots=True)
class Host:
    """The link to the host."""

    pcie: str = quantity("text", informational=True)
    gbs_per_dir: float = quantity("GB/s")


@dataclass(frozen=True, slots=True)
class Interconnect:
    """Chip-to-chip links; `links` is 0 if there are none."""

    links: int = quantity("link", zero=True, informational=True)
    gbs_per_link_per_dir: float = quantity("GB/s", zero=True, informational=True)
    latency_us: float = quantity("us", zero=True, informational=True)
    server: str = quantity("text", informational=True)


@dataclass(frozen=True, slots=True)
class Nic:
    """Scale-out network per card; 0 if there is none."""

    gbps_per_card: float = quantity("Gb/s", zero=True, informational=True)


@dataclass(frozen=True, slots=True)
class Thermal:
    """One RC node: ambient temperature, thermal resistance and time constant."""

    ambient_c: float = quantity("C")
    c_per_w: float = quantity("C/W")
    tau_s: float = quantity("s")


@dataclass(frozen=True, slots=True)
class Temperature:
    """Limits: software throttling, hardware slowdown, shutdown."""

    sw_limit_c: float = quantity("C")
    hw_slow_c: float = quantity("C", informational=True)
    shutdown_c: float = quantity("C", informational=True)


@dataclass(frozen=True, slots=True)
class Power:
    """Board power limit, and the static power that idle circuits draw."""

    tdp_w: float = quantity("W")
    idle_w: float = quantity("W")


@dataclass(frozen=True, slots=True)
class Energy:
    """Dynamic energy per event: a multiply-accumulate by element type, a vector operation, a byte moved, an
    instruction."""

    mac_pj: Mapping[str, float] = quantity("pJ")
    vector_op_pj: float = quantity("pJ")
    sfu_op_pj: float = quantity("pJ")
    l1_pj_per_byte: float = quantity("pJ/B")
    acc_pj_per_byte: float = quantity("pJ/B")
    l2_pj_per_byte: float = quantity("pJ/B")
    hbm_pj_per_byte: float = quantity("pJ/B")
    link_pj_per_byte: float = quantity("pJ/B")
    nic_pj_per_byte: float = quantity("pJ/B", informational=True)
    instruction_pj: float = quantity("pJ")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One number of a target file: dotted `path`, value, unit, mark and source; `informational` as in `quantity`."""

    path: str
    value: Any
    unit: str
    mark: str
    source: str
    informational: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A machine. Equal targets have equal content; `hash` is 16 hex digits of sha256 over all values that describe the
    machine (not its name, texts, provenance or features that it lacks). Build with `load_target` and `override`."""

    name: str
    description: str
    cu: int = quantity("CU")
    cu_per_ce: int = quantity("CU")
    issue_clk: int = quantity("clk", zero=True)
    alignment_bytes: int = quantity("B")
    instruction_bytes: int = quantity("B")
    segment_launch_us: float = quantity("us", zero=True)
    clock: Clock
    launch: Launch
    tensor: TensorEngine
    vector: VectorEngine
    l1: L1
    acc: Accumulator
    l2: L2
    hbm: Hbm
    noc: Noc
    load: UnitMover
    store: UnitMover
    stage: StageMover
    sync: Sync
    attention: AttentionLibrary
    softmax: SoftmaxLibrary
    host: Host
    icn: Interconnect
    nic: Nic
    thermal: Thermal
    temperature: Temperature
    power: Power
    energy: Energy
    hash: str
    provenance: tuple[Leaf, ...] = field(repr=False, compare=False)

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def clk_ns(self) -> float:
        """One cycle at the sustained clock, in ns."""
        return 1e3 / (self.clock.max_mhz * self.clock.sustained)

    @property
    def ces(self) -> int:
        """Groups of units that share an l2 slice, a NoC port and multicast."""
        return self.cu // self.cu_per_ce

    def peak_macs_per_clk(self, dtype: DType | str) -> float:
        """Multiply-accumulates per cycle of the whole chip. Raises KeyError if the tensor engine does not support
        `dtype`."""
        return self.cu * self.tensor.macs_per_clk(dtype)

    def peak_tops(self, dtype: DType | str) -> float:
        """10^12 operations per second (two per multiply-accumulate) of the whole chip at the maximum clock."""
        return 2 * self.peak_macs_per_clk(dtype) * self.clock.max_mhz * 1e6 / 1e12

    def leaves(self) -> tuple[Leaf, ...]:
        """Every number with its unit, mark and source, in schema order; published peaks (`peak_tops.*`) come last."""
        return self.provenance

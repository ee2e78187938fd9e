"""The result of a simulation: the record that all tables, traces and pages derive from.

Times are in clock cycles of the target (float), bytes are bytes that crossed the port of the memory named, `busy` and
`stall` are cycles summed over the units that ran the kernel. Invariant: for each queue of a kernel, `busy +
sum(stall.values()) + idle == units * (end - start)`, where idle is time outside the queue's own instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppuc.ir.errors import UsageError
from ppuc.ir.html import Bar, html_table
from ppuc.ir.program import Queue
from ppuc.ir.types import Space
from ppuc.targets.simulator.power import PowerState
from ppuc.targets.simulator.time_breakdown import bound_by, time_split

STALL_CAUSES = ("data", "space", "bandwidth", "latency", "sync")
"""Causes of stalls: a filled slot, a free slot, a share of a memory's bandwidth, a memory's latency, a counter of
another kernel."""


@dataclass(frozen=True, slots=True)
class KernelStats:
    """One kernel's share of a run."""

    name: str
    loc: tuple[str, ...]
    units: int
    start: float
    end: float
    busy: Mapping[Queue, float]
    stall: Mapping[Queue, Mapping[str, float]]
    instructions: Mapping[Queue, int]
    read_bytes: Mapping[Space, int]
    write_bytes: Mapping[Space, int]
    macs: int
    ideal_tensor: float
    """Cycles that the chip's tensor engines would need at peak for the kernel's useful multiply-accumulates."""
    shaped_tensor: float = 0.0
    """Lower bound on the cycles of the chip's tensor engines for the kernel's products in whole fragments: units may
    share the products of a result, while lanes of a unit compute different results."""
    ideal_vector: float = 0.0
    """Cycles that the chip's vector engines would need with full lanes for the kernel's operations."""
    engine: Mapping[Queue, float] = field(default_factory=dict)
    """Tensor and vector: engine cycles of the work as issued, summed over units, without issue, fill, and waits for
    operands."""
    operand_wait: Mapping[Queue, float] = field(default_factory=dict)
    """Tensor and vector: cycles that l1 and acc need beyond `engine` to deliver operands, summed over units."""
    transfer: Mapping[Space, float] = field(default_factory=dict)
    """Cycles that load and store queues spend moving data per memory, including contention, summed over units."""

    @property
    def cycles(self) -> float:
        """From the first instruction's start to the last one's end."""
        return self.end - self.start

    @property
    def bound_by(self) -> str:
        """The kernel's bottleneck: tensor, vector, l1, l2, hbm, latency or sync."""
        return bound_by(time_split(self, self.cycles))


@dataclass(frozen=True, slots=True)
class Hazard:
    """Two instructions without a happens-before path between them that access the same bytes, at least one writing, or
    bump the same counter for different groups (`space` is "counters")."""

    kind: str
    space: str
    what: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.kind} hazard in {self.space} on {self.what}: {self.first} and {self.second} are not ordered"


@dataclass(frozen=True, slots=True)
class CopyStats:
    """One stage-queue copy."""

    tensor: str
    queue: int
    bytes: int
    start: float
    end: float


SHOWN = 20
"""Kernels that a notebook shows."""


def _cell(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else value


@dataclass(frozen=True, slots=True, repr=False)
class Profile:
    """Time, traffic and energy of one run on one chip."""

    target: str
    target_hash: str
    clock_ghz: float
    cycles: float
    kernels: tuple[KernelStats, ...]
    copies: tuple[CopyStats, ...]
    read_bytes: Mapping[Space, int]
    write_bytes: Mapping[Space, int]
    instructions: int
    launch_cycles: float
    energy_joules: Mapping[str, float]
    hazards: tuple[Hazard, ...] = ()
    values: bool = False
    host_seconds: float = 0.0
    tensor_read: Mapping[str, int] = field(default_factory=dict)
    """Bytes read from each tensor of the program."""
    tensor_write: Mapping[str, int] = field(default_factory=dict)
    """Bytes written to each tensor of the program."""
    power: PowerState | None = None
    """Power when the program repeats without pause."""

    def __repr__(self) -> str:
        hazards = f", {len(self.hazards)} hazards" if self.hazards else ""
        return (
            f"Profile({self.target}: {self.seconds * 1e6:,.4g} us, {self.cycles:,.0f} cycles, "
            f"{self.joules * 1e3:.3g} mJ, {len(self.kernels)} kernels{hazards})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the kernels that take longest."""
        rows = sorted(self.rows(), key=lambda row: -row["cycles"])[:SHOWN]
        shown = ("kernel", "nodes", "units", "cycles", "bound_by", "hbm_bytes", "l2_bytes", "macs")
        cells = ([*(_cell(row[key]) for key in shown), Bar(row["cycles"] / max(self.cycles, 1.0))] for row in rows)
        more = f"; the longest {SHOWN} of {len(self.kernels)} kernels" if len(self.kernels) > SHOWN else ""
        return html_table(f"{self!r}{more}", (*shown, "of the run"), cells, text=(0, 1, 4))

    def rows(self) -> list[dict[str, Any]]:
        """A record for each kernel, in the order of the run: name, ONNX nodes, units, first and last cycle, cycles
        between them, what bounds it, bytes of device memory and l2, multiply-accumulates, instructions, and cycles busy
        by queue."""
        return [
            {
                "kernel": k.name,
                "nodes": ", ".join(k.loc),
                "units": k.units,
                "start": k.start,
                "end": k.end,
                "cycles": k.cycles,
                "bound_by": k.bound_by,
                "hbm_bytes": k.read_bytes.get(Space.HBM, 0) + k.write_bytes.get(Space.HBM, 0),
                "l2_bytes": k.read_bytes.get(Space.L2, 0) + k.write_bytes.get(Space.L2, 0),
                "macs": k.macs,
                "instructions": sum(k.instructions.values()),
                **{f"{queue}_busy": cycles for queue, cycles in k.busy.items()},
            }
            for k in self.kernels
        ]

    def to_pandas(self) -> Any:
        """`rows` as a pandas DataFrame. Raises UsageError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UsageError.of("to_pandas", "needs pandas", hint="pip install pandas") from None
        return pandas.DataFrame(self.rows())

    @property
    def seconds(self) -> float:
        """Simulated wall time of the PPU segments, without power limits."""
        return self.cycles / (self.clock_ghz * 1e9)

    @property
    def joules(self) -> float:
        """Energy of one run."""
        return sum(self.energy_joules.values())

    @property
    def throttled_seconds(self) -> float:
        """Additional time under power and temperature limits of a run that repeats without pause. Launches draw no
        dynamic power and are not throttled."""
        if self.power is None:
            return 0.0
        launches = self.launch_cycles / (self.clock_ghz * 1e9)
        return (self.seconds - launches) * (1.0 / self.power.clock - 1.0)

    @property
    def sustained_seconds(self) -> float:
        """Time of a run that repeats without pause."""
        return self.seconds + self.throttled_seconds

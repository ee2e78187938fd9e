"""Simulated time relative to the model's roofline: `python -m benchmarks.efficiency [--network NAME] [--target T]
[--json]`.

The roofline of a model is max(its multiply-accumulates at the format's peak, compulsory traffic of device memory at the
sustained rate), at the peak clock, over the whole model: the multiply-accumulates of the nodes as written, and weights,
inputs and outputs moved once, in the formats that the program stores them in. The level-two memory is cold. The floor
of a program is its launch, the handovers along its longest chain of dependent kernels, and the roofline. The second
table lists the kernels whose device-memory traffic is furthest from its lower bound; `--ablation` compiles each network
again with one pass, or one of its decisions, disabled at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks import networks, perception
from ppuc.compiler.driver import import_model
from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.report.profile import profile_record
from ppuc.compiler.report.waterfall import compulsory_bytes
from ppuc.ir.errors import InternalError, PpucError
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.ir.ops import points
from ppuc.ir.types import DType, Space
from ppuc.ir.verify import VerificationError
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import Target, resolve_target
from ppuc.targets.simulator.result import KernelStats, Profile
from ppuc.targets.simulator.run import simulate

TARGETS = ("zhenwu-m890", "zhenwu-810e")
WORST = 5
"""Kernels shown in the table of traffic."""


@dataclass(frozen=True, slots=True)
class Case:
    """One network; `goals` are the maximum ratios on each of TARGETS. `aliases` maps inputs to the outputs that extend
    them in place."""

    build: Callable[[Path], Path]
    goals: tuple[float, float]
    aliases: Mapping[str, str] = field(default_factory=dict)


Passes = tuple[Pass, ...]


def without(name: str) -> Callable[[Passes], Passes]:
    """A change of the pipeline that disables a pass."""
    return lambda passes: tuple(p for p in passes if p.name != name)


def altered(name: str, **options: object) -> Callable[[Passes], Passes]:
    """A change of the pipeline that sets options of a pass."""
    return lambda passes: tuple(replace(p, **options) if p.name == name else p for p in passes)  # type: ignore[type-var]


ABLATIONS: dict[str, Callable[[Passes], Passes]] = {
    "fold": without("fold"),
    "canonicalise": without("canonicalise"),
    "recognise": without("match-attention"),
    "layout": without("layout"),
    "epilogues": altered("fuse", epilogues=False),
    "merge": without("horizontal-fusion"),
    "split": without("split-k"),
    "parts of the batch": without("batch-split"),
    "panels": without("split-n"),
    "join": without("in-place-concat"),
    "cascade": without("cascade"),
    "staging": altered("memory-space-assignment", stage=False),
    "4 measured tilings": altered("tile", tries=4),
}
"""The changes that `--ablation` measures; all but the last disable something."""

CASES: dict[str, Case] = {
    **{f"gemm-{size}": Case(partial(networks.gemm, size=size), (1.10, 1.06)) for size in range(4096, 16385, 1024)},
    "resnet50-b1": Case(lambda folder: networks.resnet50(folder, 1), (3.4, 1.9)),
    "resnet50-b8": Case(lambda folder: networks.resnet50(folder, 8), (1.4, 1.18)),
    "resnet50-b32": Case(lambda folder: networks.resnet50(folder, 32), (1.18, 1.1)),
    "resnet50-b64": Case(lambda folder: networks.resnet50(folder, 64), (1.2, 1.15)),
    "resnet50-b128": Case(lambda folder: networks.resnet50(folder, 128), (1.2, 1.15)),
    "resnet50-b256": Case(lambda folder: networks.resnet50(folder, 256), (1.2, 1.15)),
    "vit-b-b8": Case(lambda folder: networks.vit_b(folder, 8), (1.18, 1.08)),
    "bert-b8x128": Case(lambda folder: networks.bert_base(folder, 8, 128), (1.18, 1.05)),
    "decoder-decode-4k": Case(
        lambda folder: networks.decoder(folder, 1, 4096), (1.15, 1.15), networks.decoder_caches()
    ),
    "decoder-prefill-2k": Case(lambda folder: networks.decoder(folder, 2048, 0), (1.3, 1.3)),
    "mobilenetv2-b1": Case(lambda folder: networks.mobilenet_v2(folder, 1), (12, 8)),
    "mobilenetv2-b32": Case(lambda folder: networks.mobilenet_v2(folder, 32), (2.8, 2.0)),
    "swin-b1": Case(lambda folder: perception.swin(folder, 1), (12, 6)),
    "repvit-b1": Case(lambda folder: perception.repvit(folder, 1), (16, 8)),
    "whisper-b1": Case(lambda folder: perception.whisper_encoder(folder, 1), (7, 4)),
    "segformer-b1": Case(lambda folder: perception.segformer_b0(folder, 1), (5, 2.5)),
    "dit-b1": Case(lambda folder: perception.dit(folder, 1), (24, 18)),
    "swin-b8": Case(lambda folder: perception.swin(folder, 8), (3.1, 2)),
    "repvit-b8": Case(lambda folder: perception.repvit(folder, 8), (3.5, 2)),
    "whisper-b8": Case(lambda folder: perception.whisper_encoder(folder, 8), (1.8, 1.3)),
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Device-memory traffic of a matmul or convolution in bytes, and the lower bound for any tiling."""

    kernel: str
    bytes: int
    bound: float

    @property
    def ratio(self) -> float:
        """Traffic over its lower bound."""
        return self.bytes / self.bound if self.bound else 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One network on one target. Times of the simulated chip in cycles, of the compiler in CPU seconds."""

    network: str
    target: str
    goal: float
    cycles: float
    microseconds: float
    compute: float
    memory: float
    compile_seconds: float
    simulate_seconds: float
    kernels: int
    chain: int
    floor: float
    owners: dict[str, float]
    traffic: list[Traffic] = field(default_factory=list)
    ablation: dict[str, float | None] = field(default_factory=dict)
    """Disabled pass or decision -> cycles without it over cycles with it; None if the pipeline requires it."""

    @property
    def ratio(self) -> float:
        """Simulated time over the roofline."""
        return self.cycles / max(self.compute, self.memory)

    @property
    def reached(self) -> bool:
        """Whether the ratio is within the goal."""
        return self.ratio <= self.goal


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Simulated time of networks beside their rooflines.")
    parser.add_argument("--network", action="append", choices=list(CASES), help="only this one (repeatable)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one (repeatable)")
    parser.add_argument("--precision", default="bf16", help="format of contractions (bf16)")
    parser.add_argument("--ablation", action="store_true", help="what each pass is worth")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.network or CASES:
            path = CASES[name].build(Path(folder))
            for target in options.target or TARGETS:
                print(f"{name} on {target} ...", file=sys.stderr)
                found.append(measured(name, path, resolve_target(target), options.precision, options.ablation))
    if options.json:
        print(json.dumps([record(m) for m in found], indent=2))
    else:
        show(found)


def measured(name: str, path: Path, target: Target, precision: str, ablation: bool) -> Measurement:
    """Compile and time one network."""
    begin = time.process_time()
    module = compiled(path, target, precision, PIPELINE, CASES[name].aliases)
    compiled_at = time.process_time()
    profile = timed(module, target)
    seconds = time.process_time() - compiled_at
    assert module.program is not None
    row = profile_record(profile, target, {}, module.program)
    chain = longest_chain(module.graph)
    compute = sum(multiplications(module.graph)) / target.peak_macs_per_clk(contraction_dtype(module.graph))
    memory = compulsory_bytes(profile, module.program) / hbm_bytes_per_clk(target)
    launch = target.segment_launch_us * 1e3 / target.clk_ns
    return Measurement(
        network=name,
        target=target.name,
        goal=CASES[name].goals[TARGETS.index(target.name)],
        cycles=profile.cycles,
        microseconds=profile.seconds * 1e6,
        compute=compute,
        memory=memory,
        compile_seconds=compiled_at - begin,
        simulate_seconds=seconds,
        kernels=len(profile.kernels),
        chain=chain,
        floor=launch + chain * pair_clk(target) + max(compute, memory),
        owners=row["waterfall"]["owners"],
        traffic=sorted(traffic(module, profile, target), key=lambda t: -t.ratio),
        ablation=ablated(path, target, precision, profile.cycles, CASES[name].aliases) if ablation else {},
    )


def longest_chain(graph: Graph) -> int:
    """Kernels of the longest chain of dependent ones."""
    depth: dict[str, int] = {}
    for op in graph.ops:
        before = max((depth.get(v.name, 0) for v in op.operands), default=0)
        depth |= dict.fromkeys((r.name for r in op.results), before + (op.name == "group"))
    return max(depth.values(), default=0)


def pair_clk(target: Target) -> float:
    """Least cycles from a kernel's first load to that of a kernel that reads its result: a load from l2, a vector
    program and a store of no length, and the counter between."""
    queues = 3 * cost.overhead_clk(target) + target.issue_clk
    return cost.latency_clk(target) + cost.handover_clk(target) + queues


def compiled(path: Path, target: Target, precision: str, passes: Sequence[Pass], aliases: Mapping[str, str]) -> Module:
    """The module after `passes`."""
    run = Run(target, passes)
    return run.run(import_model(run, path, CompileOptions(target, precision, aliases=aliases)).module)


def timed(module: Module, target: Target) -> Profile:
    """Simulate the timing only."""
    assert module.program is not None
    return simulate(module.program, module.vectors, target, {}, None, check_hazards=False).profile


def contractions(graph: Graph) -> Iterator[tuple[Op, Op]]:
    """Every (group, contraction in it)."""
    for group in graph.ops:
        for op in group.body.ops if group.body is not None else ():
            if op.name in ("matmul", "conv", "attention", "attention_parts"):
                yield group, op


def contraction_dtype(graph: Graph) -> DType:
    """The operand type of most multiply-accumulates."""
    counts: dict[DType, int] = {}
    for _, op in contractions(graph):
        dtype = op.operands[0].type.dtype
        counts[dtype] = counts.get(dtype, 0) + macs(op)
    return max(counts, key=lambda d: counts[d])


def multiplications(graph: Graph) -> Iterator[int]:
    """Multiply-accumulates of every contraction."""
    return (macs(op) for _, op in contractions(graph))


def macs(op: Op) -> int:
    """Multiply-accumulates of a contraction as written; for attention, both products, of the keys that causal rows
    see."""
    if op.name.startswith("attention"):
        (batch, heads, m, d), k, v = (x.type.dims for x in op.operands[:3])
        hidden = m * (m - 1) // 2 if op.attrs.causal else 0  # type: ignore[attr-defined]
        return batch * heads * (m * k[2] - hidden) * (d + v[3])
    return points(op)


def traffic(module: Module, profile: Profile, target: Target) -> Iterator[Traffic]:
    """Traffic of device memory of every kernel with one matmul or convolution, beside its lower bound."""
    stats = {k.name: k for k in profile.kernels}
    for group, op in contractions(module.graph):
        name = group.attrs.kernel  # type: ignore[attr-defined]
        if not op.name.startswith("attention") and name in stats:
            moved = device_bytes(stats[name])
            if moved:
                yield Traffic(name, moved, lower_bound(group, op, target))


def device_bytes(stats: KernelStats) -> int:
    """Bytes of device memory that a kernel's own transfers move."""
    return stats.read_bytes.get(Space.HBM, 0) + stats.write_bytes.get(Space.HBM, 0)


def lower_bound(group: Op, op: Op, target: Target) -> float:
    """Least bytes of device memory for the group: of each buffer there, everything once; where all of a product's
    operands are there, at least 2 macs / sqrt(R S) elements besides the result (Kwasniewski et al. 2019 for matmul,
    R = 1; Chen et al. 2020 for convolution, R = max(1, taps / stride^2)) with S elements in all on-chip memories."""
    there = [v for v in (*group.operands, *group.results) if v.space is Space.HBM]
    compulsory = sum(v.type.bytes for v in {v.name: v for v in there}.values())
    if any(v.space is not Space.HBM for v in (*group.operands, *group.results)):
        return compulsory
    dtype = op.operands[0].type.dtype
    size = (target.l2.bytes + target.cu * target.l1.bytes) / dtype.bytes
    reuse = 1.0
    if op.name == "conv":
        taps = math.prod(op.attrs.window)  # type: ignore[attr-defined]
        reuse = max(1.0, taps / math.prod(op.attrs.strides))  # type: ignore[attr-defined]
    return max(compulsory, (2 * macs(op) / math.sqrt(reuse * size) - (2 * size if reuse > 1 else 0)) * dtype.bytes)


def ablated(
    path: Path, target: Target, precision: str, cycles: float, aliases: Mapping[str, str]
) -> dict[str, float | None]:
    """Cycles with each of ABLATIONS over `cycles`; None if the rest of the pipeline requires what it disables."""
    found: dict[str, float | None] = {}
    for label, change in ABLATIONS.items():
        try:
            found[label] = timed(compiled(path, target, precision, change(PIPELINE), aliases), target).cycles / cycles
        except (PpucError, InternalError, VerificationError, NotFusable):
            found[label] = None
    return found


def show(found: Sequence[Measurement]) -> None:
    """Three tables."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    columns = ("network", "target", "us", "compute", "memory", "ratio", "goal", "", "kernels", "chain", "floor, us")
    table = Table(*columns, "owners of the time", "CPU s")
    for m in found:
        owners = " ".join(f"{name} {share:.0%}" for name, share in m.owners.items() if share >= 0.005)
        clk_us = m.microseconds / m.cycles
        table.add_row(
            m.network, m.target, f"{m.microseconds:.1f}", f"{m.compute * clk_us:.1f}", f"{m.memory * clk_us:.1f}",
            f"{m.ratio:.2f}", f"{m.goal:.2f}", "" if m.reached else "missed", str(m.kernels), str(m.chain),
            f"{m.floor * clk_us:.1f}", owners,
            f"{m.compile_seconds:.1f} + {m.simulate_seconds:.2f}",
        )  # fmt: skip
    console.print(table)
    table = Table("network", "target", "kernel", "hbm bytes", "least", "ratio", title="traffic of device memory")
    for m in found:
        for t in m.traffic[:WORST]:
            table.add_row(m.network, m.target, t.kernel, f"{t.bytes:,}", f"{t.bound:,.0f}", f"{t.ratio:.2f}")
    console.print(table)
    if any(m.ablation for m in found):
        table = Table("network", "target", *ABLATIONS, title="time without, over time with")
        for m in found:
            cells = ("needed" if r is None else f"{r:.2f}" for r in m.ablation.values())
            table.add_row(m.network, m.target, *cells)
        console.print(table)


def record(m: Measurement) -> dict[str, Any]:
    """JSON-able values."""
    rows = [{**asdict(t), "ratio": t.ratio} for t in m.traffic]
    return {**asdict(m), "ratio": m.ratio, "reached": m.reached, "traffic": rows}


if __name__ == "__main__":
    main()

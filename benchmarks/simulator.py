"""CPU seconds of the simulator, compared with other simulators: `python -m benchmarks.simulator [--json] [--short]`.

Networks are compiled for zhenwu-m890 and simulated twice; the second run counts, because the first may compile the
event loop. Timing only, in bf16: products of cubes, one also without skipping repeated iterations, ResNet-50 at batch 1
and a prefill of 2,048 tokens through 36 layers of width 4096 (`--short` leaves it out). Values: ResNet-50 at batch 1 in
fp32, with and without the hazard checker. Everything runs in one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppuc
from benchmarks import models, networks
from ppuc.ir.resource import Resource
from ppuc.targets.description import load_target
from ppuc.targets.simulator.run import RawResult, simulate

TARGET = "zhenwu-m890"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; `goal` and `peers` in CPU seconds."""

    what: str
    cpu_seconds: float
    instructions: int
    cycles: float
    peak_mb: float
    goal: str
    peers: str = ""


def timing_only(what: str, path: Path, goal: str, peers: str = "", also_in_full: str = "") -> list[Row]:
    """Time a network in bf16, and again under the name `also_in_full`, if given, without skipping what repeats."""
    program, target = ppuc.compile(path, target=TARGET, precision="bf16").artifact, load_target(TARGET)

    def run(replay: bool) -> RawResult:
        return simulate(program.program, program.vectors, target, {}, None, replay=replay)

    rows = [measured(what, goal, peers, lambda: run(True))]
    if also_in_full:
        rows.append(measured(also_in_full, "", "", lambda: run(False)))
    return rows


def with_values(precision: str) -> list[Row]:
    """ResNet-50 with seeded weights, values computed, without and with hazards checked."""
    program, target = ppuc.compile(models.resnet50(), target=TARGET, precision=precision), load_target(TARGET)
    artifact = program.artifact
    constants = {n: c if isinstance(c, Resource) else Resource.of(c, n) for n, c in artifact.constants.items()}
    feeds = {artifact.inputs[0].tensor: models.image().reshape(-1)}

    def run(check: bool) -> RawResult:
        return simulate(artifact.program, artifact.vectors, target, constants, feeds, check_hazards=check)

    name = f"ResNet-50 b1, values, {precision}"
    return [
        measured(name, "", "", lambda: run(False)),
        measured(f"{name}, hazards checked", "2.5", "tpu-mlir 205", lambda: run(True)),
    ]


def measured(what: str, goal: str, peers: str, run: Callable[[], RawResult]) -> Row:
    """Measure the second of two runs."""
    run()
    begin = time.process_time()
    profile = run().profile
    spent = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
    return Row(what, round(spent, 3), profile.instructions, profile.cycles, round(peak), goal, peers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU seconds of the simulator beside those of others.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--short", action="store_true", help="leave the 36 layers out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = timing_only("GEMM 4096^3, timing only", networks.gemm(folder), "0.1")
        large = timing_only(
            "GEMM 16384^3, timing only", networks.gemm(folder, 16384), "1", also_in_full="the same, nothing skipped"
        )
        rows += large
        resnet = networks.resnet50(folder, 1)
        rows += timing_only("ResNet-50 b1, timing only", resnet, "0.08", "ONNXim 7.4, SCALE-Sim 121")
        if not options.short:
            prefill = networks.decoder(folder, 2048, 0, layers=36)
            rows += timing_only("36 layers of 4096, 2,048 tokens, timing only", prefill, "10")
        rows += [*with_values("bf16"), *with_values("fp32")]
    if options.json:
        print(json.dumps({"target": TARGET, "measurements": [asdict(r) for r in rows]}, indent=2))
        return
    print(f"{TARGET}; CPU seconds of one run, compiled code warm, one thread\n")
    print(f"{'':46}{'CPU s':>8}{'goal':>6}{'instructions':>14}{'cycles':>14}{'peak MB':>9}  others (CPU s)")
    for r in rows:
        counts = f"{r.instructions:14,}{r.cycles:14,.0f}{r.peak_mb:9.0f}"
        print(f"{r.what:46}{r.cpu_seconds:8.3f}{r.goal:>6}{counts}  {r.peers}")
    skipping, full = (row.cpu_seconds for row in large)
    print(f"\nskipping repeated iterations: GEMM 16384^3 takes {skipping / full:.2f} of the CPU time")
    plain, checked = rows[-2].cpu_seconds, rows[-1].cpu_seconds
    print(f"checking hazards adds {100 * (checked / plain - 1):.0f} % (goal: at most 30 %)")


if __name__ == "__main__":
    main()

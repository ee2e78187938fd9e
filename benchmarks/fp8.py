"""8-bit formats on trained models: accuracy (plain, repaired and mixed), task metrics and simulated speed, as a table.

    python -m benchmarks.fp8 --models FOLDER [NAME ...] [--share 0.9]
    python -m benchmarks.fp8 --speed
    python -m benchmarks.fp8 --cameras [NAME ...]

FOLDER contains one folder per model (see tasks.py). The samples for calibration and those for the figures are disjoint;
if there are few, each set is filled up with perturbed copies of its own samples: images with different contrast,
brightness, noise and position, rows of token ids spliced from two rows. The task metric is measured on all real samples
that calibration and search did not use. Repair and search are those of `ppuc quantize`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import networks
from benchmarks.mobile import FOR_CAMERAS
from benchmarks.tasks import Sample, Task, task_of
from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.quantization.calibrate import calibrated_plan
from ppuc.compiler.quantization.measure import Reference
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared, prepare, storage_plan
from ppuc.compiler.quantization.search import Goal
from ppuc.compiler.quantization.study import Aim, study
from ppuc.compiler.quantization.timing import timed
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.graph import Graph
from ppuc.targets.description import load_target

CALIBRATION, EVALUATION, LARGE = 32, 16, 1 << 20
"""Samples in each set; a quarter of that for inputs with LARGE elements or more."""
PERIOD = 4
"""Samples are assigned to fitting and checking, and to the folds of a cross-validation, with a period of PERIOD or half
of it; a copy is assigned like its original, so that neither validates what was fitted to the other."""


def perturbed(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """A perturbed copy of a sample."""
    made = dict(sample)
    cut = int(rng.integers(1, 16))
    for name, array in sample.items():
        if array.dtype == np.float32 and array.ndim == 4:
            spread = float(array.std())
            image = (array - array.mean()) * rng.uniform(0.7, 1.15) + array.mean() + rng.normal(0, 0.08) * spread
            image = image + rng.normal(0, rng.uniform(0, 0.12) * spread, array.shape)
            image = np.roll(image, (int(rng.integers(-3, 4)), int(rng.integers(-6, 7))), (2, 3))
            made[name] = np.clip(image, array.min(), array.max()).astype(np.float32)
        elif array.dtype.kind == "i" and array.ndim == 2:
            made[name] = np.concatenate([array[:, :cut], other[name][:, cut:]], 1)
    return made


def grown(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """The first `count` samples, filled up with perturbed ones."""
    rng = np.random.default_rng(seed)
    made = list(samples[:count])
    assigned = len(samples) // PERIOD * PERIOD or len(samples)
    while len(made) < count:
        round, i = divmod(len(made), assigned)
        made.append(perturbed(samples[i], samples[(i + PERIOD * round) % assigned], rng))
    return made


@dataclass(slots=True)
class Judge:
    """Measures quantized graphs: SQNR and agreement on `samples`, the task metric on its held-out samples."""

    ready: Prepared
    reference: Reference
    task: Task
    wanted: list[dict[str, np.ndarray]]

    @staticmethod
    def of(ready: Prepared, task: Task, samples: Sequence[Sample]) -> Judge:
        judge = Judge(ready, Reference(ready.module.graph, ready.feeds(samples)), task, [])
        judge.wanted = judge.outputs(ready.module.graph) if task.type is not None else []
        return judge

    def outputs(self, graph: Graph) -> list[dict[str, np.ndarray]]:
        emulator = Emulator(graph)
        positions = {v.name: i for i, v in enumerate(self.ready.module.graph.results)}
        names = [(name, graph.results[positions[value]].name) for name, value in self.ready.module.outputs]
        runs = map(emulator.run, self.ready.feeds(self.task.held))
        return [{name: run[value] for name, value in names} for run in runs]

    def cells(self, plan: Plan | None) -> tuple[str, str]:
        """SQNR with agreement, and the task metric (None: of the model in f32)."""
        graph = self.ready.module.graph if plan is None else self.ready.quantized(plan).graph
        accuracy = self.reference.compare(graph)
        outputs = self.wanted if plan is None else self.outputs(graph) if self.wanted else []
        figure = f"{self.task.figure(outputs, self.wanted):.1%}" if self.wanted else "-"
        return f"{accuracy.sqnr:.1f} dB {accuracy.agreement:.1%}", figure


def row(name: str, folder: Path, share: float, target: str) -> str:
    """One model's line."""
    started = time.process_time()
    task = task_of(folder)
    part = 4 if max(a.size for a in task.seen[0].values()) >= LARGE else 1
    calibration, evaluation = (
        grown(samples, count // part, seed)
        for samples, count, seed in ((task.seen, CALIBRATION, 1), (task.held, EVALUATION, 2))
    )
    options = CompileOptions(load_target(target), "mixed")
    imported = load_model(folder / "model.onnx", shapes={n: a.shape for n, a in calibration[0].items()})
    ready = prepare(initial_module(imported, options), options)
    judge = Judge.of(ready, task, evaluation)
    plain = calibrated_plan(ready, "e4m3", calibration)
    mended = study(replace(ready, options=replace(options, precision="fp8")), calibration, evaluation)
    mixed = study(ready, calibration, evaluation, Aim(Goal(min_share=share)))
    cells = [name, judge.cells(None)[1]]
    for plan in (plain, mended.plan, mixed.plan):
        cells += judge.cells(plan)
    cells += [f"{mixed.record['share']:.1%}", *(f"{s.record['time']['speedup']:.2f}" for s in (mended, mixed))]
    return f"| {' | '.join((*cells, f'{time.process_time() - started:.0f}'))} |"


COLUMNS = (
    *("model", "task, fp32", "plain E4M3", "task", "all FP8, repaired", "task", "mixed", "task"),
    *("MACs in 8 bits", "speed-up all FP8", "speed-up mixed", "CPU-s"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def speed(path: Path, target: str, *, stored: str = "", attention: bool = False) -> float:
    """Simulated time in bf16 over that with 8-bit products (of attention too), or weights in the format `stored`."""
    options = CompileOptions(load_target(target), "fp8")
    ready = prepare(initial_module(load_model(path), options), options)
    ready = ready.with_attention() if attention else ready

    def narrow(ready: Prepared) -> Plan:
        if stored:
            return storage_plan(ready, stored)
        return Plan({n.name: LayerPlan("e4m3", (0.01,) * len(n.inputs)) for n in ready.layers})

    return timed(ready, Plan()).seconds / timed(ready, narrow(ready)).seconds


def speeds() -> None:
    """The table of speed-ups."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decoder = networks.decoder(folder, 1, 512, layers=8)
        encoder, bert = networks.vit_b(folder, 8), networks.bert_base(folder, 8, 128)
        prefill = networks.decoder(folder, 2048, 0, layers=1)
        attention = {"attention": True}
        rows: tuple[tuple[str, Path, str, dict[str, Any]], ...] = (
            ("GEMM 4096^3", networks.gemm(folder), "zhenwu-m890", {}),
            ("ViT-B, batch 8", encoder, "zhenwu-m890", {}),
            ("ViT-B, batch 8, attention in f8 too", encoder, "zhenwu-m890", attention),
            ("BERT-base, 8 x 128", bert, "zhenwu-m890", {}),
            ("BERT-base, 8 x 128, attention in f8 too", bert, "zhenwu-m890", attention),
            ("decoder, 4096 wide, prefill of 2048 tokens", prefill, "zhenwu-m890", {}),
            ("the same, attention in f8 too", prefill, "zhenwu-m890", attention),
            ("decoder, 4096 wide, 8 layers, 512 tokens past", decoder, "zhenwu-m890", {}),
            *(
                (f"the same, weights stored in {format}", decoder, target, {"stored": format})
                for target in ("zhenwu-m890", "zhenwu-810e")
                for format in ("e4m3", "mxfp8", "mxfp4", "nvfp4")
            ),
        )
        print("| network | target | speed-up over bf16 |\n|---|---|---|")
        for label, path, target, how in rows:
            print(f"| {label} | {target} | {speed(path, target, **how):.2f} |", flush=True)


def camera_speed(path: Path, target: str) -> list[float]:
    """Simulated time in bf16 over that in E4M3 and int8, every layer with the same scale."""
    options = CompileOptions(load_target(target), "fp8")
    ready = prepare(initial_module(load_model(path), options), options)
    wide = timed(ready, Plan()).seconds

    def narrow(format: str) -> Plan:
        plans = {n.name: LayerPlan(format, *zip(*[(0.01, False)] * len(n.inputs), strict=True)) for n in ready.layers}
        return Plan(plans)

    return [wide / timed(ready, narrow(format)).seconds for format in ("e4m3", "int8")]


def camera_speeds(names: Sequence[str], target: str) -> None:
    """The table of speed-ups of networks for cameras."""
    print("| network | E4M3, batch 1 | batch 8 | int8, batch 1 | batch 8 |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or FOR_CAMERAS:
            one, eight = (camera_speed(FOR_CAMERAS[name](Path(folder), batch), target) for batch in (1, 8))
            cells = (f"{speed:.2f}" for pair in zip(one, eight, strict=True) for speed in pair)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=Path, help="folder of models")
    options.add_argument("names", nargs="*", help="models in it, or networks; default: all")
    options.add_argument("--share", type=float, default=0.9, help="least share of multiply-accumulates in 8 bits")
    options.add_argument("--target", default="zhenwu-m890")
    options.add_argument("--speed", action="store_true", help="speed-ups of networks with seeded weights")
    options.add_argument("--cameras", action="store_true", help="speed-ups of networks for cameras, batch 1 and 8")
    given = options.parse_args()
    if given.speed:
        speeds()
    if given.cameras:
        camera_speeds(given.names, given.target)
    if given.models is None:
        return
    print(HEAD, flush=True)
    for name in given.names or sorted(p.parent.name for p in given.models.glob("*/eval.npz")):
        print(row(name, given.models / name, given.share, given.target), flush=True)


if __name__ == "__main__":
    main()

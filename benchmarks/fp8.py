"""8-bit formats on trained models: accuracy plain, repaired and mixed, and simulated speed against bf16. One table.

    python -m benchmarks.fp8 --models FOLDER [NAME ...] [--share 0.9]
    python -m benchmarks.fp8 --speed

FOLDER holds NAME/model.onnx, NAME/sample.npz (one sample of each input) and NAME/eval.npz (samples stacked, under the
inputs' names). Every second sample of eval.npz is for calibration, the others are for the figures; where there are few,
both sides are filled up with perturbed copies of their own samples: images with another contrast, brightness, noise and
position, rows of token ids spliced from two rows. So no figure is measured on anything that calibration or search saw.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import networks
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.quantization.calibrate import Calibration, plan_from
from ppuc.compiler.quantization.measure import Accuracy, Reference
from ppuc.compiler.quantization.noise import best_formats
from ppuc.compiler.quantization.observe import observe
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared, prepare, storage_plan
from ppuc.compiler.quantization.repair import repaired
from ppuc.compiler.quantization.search import Goal, Search, isolated_noise, quantized_share
from ppuc.compiler.quantization.timing import timed
from ppuc.compiler.run import initial_module
from ppuc.targets.description import load_target

Sample = dict[str, np.ndarray]
CALIBRATION, EVALUATION, LARGE = 32, 16, 1 << 20
"""Samples on each side; of inputs with LARGE elements or more, a quarter of that."""
DEAL = 4
"""Samples are dealt to fitting and checking, and to the folds of a cross-validation, in turns of DEAL or half of it; a
copy is dealt as its original is, so that neither judges what was fitted to the other."""


def samples_of(folder: Path) -> list[Sample]:
    """What eval.npz holds, one sample at a time; inputs that it lacks are those of sample.npz."""
    stacked, single = (dict(np.load(folder / f"{name}.npz")) for name in ("eval", "sample"))
    names = [name for name in single if name in stacked]
    found = []
    for i in range(min(len(stacked[name]) for name in names)):
        sample = dict(single)
        for name in names:
            row, dtype = stacked[name][i : i + 1], single[name].dtype
            if row.dtype == np.uint8 and dtype.kind == "f":
                row = row * np.float32(stacked.get("scale", 1.0))
            sample[name] = row.astype(dtype)
        found.append(sample)
    return found


def perturbed(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """A copy that is not the sample."""
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
    dealt = len(samples) // DEAL * DEAL or len(samples)
    while len(made) < count:
        round, i = divmod(len(made), dealt)
        made.append(perturbed(samples[i], samples[(i + DEAL * round) % dealt], rng))
    return made


def figures(accuracy: Accuracy) -> str:
    """SQNR and agreement."""
    return f"{accuracy.sqnr:6.2f} dB {accuracy.agreement:7.2%}"


def row(name: str, folder: Path, share: float, target: str) -> str:
    """One model's line."""
    started = time.process_time()
    samples = samples_of(folder)
    part = 4 if max(a.size for a in samples[0].values()) >= LARGE else 1
    calibration = grown(samples[::2], CALIBRATION // part, 1)
    machine = load_target(target)
    imported = load_model(folder / "model.onnx", shapes={n: a.shape for n, a in samples[0].items()})
    ready = prepare(initial_module(imported, machine, "mixed"), machine)
    feeds = list(ready.feeds(calibration))
    fit, check = [f for i, f in enumerate(feeds) if i % 4 != 1], Reference(ready.module.graph, feeds[1::4])
    evaluation = Reference(ready.module.graph, ready.feeds(grown(samples[1::2], EVALUATION // part, 2)))

    def measured(plan: Plan) -> str:
        return figures(evaluation.compare(ready.quantized(plan).graph))

    plain = plan_from(ready.layers, observe(ready.module.graph, ready.layers, feeds), "e4m3", Calibration())
    mended = repaired(ready, plain, feeds)
    seen = observe(ready.module.graph, ready.layers, fit)
    best = best_formats(ready.layers, seen, ("e4m3", "int8"), Calibration())
    single = plan_from(ready.layers, seen, "e4m3", Calibration())
    start = max((best, single), key=lambda plan: check.compare(ready.quantized(plan).graph).merit)
    known = isolated_noise(ready, start, check)
    found = Search(ready, fit, check, feeds, start, Goal(min_share=share), known=known).run()
    wide, narrow = timed(ready, Plan()), timed(ready, found.best.plan)
    cells = (
        name,
        measured(plain),
        f"{measured(mended.plan)} ({mended.method}, {quantized_share(ready, plain):.1%})",
        f"{measured(found.best.plan)} ({found.repair})",
        f"{quantized_share(ready, found.best.plan):.1%}",
        f"{wide.seconds / narrow.seconds:.2f}",
        f"{time.process_time() - started:.0f}",
    )
    return f"| {' | '.join(cells)} |"


COLUMNS = ("model", "plain E4M3", "all FP8, repaired", "mixed", "MACs in 8 bits", "speed-up", "CPU-s")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def speed(path: Path, target: str, *, stored: str = "", attention: bool = False) -> float:
    """Simulated time in bf16 over that with 8-bit products (of attention too), or weights in the format `stored`."""
    machine = load_target(target)
    ready = prepare(initial_module(load_model(path), machine, "fp8"), machine)
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
        decoder = networks.decoder(folder, 1, 512, layers=2)
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
            ("decoder, 4096 wide, 512 tokens past", decoder, "zhenwu-m890", {}),
            *(
                (f"the same, weights stored in {format}", decoder, target, {"stored": format})
                for target in ("zhenwu-m890", "zhenwu-810e")
                for format in ("e4m3", "mxfp8", "mxfp4", "nvfp4")
            ),
        )
        print("| network | target | speed-up over bf16 |\n|---|---|---|")
        for label, path, target, how in rows:
            print(f"| {label} | {target} | {speed(path, target, **how):.2f} |", flush=True)


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=Path, help="folder of models")
    options.add_argument("names", nargs="*", help="models in it; default: all with eval.npz")
    options.add_argument("--share", type=float, default=0.9, help="least share of multiply-accumulates in 8 bits")
    options.add_argument("--target", default="zhenwu-m890")
    options.add_argument("--speed", action="store_true", help="speed-ups of networks with seeded weights")
    given = options.parse_args()
    if given.speed:
        speeds()
    if given.models is None:
        return
    print(HEAD, flush=True)
    for name in given.names or sorted(p.parent.name for p in given.models.glob("*/eval.npz")):
        print(row(name, given.models / name, given.share, given.target), flush=True)


if __name__ == "__main__":
    main()

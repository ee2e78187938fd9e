"""Random graphs through the whole pipeline: verified, re-executed after every pass, simulated, checked for hazards.
With `--generator`, ONNX models compiled and compared with ONNX Runtime: `solved`, products and views whose shapes are
solved for; `trial`, nodes of every kind that ONNX Runtime accepts, some of which run on the host.

    python -m benchmarks.fuzz --seeds 0:2000 --target ppu-tiny --target zhenwu-m890
    python -m benchmarks.fuzz --generator solved --seeds 0:500 --precision int8
    python -m benchmarks.fuzz --generator trial --seeds 0:500 --target zhenwu-810e

Prints a line for every seed that fails and a summary. Exit code 1 when any failed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppuc.targets.description import load_target
from tests.fuzz.solved import disagreement
from tests.fuzz.solved import model_of_seed as solved_of_seed
from tests.fuzz.trial import model_of_seed as trial_of_seed
from tests.property.graph_generator import module_of_seed
from tests.support.whole_pipeline import compiled

NOISE = {"model": 0.0, "fp32": 0.0, "bf16": 2.0**-7, "fp16": 2.0**-10}
"""Precisions of the graphs, and the relative error that their values must bear."""
OF_MODELS = (*NOISE, "int8", "fp8")
"""Precisions of ONNX models, whose verification says what each allows."""


def seed_range(text: str) -> range:
    """`A:B` as range(A, B), `A` as that seed alone."""
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def failure(seed: int, target: str, precision: str, layers: int, generator: str, full: bool) -> str:
    """What went wrong with a seed; "" when nothing did."""
    try:
        if generator == "solved":
            return disagreement(*solved_of_seed(seed, layers), target, precision)
        if generator == "trial":
            model, feeds, symbols = trial_of_seed(seed, layers)
            return disagreement(model, feeds, target, precision, symbols, host=True)
        module, inputs = module_of_seed(seed, layers, NOISE[precision], precision=precision)
        compiled(module, load_target(target), inputs)
    except Exception as error:
        if full:
            return traceback.format_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {frame.filename.rpartition('/')[2]}:{frame.lineno}: {error}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(100), metavar="A:B")
    parser.add_argument("--target", action="append", metavar="NAME", help="may be repeated; both machines by default")
    parser.add_argument("--precision", default="model", choices=sorted(OF_MODELS))
    parser.add_argument("--generator", default="graphs", choices=("graphs", "solved", "trial"))
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--traceback", action="store_true", help="show where each failure arose")
    arguments = parser.parse_args()
    if arguments.generator == "graphs" and arguments.precision not in NOISE:
        parser.error(f"--precision {arguments.precision} takes --generator solved or trial")
    started, failed, total = time.perf_counter(), 0, 0
    for target in arguments.target or ["ppu-tiny", "zhenwu-m890"]:
        for seed in arguments.seeds:
            total += 1
            how = (arguments.precision, arguments.layers, arguments.generator, arguments.traceback)
            message = failure(seed, target, *how)
            if message:
                failed += 1
                print(f"{target} {arguments.precision} seed {seed}: {message}", flush=True)
    seconds = time.perf_counter() - started
    print(f"{total - failed} of {total} graphs agree, {seconds / max(total, 1):.2f} s each")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

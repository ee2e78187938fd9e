"""Random graphs through the whole pipeline: verified, re-executed after every pass, simulated, checked for hazards.
With `--generator`, ONNX models compiled and compared with ONNX Runtime: `solved`, products and views whose shapes are
solved for; `trial`, nodes of every kind that ONNX Runtime accepts, some of which run on the host; `stranger`, any op as
often as any other, operands that the graph computes, graphs in graphs, and tensors without elements or axes.

    python -m benchmarks.fuzz --seeds 0:2000 --target ppu-tiny --target zhenwu-m890
    python -m benchmarks.fuzz --generator solved --seeds 0:500 --precision int8
    python -m benchmarks.fuzz --generator trial --seeds 0:500 --target zhenwu-810e

Every seed runs in a process of its own. Prints a line for every seed that fails, or that has no oracle, and a summary:

- failed: an output is wrong, there is a hazard, or something crashed or took longer than `--seconds`;
- disputed: ONNX Runtime computes something else, and onnx.reference, node by node, what the program does;
- no oracle: ONNX Runtime crashed while the model was made.

Exit code 1 when any failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx

from ppuc.targets.description import load_target
from tests.fuzz.second import DISPUTED
from tests.fuzz.solved import disagreement
from tests.fuzz.solved import model_of_seed as solved_of_seed
from tests.fuzz.stranger import model_of_seed as stranger_of_seed
from tests.fuzz.trial import model_of_seed as trial_of_seed
from tests.property.graph_generator import module_of_seed
from tests.support.whole_pipeline import compiled

NOISE = {"model": 0.0, "fp32": 0.0, "bf16": 2.0**-7, "fp16": 2.0**-10}
"""Precisions of the graphs, and the relative error that their values must bear."""
OF_MODELS = (*NOISE, "int8", "fp8")
"""Precisions of ONNX models, whose verification says what each allows."""


Made = tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]
"""A model, its inputs, and sizes of its symbols."""
Generator = Callable[[int, int], Made]
GENERATORS: dict[str, Generator] = {
    "solved": lambda seed, layers: (*solved_of_seed(seed, layers), {}),
    "trial": trial_of_seed,
    "stranger": stranger_of_seed,
}
MADE = "made"
AGREES, FAILED, NO_ORACLE = "agree", "failed", "no oracle"


def seed_range(text: str) -> range:
    """`A:B` as range(A, B), `A` as that seed alone."""
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def failure(seed: int, target: str, precision: str, layers: int, generator: str, full: bool, stage: Connection) -> str:
    """What went wrong with a seed; "" when nothing did. Says at `stage` when the model is made."""
    try:
        if generator == "graphs":
            module, inputs = module_of_seed(seed, layers, NOISE[precision], precision=precision)
            stage.send(MADE)
            compiled(module, load_target(target), inputs)
            return ""
        model, feeds, symbols = GENERATORS[generator](seed, layers)
        stage.send(MADE)
        return disagreement(model, feeds, target, precision, symbols, host=generator != "solved")
    except Exception as error:
        if full:
            return traceback.format_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {frame.filename.rpartition('/')[2]}:{frame.lineno}: {error}"


def outcome(how: tuple[int, str, str, int, str, bool], seconds: float) -> tuple[str, str]:
    """What becomes of a seed (AGREES, FAILED, DISPUTED, NO_ORACLE), and why. ONNX Runtime may take its process along:
    an integer division by zero is a signal."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(how, theirs))
    process.start()
    theirs.close()
    said, ends = list[str](), time.monotonic() + seconds
    try:
        while mine.poll(max(ends - time.monotonic(), 0)):
            said.append(mine.recv())
    except EOFError:
        pass
    late = process.is_alive() and time.monotonic() >= ends
    if late:
        process.kill()
    process.join()
    made, found = MADE in said, [text for text in said if text != MADE]
    if found:
        message = found[0]
        return ("disputed" if message.startswith(DISPUTED) else FAILED if message else AGREES), message
    if late:
        return (FAILED if made else NO_ORACLE), f"not done after {seconds:g} s"
    code = process.exitcode or 0
    died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return (FAILED if made else NO_ORACLE), f"died of {died} {'once' if made else 'before'} the model was made"


def _run(how: tuple[int, str, str, int, str, bool], pipe: Connection) -> None:
    pipe.send(failure(*how, pipe))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(100), metavar="A:B")
    parser.add_argument("--target", action="append", metavar="NAME", help="may be repeated; both machines by default")
    parser.add_argument("--precision", default="model", choices=sorted(OF_MODELS))
    parser.add_argument("--generator", default="graphs", choices=("graphs", *GENERATORS))
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=300, help="that a seed may take")
    parser.add_argument("--traceback", action="store_true", help="show where each failure arose")
    arguments = parser.parse_args()
    if arguments.generator == "graphs" and arguments.precision not in NOISE:
        parser.error(f"--precision {arguments.precision} takes --generator {' or '.join(GENERATORS)}")
    started, counts = time.perf_counter(), Counter[str]()
    for target in arguments.target or ["ppu-tiny", "zhenwu-m890"]:
        for seed in arguments.seeds:
            how = (seed, target, arguments.precision, arguments.layers, arguments.generator, arguments.traceback)
            what, message = outcome(how, arguments.seconds)
            counts[what] += 1
            if what != AGREES:
                print(f"{target} {arguments.precision} seed {seed}: {what}: {message}", flush=True)
    seconds, total = time.perf_counter() - started, counts.total()
    others = "".join(f", {count} {what}" for what, count in sorted(counts.items()) if what != AGREES)
    print(f"{counts[AGREES]} of {total} graphs agree{others}, {seconds / max(total, 1):.2f} s each")
    return 1 if counts[FAILED] else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Random models of several nodes, including host nodes: compiled, simulated, compared with ONNX Runtime.

    python -m benchmarks.fuzz_models --seeds 0:200 [--nodes 6] [--target ppu-tiny]

Prints every model that disagrees or fails. Exit code 1 when any did.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx

import ppuc
from benchmarks.fuzz import seed_range
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.verification import verify_program
from ppuc.ir.errors import PpucError
from tests.fuzz.judging import SLACK
from tests.fuzz.models import model_of_seed
from tests.fuzz.sample import Node


def outcome(node: Node, target: str) -> tuple[str, str]:
    """The outcome for a model (agrees, with host, refused, no oracle, differs, fault), and the reason."""
    try:
        Oracle(node.model).run(node.feeds)
    except Exception as error:  # PpucError, and what the binding to numpy says of types that it does not know
        return "no oracle", str(error)
    try:
        program = ppuc.compile(node.model, target, values=node.feeds)
    except PpucError as error:
        return "refused", str(error)
    except Exception:
        return "fault", traceback.format_exc()
    try:
        verified = verify_program(program, node.feeds)
    except Exception:  # PpucError too: what compiles has to run
        return "fault", traceback.format_exc()
    if verified.ok:
        return "with host" if program.plan is not None else "agrees", ""
    wrong = [f"{c.name}: {c.reason}" for c in verified.outputs if not c.ok and c.rms_rel > SLACK * c.tolerance]
    return ("differs" if wrong or verified.hazards else "agrees"), "; ".join([*wrong, *verified.hazards])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(50), metavar="A:B")
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--target", default="ppu-tiny")
    parser.add_argument("--show", action="append", default=[], help="print these outcomes too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts, started = Counter[str](), time.perf_counter()
    for seed in arguments.seeds:
        node = model_of_seed(seed, arguments.nodes)
        what, why = outcome(node, arguments.target)
        counts[what] += 1
        if what in ("differs", "fault", *arguments.show):
            text = "\n  ".join(onnx.printer.to_text(n) for n in node.model.graph.node)
            print(f"seed {seed}: {what}\n  {text}\n  {why}", flush=True)
    print(f"{dict(counts)}, {time.perf_counter() - started:.0f} s")
    return 1 if counts["differs"] + counts["fault"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

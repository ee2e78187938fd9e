"""Random models of one ONNX node against ONNX Runtime: compiled, simulated, compared.

    python -m benchmarks.fuzz_nodes --seeds 0:200 [--kind conv] [--target ppu-tiny]

Prints every disagreement, and how many nodes were refused by ONNX Runtime, refused by ppuc, or went to the host. Exit
code 1 when any disagreed or failed.
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

import numpy as np
import onnx

from benchmarks.fuzz import seed_range
from ppuc.compiler.driver import compile_model
from ppuc.compiler.oracle import Oracle
from ppuc.compiler.runtime import CompiledProgram
from ppuc.compiler.verification import verify_program
from ppuc.ir.errors import PpucError
from tests.node_generator import KINDS, node_of_seed


def outcome(model: onnx.ModelProto, feeds: dict[str, np.ndarray], target: str) -> tuple[str, str]:
    """What became of a model (agrees, host, refused, no oracle, differs, fault), and why."""
    try:
        Oracle(model).run(feeds)
    except PpucError as error:
        return "no oracle", str(error)
    try:
        made = compile_model(model, target=target, host=False)
    except PpucError as error:
        return "refused", str(error)
    except Exception:
        return "fault", traceback.format_exc()
    try:
        verified = verify_program(CompiledProgram(made.artifact, made.target, model), feeds)
    except Exception:
        return "fault", traceback.format_exc()
    if verified.ok:
        return "agrees", ""
    return "differs", "; ".join([*(f"{c.name}: {c.reason}" for c in verified.outputs if not c.ok), *verified.hazards])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(50), metavar="A:B")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="may be repeated; all by default")
    parser.add_argument("--target", default="ppu-tiny")
    parser.add_argument("--refused", action="store_true", help="print what ppuc refuses too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    started, counts = time.perf_counter(), Counter[str]()
    for kind in arguments.kind or KINDS:
        for seed in arguments.seeds:
            model, feeds = node_of_seed(kind, seed)
            what, why = outcome(model, feeds, arguments.target)
            counts[what] += 1
            if what in ("differs", "fault") or (what == "refused" and arguments.refused):
                node = onnx.printer.to_text(model.graph.node[0])
                shapes = ", ".join(f"{n}: {x.dtype}{list(x.shape)}" for n, x in feeds.items())
                print(f"{kind} {seed}: {what}\n  {node}\n  {shapes}\n  {why}", flush=True)
    print(f"{dict(counts)}, {time.perf_counter() - started:.0f} s")
    return 1 if counts["differs"] + counts["fault"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

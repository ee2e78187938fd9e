"""Random nodes of every op that ppuc claims: compiled, simulated, compared with ONNX Runtime and onnx.reference.

    python -m benchmarks.fuzz_ops --examples 200 [--op Conv --op com.microsoft:QGemm] [--target ppu-tiny]

Prints every node that disagrees or fails, and a line of counts for each op. Exit code 1 when any did.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuzz import seed_range
from tests.fuzz.judging import Fate, Outcome, outcome_of
from tests.fuzz.registry import Key, claimed_ops, node_of_seed
from tests.fuzz.sample import UnsuitedError


def named(key: Key) -> str:
    """`domain:op`, or the op alone when it is a standard one."""
    return ":".join(filter(None, key))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20, help="nodes of each op")
    parser.add_argument("--seeds", type=seed_range, metavar="A:B", help="these seeds instead")
    parser.add_argument("--op", action="append", metavar="[DOMAIN:]NAME", help="may be repeated; all by default")
    parser.add_argument("--target", default="ppu-tiny")
    parser.add_argument("--host", action="store_true", help="hand what the PPU has no engine for to the host")
    parser.add_argument("--show", action="append", default=[], choices=[f.value for f in Fate], help="print these too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    ops = [key for key in claimed_ops() if not arguments.op or named(key) in arguments.op]
    shown = {Fate.DIFFERS, Fate.FAULT, *(Fate(name) for name in arguments.show)}
    total, started = Counter[Fate](), time.perf_counter()
    for key in ops:
        counts = Counter[Fate]()
        for seed in arguments.seeds or range(arguments.examples):
            try:
                node = node_of_seed(key, seed)
            except UnsuitedError as error:
                print(f"{named(key)} {seed}: {error}", flush=True)
                continue
            found: Outcome = outcome_of(node, arguments.target, arguments.host)
            counts[found.fate] += 1
            if found.fate in shown:
                print(f"{named(key)} {seed}: {found.fate.value}\n  {node}\n  {found.why}", flush=True)
        total += counts
        print(f"{named(key)}: {', '.join(f'{n} {fate.value}' for fate, n in counts.items())}", flush=True)
    print(f"{', '.join(f'{n} {fate.value}' for fate, n in total.items())}, {time.perf_counter() - started:.0f} s")
    return 1 if total[Fate.DIFFERS] + total[Fate.FAULT] else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Address assignment on hard instances: `python benchmarks/allocator.py [--json] [FILE.csv ...]`.

A file has columns id, lower, upper, size (live ranges [lower, upper)) and its name contains the capacity, as in
`A.1048576.csv`: the format of MiniMalloc and its eleven published instances. Without files, instances whose solution
has no gaps are generated. CPU seconds exclude compiling the search, which happens once per computer.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ppuc.compiler.passes.memory.minimalloc import GREEDY, Plan, first_fit, plan
from ppuc.compiler.passes.memory.ranges import Range
from tests.support.live_ranges import assert_legal, dissected


def read(path: Path) -> tuple[list[Range], int]:
    """The live ranges in a file, and its capacity."""
    with path.open() as rows:
        ranges = [Range(r["id"], int(r["size"]), int(r["lower"]), int(r["upper"]) - 1) for r in csv.DictReader(rows)]
    return ranges, int(path.name.split(".")[-2])


def greedy_peak(ranges: Sequence[Range]) -> int:
    """The lowest peak of the greedy orders with unlimited capacity."""
    room = sum(r.bytes for r in ranges)
    plans = [first_fit(sorted(ranges, key=order), room) for order in GREEDY.values()]
    return min(max(offsets[r.name] + r.bytes for r in ranges) for offsets in plans)


def measure(name: str, ranges: Sequence[Range], capacity: int) -> dict[str, object]:
    """One row of the table; plans are checked."""
    begin = time.process_time()
    found = plan(ranges, capacity)
    seconds = time.process_time() - begin
    if isinstance(found, Plan):
        assert_legal(ranges, found.offsets, capacity)
    return {
        "instance": name,
        "buffers": len(ranges),
        "capacity": capacity,
        "bound": found.bound,
        "greedy": greedy_peak(ranges),
        "solved": isinstance(found, Plan),
        "placements": found.placements,
        "cpu_s": round(seconds, 2),
    }


def main() -> int:
    """Print the table; exit code 1 when an instance stays unsolved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    instances = [(p.name, *read(p)) for p in options.files]
    if not instances:
        instances = [(f"gapless-{seed}", dissected(seed, 90), 4096) for seed in range(6)]
    plan(dissected(0, 40), 4096)  # compiles the search
    rows = [measure(*instance) for instance in instances]
    if options.json:
        print(json.dumps(rows))
    else:
        print(f"{'instance':20} buffers  max live    greedy  capacity  placements   CPU-s")
        for r in rows:
            figures = f"{r['bound']:>10}{r['greedy']:>10}{r['capacity']:>10}{r['placements']:>12}{r['cpu_s']:>8}"
            print(f"{r['instance']:20}{r['buffers']:>8}{figures}{'' if r['solved'] else '  unsolved'}")
    return 0 if all(r["solved"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

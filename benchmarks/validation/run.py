"""How far predicted times are from measured ones: `python benchmarks/validation/run.py [--data DIR] [--sample N]`.

Every case is an operator that ppuc compiles for the machine's description (`ppuc targets`) and simulates for time only,
in this process. Prints each set's mean absolute error, the error of each class of cases and the worst cases; writes
`results.json` and a plot a set into FOLDER. `--data DIR` adds the sets whose files may not be part of this repository,
`--set TEXT` runs only those whose names contain it; `--target MACHINE --csv FILE [--dtype D]` measures another machine
instead. `--readme` writes the figures into README.md. Exit code 1 when a set misses its goal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.validation import closed_form
from benchmarks.validation.figures import write_figures
from benchmarks.validation.measured import HERE, SETS, Case, Measured
from benchmarks.validation.plot import scatter
from ppuc.compiler.predict.case import Case as Operator
from ppuc.compiler.predict.prediction import Predictor
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: predicted time, the tile that was chosen (of a product), how many kernels ran and what bound the first
    one. `measured_us` and `us` are differences between neighbours where a set judges increments."""

    case: Case
    us: float
    tile: tuple[int, ...]
    kernels: int
    bound_by: str
    measured_us: float

    @property
    def error(self) -> float:
        """Relative: 0.1 is 10 % too long."""
        return self.us / self.measured_us - 1

    def record(self) -> dict[str, object]:
        """As JSON-able values."""
        return {
            "case": self.case.name, "measured_us": round(self.measured_us, 3), "predicted_us": round(self.us, 3),
            "error": round(self.error, 4), "tile": list(self.tile), "kernels": self.kernels, "bound_by": self.bound_by,
        }  # fmt: skip


def predict(case: Case, predictor: Predictor) -> Outcome:
    """What `ppuc predict` says about one case."""
    row = predictor.predict(Operator(case.kind, case.dims, case.dtype), case.name)
    return Outcome(case, row["us"], tuple(row["tile"]), row["kernels"], row["bound_by"], case.us)


def increments(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What each case adds to the one before it, of those that were measured to be longer."""
    return [
        Outcome(b.case, b.us - a.us, b.tile, b.kernels, b.bound_by, b.measured_us - a.measured_us)
        for a, b in itertools.pairwise(outcomes)
        if b.case.dims[-1] > 2048
    ]


def mape(outcomes: Iterable[Outcome]) -> float:
    """Mean absolute error."""
    errors = [abs(o.error) for o in outcomes]
    return sum(errors) / len(errors)


Belongs = Callable[[tuple[int, int, int], Target], bool]

CLASSES: dict[str, Belongs] = {
    "up to 16 rows": lambda d, t: d[0] <= 16,
    "17 to 96 rows": lambda d, t: 17 <= d[0] <= 96,
    "97 to 768 rows": lambda d, t: 97 <= d[0] <= 768,
    "more rows": lambda d, t: d[0] > 768,
    "odd number of rows, above 16": lambda d, t: d[0] > 16 and d[0] % 2 == 1,
    "weights larger than l2": lambda d, t: 2 * d[1] * d[2] > t.l2.bytes,
    "last wave: 1 to 4 tiles of 128 x 256 a unit": lambda d, t: t.cu < -(-d[0] // 128) * -(-d[1] // 256) <= 4 * t.cu,
    "fewer tiles of 128 x 256 than units": lambda d, t: d[0] > 96 and -(-d[0] // 128) * -(-d[1] // 256) <= t.cu,
    "k up to 256": lambda d, t: d[2] <= 256,
    "k above 8192": lambda d, t: d[2] > 8192,
    "up to 128 columns": lambda d, t: d[1] <= 128,
}
"""Classes of products by (m, n, k); a case may belong to several."""


def classes(outcomes: Sequence[Outcome], target: Target) -> dict[str, list[Outcome]]:
    """The outcomes of each class that has any."""
    products = [o for o in outcomes if o.case.kind == "gemm"]
    found = {name: [o for o in products if belongs(o.case.dims, target)] for name, belongs in CLASSES.items()}  # type: ignore[arg-type]
    if kinds := sorted({o.case.kind for o in outcomes} - {"gemm"}):
        found |= {kind: [o for o in outcomes if o.case.kind == kind] for kind in kinds}
    return {name: mine for name, mine in found.items() if mine}


def report(measured: Measured, outcomes: Sequence[Outcome], target: Target, every: bool) -> None:
    """Print one set."""
    goal = f", goal {measured.goal:.1%}" if measured.goal else ""
    bias = sum(o.error for o in outcomes) / len(outcomes)
    print(f"\n{measured.name}: {len(outcomes)} cases, mean absolute error {mape(outcomes):.1%}{goal}, mean {bias:+.1%}")
    for name, mine in classes(outcomes, target).items():
        print(f"  {name}: {len(mine)} cases, {mape(mine):.1%}, mean {sum(o.error for o in mine) / len(mine):+.1%}")
    shown = outcomes if every else sorted(outcomes, key=lambda o: -abs(o.error))[:8]
    print(f"  {'all' if every else 'worst'} cases:  sizes, measured us, predicted us, error, tile, kernels")
    for o in shown:
        tile = " x ".join(map(str, o.tile))
        print(f"    {o.case.name:36s} {o.measured_us:9.1f} {o.us:9.1f} {o.error:+7.1%}  {tile}  {o.kernels}")


def chosen(arguments: argparse.Namespace) -> tuple[Measured, ...]:
    """The sets to run."""
    if arguments.csv is None:
        return tuple(s for s in SETS if arguments.set.lower() in s.name.lower())
    name = f"{Path(arguments.target).stem} on {Path(arguments.csv).name}"
    return (Measured(name, arguments.target, str(Path(arguments.csv).absolute()), arguments.dtype, least_us=10),)


def main() -> int:
    """Run the sets and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with further files of measurements")
    parser.add_argument("--set", default="", help="only the sets whose names contain this")
    parser.add_argument("--sample", type=int, default=0, help="so many random cases of each set (0: all)")
    parser.add_argument("--all", action="store_true", help="print every case")
    parser.add_argument("--readme", action="store_true", help="write the figures of all sets into README.md")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--target", help="another machine: a name or a .toml file")
    parser.add_argument("--csv", help="its measurements: m,n,k,latency_ms or m,n,k,us")
    parser.add_argument("--dtype", default="bf16")
    arguments = parser.parse_args()
    if (arguments.csv is None) != (arguments.target is None):
        parser.error("--target and --csv go together")
    arguments.out.mkdir(parents=True, exist_ok=True)
    folders = (HERE / "data", *([arguments.data] if arguments.data else []))
    records = {}
    for measured in chosen(arguments):
        cases = measured.cases(folders)
        if cases is None:
            print(f"\n{measured.name}: {measured.file} is in none of {', '.join(map(str, folders))}")
            continue
        if 0 < arguments.sample < len(cases) and not measured.increments:
            cases = random.Random(0).sample(cases, arguments.sample)
        records[measured.name] = run_set(measured, cases, arguments.all, arguments.out)
    if arguments.csv is None and arguments.set.lower() in closed_form.NAME.lower():
        records[closed_form.NAME] = closed_form.record()
    (arguments.out / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if arguments.readme:
        write_figures(HERE / "README.md", records)
    print(f"\nresults.json and plots: {arguments.out}")
    return int(any(r["goal"] and r["mape"] > r["goal"] for r in records.values()))


def run_set(measured: Measured, cases: Sequence[Case], every: bool, folder: Path) -> dict[str, Any]:
    """Predict and report the cases of a set; the plot goes to `folder`, and the record is what results.json holds."""
    target, begin = load_target(measured.target), time.process_time()
    predictor = Predictor(target, intervals=False)
    outcomes = [predict(case, predictor) for case in cases]
    if measured.increments:
        outcomes = increments(outcomes)
    report(measured, outcomes, target, every)
    print(f"  {time.process_time() - begin:.0f} CPU-s")
    plot = scatter(measured.name, [(o.measured_us, o.us, f"{o.case.name} {o.error:+.1%}") for o in outcomes])
    name = "".join(c if c.isalnum() else "-" for c in measured.name.lower()).replace("--", "-")
    (folder / f"{name}.svg").write_text(plot, encoding="utf-8")
    return {
        "mape": mape(outcomes),
        "goal": measured.goal,
        "given": not (HERE / "data" / measured.file).exists(),
        "classes": {name: (len(mine), round(mape(mine), 4)) for name, mine in classes(outcomes, target).items()},
        "cases": [o.record() for o in outcomes],
    }


if __name__ == "__main__":
    sys.exit(main())

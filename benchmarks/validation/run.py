"""How far predicted times are from measured ones: `python benchmarks/validation/run.py [--sample N] [--out FOLDER]`.

Every case is a product that ppuc compiles for the machine's description in `targets/` and simulates for time only.
Prints each set's mean absolute percentage error, where the model is wrong and why, and the worst cases; writes
`results.json` and a plot a set into FOLDER. `--target TOML --csv FILE [--dtype D]` measures another machine instead.
Exit code 1 when a set misses its goal.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.validation.measured import SETS, Case, Measured, product_model
from benchmarks.validation.plot import scatter
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from ppuc.targets.simulator.run import simulate

WAVE = "several tiles a unit"
FEW = "fewer tiles than units"
SKINNY = "weights streamed from device memory for few rows"
WHY = {
    WAVE: "the last wave, the store between waves and l2 traffic are modelled; how tiles drift apart is not",
    FEW: "libraries also split k over units, or pick tiles by tables of their own; neither is modelled",
    SKINNY: "libraries use special kernels and split k; the rate of device memory is that of long streams",
}
"""Where errors come from, by the kind of case."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: predicted time, the tile that was chosen and how many there were."""

    case: Case
    us: float
    tile: tuple[int, ...]
    tiles: int
    kind: str
    bound_by: str

    @property
    def error(self) -> float:
        """Relative: 0.1 is 10 % too long."""
        return self.us / self.case.us - 1

    def record(self) -> dict[str, object]:
        """As JSON-able values."""
        c = self.case
        return {
            "m": c.m, "n": c.n, "k": c.k, "measured_us": c.us, "predicted_us": round(self.us, 3),
            "error": round(self.error, 4), "tile": list(self.tile), "tiles": self.tiles, "kind": self.kind,
            "bound_by": self.bound_by,
        }  # fmt: skip


def predict(case: Case, dtype: str, target: Target) -> Outcome:
    """Compile and simulate one case."""
    compiled = compile_model(product_model(case, dtype), CompileOptions(target))
    profile = simulate(compiled.artifact.program, compiled.artifact.vectors, target, {}, None).profile
    tile = next(b.shape for b in compiled.module.kernels[0].buffers if b.name == "c")
    rows, cols = tile if len(tile) == 2 else (1, tile[0])
    tiles = -(-case.m // rows) * -(-case.n // cols)
    kind = SKINNY if case.m <= 96 else WAVE if tiles > target.cu else FEW
    return Outcome(case, profile.sustained_seconds * 1e6, tile, tiles, kind, profile.kernels[0].bound_by)


def mape(outcomes: Iterable[Outcome]) -> float:
    """Mean absolute error."""
    errors = [abs(o.error) for o in outcomes]
    return sum(errors) / len(errors)


def report(measured: Measured, outcomes: Sequence[Outcome], every: bool) -> None:
    """Print one set."""
    goal = f", goal {measured.goal:.0%}" if measured.goal else ""
    print(f"\n{measured.name}: {len(outcomes)} cases, mean absolute error {mape(outcomes):.1%}{goal}")
    for kind in WHY:
        mine = [o for o in outcomes if o.kind == kind]
        if mine:
            bias = sum(o.error for o in mine) / len(mine)
            print(f"  {kind}: {len(mine)} cases, {mape(mine):.1%}, mean {bias:+.1%}\n    {WHY[kind]}")
    shown = outcomes if every else sorted(outcomes, key=lambda o: -abs(o.error))[:8]
    print(f"  {'all' if every else 'worst'} cases:  m x n x k, measured us, predicted us, error, tile")
    for o in shown:
        tile = " x ".join(map(str, o.tile))
        print(f"    {o.case.name:20s} {o.case.us:9.1f} {o.us:9.1f} {o.error:+7.1%}  {tile}")


def chosen(arguments: argparse.Namespace) -> tuple[Measured, ...]:
    """The sets to run."""
    if arguments.csv is None:
        return SETS
    target = Path(arguments.target)
    return (Measured(f"{target.stem} on {arguments.csv}", target, Path(arguments.csv), arguments.dtype, least_us=10),)


def main() -> int:
    """Run the sets and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="so many random cases of each set (0: all)")
    parser.add_argument("--all", action="store_true", help="print every case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--target", help="description of another machine")
    parser.add_argument("--csv", help="its measurements: m,n,k,latency_ms")
    parser.add_argument("--dtype", default="bf16")
    arguments = parser.parse_args()
    if (arguments.csv is None) != (arguments.target is None):
        parser.error("--target and --csv go together")
    arguments.out.mkdir(parents=True, exist_ok=True)
    records, missed = {}, False
    for measured in chosen(arguments):
        target = load_target(measured.target)
        cases = measured.cases()
        if 0 < arguments.sample < len(cases):
            cases = random.Random(0).sample(cases, arguments.sample)
        outcomes = [predict(case, measured.dtype, target) for case in cases]
        report(measured, outcomes, arguments.all)
        records[measured.name] = {"mape": mape(outcomes), "cases": [o.record() for o in outcomes]}
        missed = missed or (bool(measured.goal) and mape(outcomes) > measured.goal)
        plot = scatter(measured.name, [(o.case.us, o.us, f"{o.case.name} {o.error:+.1%}") for o in outcomes])
        (arguments.out / f"{measured.target.stem}.svg").write_text(plot, encoding="utf-8")
    (arguments.out / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(f"\nresults.json and plots: {arguments.out}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

"""Sweeps of target numbers: a machine's peaks, or a model's time, for every combination of values.

Invariant: an .onnx model is recompiled for every combination; a .ppu runs unchanged on all of them. Rows follow the
order of the values, with the last key varying fastest.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.profile import profile_record
from ppuc.ir.errors import Diagnostic, PpucError, UsageError, counted
from ppuc.ir.files import write_file
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import Target, leaf_of, override

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.options import Progress
    from ppuc.compiler.program.compiled import CompiledProgram

MOST = 200
"""Maximum values of one key."""

MOST_MACHINES = 2000
"""Maximum combinations of one sweep."""


def sweep_values(text: str) -> tuple[str, list[str]]:
    """The key and the values of `KEY=FROM:TO:STEP`, TO included when a step meets it, or of `KEY=A,B,C`. Raises
    UsageError."""
    key, _, given = text.partition("=")
    values = [value.strip() for value in given.split(",")] if ":" not in given else _range(given)
    if not key or not 1 <= len(values) <= MOST or not all(values) or len(set(values)) < len(values):
        raise UsageError.of(
            "--sweep",
            f"does not give 1 to {MOST} distinct values of a key",
            got=text,
            expected="KEY=FROM:TO:STEP or KEY=A,B,C, as in hbm.gbs=2000:4000:500",
        )
    return key, values


def _range(span: str) -> list[str]:
    """The values of `FROM:TO:STEP`; empty for a malformed range or too many values."""
    try:
        first, last, step = (Decimal(part) for part in span.split(":"))
        count = int((last - first) / step) + 1
    except (ValueError, ArithmeticError, InvalidOperation):
        return []
    return [format((first + i * step).normalize(), "f") for i in range(count)] if count <= MOST else []


def sweep(
    target: Target, texts: Sequence[str], model: Callable[[Target], CompiledProgram] | None, progress: Progress
) -> dict[str, Any]:
    """The sweep as JSON-able values: for every combination of values the machine's peaks and, with a `model` (which
    makes its program for a target), its time. Raises UsageError and TargetError."""
    asked = [sweep_values(text) for text in texts]
    count = math.prod(len(values) for _, values in asked)
    if count > MOST_MACHINES:
        sizes = " x ".join(str(len(values)) for _, values in asked)
        raise UsageError.of("--sweep", "has too many combinations", got=f"{sizes} = {count:,}", expected=MOST_MACHINES)
    leaves = [leaf_of(target, key, f"--sweep {key}") for key, _ in asked]
    paths = [leaf.path for leaf in leaves]
    if len(set(paths)) < len(paths):
        raise UsageError.of("--sweep", "names a number twice", got=", ".join(paths))
    base = _row([leaf.value for leaf in leaves], target, model)
    rows = []
    for i, values in enumerate(itertools.product(*(values for _, values in asked))):
        assignments = [f"{path}={value}" for path, value in zip(paths, values, strict=True)]
        progress(" ".join(assignments), i, count)
        try:
            machine = override(target, *assignments)
            rows.append(_row([leaf_of(machine, path, "--sweep").value for path in paths], machine, model))
        except PpucError as error:
            raise type(error)([_shortened(error.diagnostics, f"--sweep {' '.join(assignments)}")]) from None
    keys = [{"key": leaf.path, "unit": leaf.unit, "mark": leaf.mark} for leaf in leaves]
    return {"name": target.name, "hash": target.hash, "keys": keys, "base": base, "rows": rows}


def _shortened(diagnostics: Sequence[Diagnostic], where: str) -> Diagnostic:
    """The first of what is wrong with one machine of a sweep, and how much more there is."""
    first, *others = diagnostics
    place = first.where.removeprefix("--set ")
    own = f"{where}: {place.removeprefix(where.removeprefix('--sweep ')).removeprefix(': ')}".removesuffix(": ")
    got = f"{first.got}, and {counted(len(others), 'problem')} more" if others else first.got
    return replace(first, where=own, got=got)


def rates(machine: Target) -> dict[str, Any]:
    """Peaks by dtype (TOPS), sustained rates of hbm and l2 (GB/s), and the operations a byte from hbm at which both
    take the same time."""
    sustained = hbm_bytes_per_clk(machine) / machine.clk_ns
    peaks = {dtype: machine.peak_tops(dtype) for dtype in machine.tensor.ii_clk}
    return {
        "peak_tops": peaks,
        "hbm_gbs": sustained,
        "l2_gbs": machine.l2.bytes_per_clk_total / machine.clk_ns,
        "ridge_ops_per_byte": {dtype: 1e3 * peak / sustained for dtype, peak in peaks.items()},
    }


def _row(values: Sequence[Any], machine: Target, model: Callable[[Target], CompiledProgram] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"values": list(values), **rates(machine)}
    if model is None:
        return row
    program = model(machine)
    record = profile_record(program.time().profile, program.target, program.nodes, program.artifact.program)
    parts = record["waterfall"]["parts"]
    return row | {
        "cycles": record["cycles"],
        "seconds": record["seconds"],
        "joules": record["energy_joules"]["total"],
        "efficiency": record["waterfall"]["efficiency"],
        "largest_part": max(parts, key=lambda p: p["cycles"])["part"] if record["waterfall"]["total_cycles"] else None,
    }


# -- output ------------------------------------------------------------------------------------------------------------

_MACHINE = ("bf16 TOPS", "f32 TOPS", "hbm GB/s", "l2 GB/s", "bf16 op/B", "f32 op/B")
_TIMED = ("time", "change", "energy", "efficiency", "largest part")


def show(out: Console, record: dict[str, Any]) -> None:
    """Print the sweep; the unchanged target comes last."""
    from ppuc.compiler.report.tables import table

    base, keys = record["base"], record["keys"]
    own = zip(keys, base["values"], strict=True)
    numbers = ", ".join(f"{k['key']} in {k['unit']}, {value} in the target ({k['mark']})" for k, value in own)
    out.print(f"{record['name']}: {numbers}")
    timed = "seconds" in base
    cells = [(*row["values"], *(_timed(row, base) if timed else _machine(row))) for row in (*record["rows"], base)]
    names = [k["key"] for k in keys] if len(keys) > 1 else ["value"]
    last = cells.pop()
    cells.append((f"{last[0]} *", *last[1:]))
    left = (len(keys) + len(_TIMED) - 1,) if timed else ()
    table(out, "", (*names, *(_TIMED if timed else _MACHINE)), cells, left=left)
    out.print("* as the target has it")


def _machine(row: dict[str, Any]) -> tuple[object, ...]:
    peaks, ridges = (
        [f"{row[k].get(d, 0.0):.4g}" for d in ("bf16", "f32")] for k in ("peak_tops", "ridge_ops_per_byte")
    )
    return (*peaks, f"{row['hbm_gbs']:,.0f}", f"{row['l2_gbs']:,.0f}", *ridges)


def _timed(row: dict[str, Any], base: dict[str, Any]) -> tuple[object, ...]:
    from ppuc.compiler.report.tables import duration, percent, quantity

    change = f"{row['seconds'] / base['seconds'] - 1:+.1%}" if base["seconds"] else "-"
    joules = quantity(row["joules"], "J")
    return duration(row["seconds"]), change, joules, percent(row["efficiency"]), row["largest_part"] or "-"


def write_csv(record: dict[str, Any], path: Path) -> None:
    """Write the rows as a table: a column for each key, then those of the machine and, with a model, those of its run
    (time in seconds, energy in joules). Raises UsageError when the file cannot be written."""
    flat = [_flat(row, record["keys"]) for row in record["rows"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_file(path, text.getvalue().encode())


def _flat(row: dict[str, Any], keys: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A flattened row: nested values such as `peak_tops.bf16` become columns."""
    flat = {key["key"]: value for key, value in zip(keys, row["values"], strict=True)}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": number for inner, number in value.items()}
        elif name != "values":
            flat[name] = value
    return flat


def write_plot(record: dict[str, Any], path: Path) -> None:
    """Draw the time of the model over the first key, a line for each combination of the others. Raises UsageError."""
    from ppuc.compiler.report.charts import MOST_SERIES, line_chart, write_chart

    first, *others = record["keys"]
    if not all(isinstance(row["values"][0], int | float) for row in record["rows"]):
        raise UsageError.of("--plot", "needs numbers along its first key", got=first["key"], hint="give it later")
    x, y, series = f"{first['key']} ({first['unit']})", "time (us)", ", ".join(key["key"] for key in others)
    rows = [
        {x: row["values"][0], y: 1e6 * row["seconds"], series: ", ".join(map(str, row["values"][1:]))}
        for row in record["rows"]
    ]
    lines = len({row[series] for row in rows})
    if lines > MOST_SERIES:
        hint = "give the key with the most values first, or fewer values"
        raise UsageError.of("--plot", "has too many lines to distinguish", got=lines, expected=MOST_SERIES, hint=hint)
    write_chart(line_chart(f"Time on {record['name']} over {first['key']}", rows, x, y, series or None), path)

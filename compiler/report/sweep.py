"""How a machine, or a model on it, depends on one number of the target.

Invariant: a model that is given as .onnx is compiled anew for every value, as it would be for such a machine; a .ppu is
the same program at every value. Rows come in the order of the values.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.profile import profile_record
from ppuc.ir.errors import UsageError
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import Leaf, Target, override

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.options import Progress
    from ppuc.compiler.program.compiled import CompiledProgram

MOST = 200
"""Values of one sweep."""


def sweep_values(text: str) -> tuple[str, list[str]]:
    """The key and the values of `KEY=FROM:TO:STEP`, TO included when a step meets it. Raises UsageError."""
    key, _, span = text.partition("=")
    try:
        first, last, step = (Decimal(part) for part in span.split(":"))
        count = int((last - first) / step) + 1
    except (ValueError, ArithmeticError, InvalidOperation):
        count = 0
    if not key or not 1 <= count <= MOST:
        raise UsageError.of(
            "--sweep",
            f"is not a range of 1 to {MOST} values",
            got=text,
            expected="KEY=FROM:TO:STEP, as in hbm.gbs=2000:4000:500",
        )
    return key, [format((first + i * step).normalize(), "f") for i in range(count)]


def sweep(
    target: Target, text: str, model: Callable[[Target], CompiledProgram] | None, progress: Progress
) -> dict[str, Any]:
    """The sweep as JSON-able values: for every value what the machine can do and, with a `model` (which makes its
    program for a target), the time that it takes. Raises UsageError and TargetError."""
    key, values = sweep_values(text)
    machines = [(value, override(target, f"{key}={value}")) for value in values]
    leaf = _leaf(target, machines[0][1], key)
    own = next(known.value for known in target.leaves() if known.path == leaf.path)
    base = _row(own, target, model)
    rows = []
    for i, (value, machine) in enumerate(machines):
        progress(f"{leaf.path}={value}", i, len(machines))
        rows.append(_row(_leaf(target, machine, key).value, machine, model))
    return {
        "name": target.name,
        "hash": target.hash,
        "key": leaf.path,
        "unit": leaf.unit,
        "mark": leaf.mark,
        "base": base,
        "rows": rows,
    }


def _leaf(target: Target, changed: Target, key: str) -> Leaf:
    """The changed machine's number that `key` means, with the mark that it has in `target`."""
    found = next(
        (leaf for leaf in changed.leaves() if leaf.mark == "D" and leaf.source.startswith("override of ")), None
    )
    before = next((leaf for leaf in target.leaves() if found is not None and leaf.path == found.path), None)
    if found is None or before is None:
        raise UsageError.of("--sweep", "names no number of the target", got=key)
    return Leaf(found.path, found.value, found.unit, before.mark, before.source)


def _row(value: Any, machine: Target, model: Callable[[Target], CompiledProgram] | None) -> dict[str, Any]:
    sustained = hbm_bytes_per_clk(machine) / machine.clk_ns
    peaks = {dtype: machine.peak_tops(dtype) for dtype in machine.tensor.ii_clk}
    row: dict[str, Any] = {
        "value": value,
        "peak_tops": peaks,
        "hbm_gbs": sustained,
        "l2_gbs": machine.l2.bytes_per_clk_total / machine.clk_ns,
        "ridge_ops_per_byte": {dtype: 1e3 * peak / sustained for dtype, peak in peaks.items()},
    }
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


def show(out: Console, record: dict[str, Any]) -> None:
    """Print the sweep; the target's own value is marked."""
    from ppuc.compiler.report.tables import table

    base = record["base"]
    out.print(
        f"{record['name']}: {record['key']} in {record['unit']}, {base['value']} in the target ({record['mark']})"
    )
    timed = "seconds" in base
    columns = ("value", "time", "change", "energy", "efficiency", "largest part") if timed else _MACHINE
    rows = [_timed(row, base) if timed else _machine(row) for row in record["rows"]]
    own = _timed(base, base) if timed else _machine(base)
    rows.append((f"{own[0]} *", *own[1:]))
    table(out, "", columns, rows, left=(5,) if timed else ())
    out.print("* as the target has it")


_MACHINE = ("value", "bf16 TOPS", "f32 TOPS", "hbm GB/s", "l2 GB/s", "bf16 op/B", "f32 op/B")


def _machine(row: dict[str, Any]) -> tuple[object, ...]:
    peaks, ridges = (
        [f"{row[k].get(d, 0.0):.4g}" for d in ("bf16", "f32")] for k in ("peak_tops", "ridge_ops_per_byte")
    )
    return (row["value"], *peaks, f"{row['hbm_gbs']:,.0f}", f"{row['l2_gbs']:,.0f}", *ridges)


def _timed(row: dict[str, Any], base: dict[str, Any]) -> tuple[object, ...]:
    from ppuc.compiler.report.tables import duration, percent, quantity

    change = f"{row['seconds'] / base['seconds'] - 1:+.1%}" if base["seconds"] else "-"
    joules = quantity(row["joules"], "J")
    return (
        row["value"],
        duration(row["seconds"]),
        change,
        joules,
        percent(row["efficiency"]),
        row["largest_part"] or "-",
    )

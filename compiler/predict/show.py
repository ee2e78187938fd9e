"""Predictions as tables and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.tables import duration, percent, quantity, table

if TYPE_CHECKING:
    from rich.console import Console


def show(out: Console, record: dict[str, Any]) -> None:
    """Print one row per case, and errors of measured ones."""
    measured = record["accuracy"] is not None
    columns = ["case", "type", "time", "interval", "bound by", "tile", "kernels", "hbm", "l2", "roofline"]
    rows = [_cells(row) + ((_measured(row)) if measured else ()) for row in record["rows"]]
    out.print(f"{record['target']}: time of a run that repeats without pause")
    table(out, "", [*columns, *(("measured", "error") if measured else ())], rows, left=(0, 1, 4, 5))
    if measured:
        _show_accuracy(out, record["accuracy"])


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    interval = row["interval_us"]
    return (
        row["case"],
        row["dtype"],
        duration(row["us"] / 1e6),
        "-" if interval is None else f"{interval[0] / row['us'] - 1:+.0%} {interval[1] / row['us'] - 1:+.0%}",
        row["bound_by"],
        " x ".join(map(str, row["tile"])) or "-",
        row["kernels"],
        quantity(row["hbm_bytes"], "B"),
        quantity(row["l2_bytes"], "B"),
        percent(row["roofline"]),
    )


def _measured(row: dict[str, Any]) -> tuple[object, ...]:
    if row["measured_us"] is None:
        return "-", "-"
    return duration(row["measured_us"] / 1e6), f"{row['error']:+.1%}"


def _show_accuracy(out: Console, record: dict[str, Any]) -> None:
    sizes = ("mean_abs", "p50", "p90", "max")
    rows = [
        (row.get("class", "all"), row["rows"], *(percent(row[key]) for key in sizes), f"{row['mean']:+.1%}")
        for row in (*record["classes"], record)
    ]
    out.print()
    columns = ("class", "rows", "mean", "median", "90 %", "largest", "bias")
    table(out, "errors against the measurements", columns, rows)


def write_plot(record: dict[str, Any], path: Path) -> None:
    """Plot predicted against measured times, coloured by class. Raises UsageError."""
    from ppuc.compiler.report.charts import scatter_chart, write_chart

    rows = [
        {"measured (us)": r["measured_us"], "predicted (us)": r["us"], "class": r["class"], "case": r["case"]}
        for r in record["rows"]
        if r["measured_us"] is not None
    ]
    title = f"{record['target']}: mean absolute error {record['accuracy']['mean_abs']:.1%}"
    write_chart(scatter_chart(title, rows, "measured (us)", "predicted (us)", "class"), path)

"""Prints a profile's record as tables: summary, waterfall, kernels, ONNX nodes.

Invariant: every number shown is in the record; tables fit 100 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ppuc.compiler.report.host import host_time
from ppuc.compiler.report.tables import duration, percent, quantity, shortened, table
from ppuc.ir.errors import counted
from ppuc.targets.simulator.time_breakdown import PARTS

_ENGINES = ("tensor", "vector", "l2", "hbm")


def profile_tables(out: Console, record: dict[str, Any], top: int | None) -> None:
    """Print the run's summary and waterfall, and a table per kernel and per ONNX node (the `top` costliest; all for
    None)."""
    if record["cycles"]:
        _summary(out, record)
    else:
        out.print(f"{record['target']}: nothing ran on the PPU, so there is no time to simulate")
    if record.get("host_measured_seconds") is not None:
        out.print(host_time(record["host_measured_seconds"]))
    if record.get("interval") and record["cycles"]:
        _interval(out, record)
    if record.get("waterfall") and record["waterfall"]["total_cycles"]:
        _waterfall(out, record)
    if record["kernels"]:
        _use(out, record, top)
        _times(out, record, top)
        _nodes(out, record, top)
    for hazard in record["hazards"]:
        out.print(hazard)


def _summary(out: Console, record: dict[str, Any]) -> None:
    joules = record["energy_joules"]["total"]
    power = record["power"]
    out.print(
        f"{record['target']}: {duration(record['seconds'])}, {record['cycles']:,.0f} cycles at "
        f"{record['clock_ghz']:g} GHz, {quantity(record['instructions'])} instructions"
    )
    out.print(f"energy: {quantity(joules, 'J')}, {power['watts']:.3g} W on average")
    if power["throttled_seconds"] > 0:
        slower = power["sustained_seconds"] / record["seconds"]
        out.print(
            f"  repeated without pause, power limits stretch it to {duration(power['sustained_seconds'])} "
            f"({slower - 1:+.0%}) at {power['temperature_c']:.0f} C"
        )
    out.print(
        "use of the chip's peak: "
        + ", ".join(f"{engine} {percent(record['utilisation'][engine])}" for engine in _ENGINES)
    )


def _interval(out: Console, record: dict[str, Any]) -> None:
    """The interval, and the groups of numbers with the largest effect."""
    found = record["interval"]
    if "skipped" in found:
        out.print(f"interval: not computed ({found['skipped']})")
        return
    base = record["seconds"]
    low, high = found["seconds"]
    joules = " to ".join(quantity(j, "J") for j in found["joules"])
    off = ", ".join(f"{mark} by {100 * relative:g}%" for mark, relative in found["relative"].items())
    out.print(f"interval: {duration(low)} to {duration(high)}, {joules} (numbers off: {off}), mostly from")
    rows = []
    for group in found["groups"][:3]:
        below, above = (f"{s / base - 1:+.1%}" for s in group["seconds"])
        rows.append((f"  {group['group']}", below, above, ", ".join(n["key"] for n in group["numbers"])))
    table(out, "", ("", "", "", ""), rows, left=(0, 3), header=False)


def _waterfall(out: Console, record: dict[str, Any]) -> None:
    found = record["waterfall"]
    rows = []
    for part in found["parts"]:
        cells = (*_time(part["cycles"], record), percent(part["share"]))
        rows.append((part["part"], part["owner"], *cells, part["meaning"]))
        for cause, cycles in part.get("causes", {}).items():
            cells = (*_time(cycles, record), percent(cycles / found["total_cycles"]))
            rows.append((f"  {cause}", "", *cells, _CAUSES[cause]))
    rows.append(("total", "", *_time(found["total_cycles"], record), "100.0%", ""))
    title = f"\nefficiency {100 * found['efficiency']:.2g}%: where the time goes, and whose it is"
    table(out, title, ("part", "whose", "cycles", "time", "share", "what"), rows, left=(0, 1, 5))


_CAUSES = {
    "latency": "memory latency and issue",
    "sync": "waiting for other kernels",
    "idle": "units that wait for the last one",
    "overlap": "engines and memories taking turns",
}


def _time(cycles: float, record: dict[str, Any]) -> tuple[str, str]:
    return f"{cycles:,.0f}", duration(cycles / (record["clock_ghz"] * 1e9)) if cycles >= 0.5 else "0"


def _use(out: Console, record: dict[str, Any], top: int | None) -> None:
    """Kernels: bottlenecks and utilisation of the chip."""
    shown = costliest(record["kernels"], top)
    columns = ("kernel", "bound by", "cycles", "share", *_ENGINES, "l2 bytes", "hbm bytes")
    rows = [
        (
            shortened(row["kernel"], max(16, out.width - 79)),
            row["bound_by"],
            f"{row['cycles']:,.0f}",
            percent(row["share"]),
            *(percent(row["utilisation"][e]) for e in _ENGINES),
            *_moved(row),
        )
        for row in shown
    ]
    title = _title("kernels: what bounds them, and use of the chip's peak", shown, record["kernels"])
    table(out, title, columns, rows, left=(0, 1))


def _times(out: Console, record: dict[str, Any], top: int | None) -> None:
    """Kernels: breakdown of their time."""
    shown = costliest(record["kernels"], top)
    limit = max(20, out.width - 73)
    rows = [(shortened(r["kernel"], limit), r["units"], f"{r['cycles']:,.0f}", *_split(r)) for r in shown]
    everything = {"cycles": sum(row["cycles"] for row in record["kernels"]), "split": record["split"]}
    rows.append(
        (f"all {counted(len(record['kernels']), 'kernel')}", "", f"{everything['cycles']:,.0f}", *_split(everything))
    )
    title = _title("kernels: where their time goes; l1, l2 and hbm are bandwidth", shown, record["kernels"])
    table(out, title, ("kernel", "units", "cycles", *PARTS), rows)


def _split(row: dict[str, Any]) -> list[str]:
    cycles = row["cycles"]
    return [f"{100 * row['split'][part] / cycles:.0f}%" if cycles else "-" for part in PARTS]


def _nodes(out: Console, record: dict[str, Any], top: int | None) -> None:
    shown = costliest(record["nodes"], top)
    room = max(34, out.width - 64)
    columns = ("node", "fused with it", "bound by", "cycles", "share", *_ENGINES)
    rows = [
        (
            shortened(row["node"], room * 3 // 5),
            _names(row["fused"], room * 2 // 5),
            row["bound_by"],
            f"{row['cycles']:,.0f}",
            percent(row["share"]),
            *(percent(row["utilisation"][e]) for e in _ENGINES),
        )
        for row in shown
    ]
    table(out, _title("ONNX nodes", shown, record["nodes"]), columns, rows, left=(0, 1, 2))


def _names(names: Sequence[str], limit: int) -> str:
    """The first name and the number of others."""
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return shortened(names[0], limit - len(more)) + more if names else ""


def _moved(row: dict[str, Any]) -> list[str]:
    return [quantity(row["read_bytes"][s] + row["write_bytes"][s], "B") for s in ("l2", "hbm")]


def costliest(rows: list[dict[str, Any]], top: int | None) -> list[dict[str, Any]]:
    """The `top` rows by cycles, costliest first; all in their order when `top` is None."""
    return rows if top is None else sorted(rows, key=lambda r: -r["cycles"])[:top]


def _title(what: str, shown: Sequence[object], rows: Sequence[object]) -> str:
    return f"\n{what}" if len(shown) == len(rows) else f"\n{what} (the costliest {len(shown)} of {len(rows)})"

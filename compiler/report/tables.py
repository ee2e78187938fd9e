"""Records as tables for people. Every function takes a console and a record that also exists as JSON.

Invariant: nothing is computed here but units and widths; names from models are printed as they are, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 160
"""Columns when the output is not a terminal, so that logs and pipes get whole lines."""


def console(stream: IO[str]) -> Console:
    """A console on `stream`, as wide as the terminal or PIPE_WIDTH."""
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(
    out: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], left: Sequence[int] = (0,)
) -> None:
    """Print a table; the columns numbered in `left` are text, the others numbers."""
    body = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        body.add_column(name, justify="left" if i in left else "right", overflow="fold" if i in left else "ellipsis")
    for row in rows:
        body.add_row(*(Text(str(cell)) for cell in row))
    if title:
        out.print(Text(title, style="bold"))
    with out.capture() as drawn:
        out.print(body)
    out.file.writelines(line.rstrip() + "\n" for line in drawn.get().splitlines())


def quantity(number: float, unit: str = "") -> str:
    """A number with three significant digits and a decimal prefix: `1.53 M`, `820 k`."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: `12.3 us`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns"


def percent(share: float) -> str:
    """A share of 1 as percent."""
    return f"{100 * share:.1f}%"


def profile_tables(out: Console, record: dict[str, Any], top: int | None) -> None:
    """The run's summary, and a table per kernel and per ONNX node (the `top` costliest; all when None)."""
    use = record["utilisation"]
    out.print(
        f"{record['target']}: {duration(record['seconds'])}, {record['cycles']:,.0f} cycles at "
        f"{record['clock_ghz']:g} GHz (launch {record['launch_cycles']:,.0f}), "
        f"{quantity(record['instructions'])} instructions, {record['energy_joules']['total'] * 1e3:.3g} mJ"
    )
    out.print("chip utilisation: " + ", ".join(f"{engine} {percent(share)}" for engine, share in use.items()))
    shown = _costliest(record["kernels"], top)
    rows = [(row["kernel"], row["bound_by"], *_cells(row)) for row in shown]
    table(out, _title("kernels", shown, record["kernels"]), ("kernel", "bound by", *_COLUMNS), rows, left=(0, 1))
    shown = _costliest(record["nodes"], top)
    rows = [(row["node"], _names(row["fused"]), row["bound_by"], *_cells(row)) for row in shown]
    columns = ("node", "fused with it", "bound by", *_COLUMNS)
    table(out, _title("ONNX nodes", shown, record["nodes"]), columns, rows, left=(0, 1, 2))
    for hazard in record["hazards"]:
        out.print(hazard)


_COLUMNS = ("cycles", "share", "tensor", "vector", "hbm", "hbm bytes", "l2 bytes")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    use = row["utilisation"]
    moved = [quantity(row["read_bytes"][s] + row["write_bytes"][s], "B") for s in ("hbm", "l2")]
    shares = (percent(row["share"]), percent(use["tensor"]), percent(use["vector"]), percent(use["hbm"]))
    return (f"{row['cycles']:,.0f}", *shares, *moved)


def _costliest(rows: list[dict[str, Any]], top: int | None) -> list[dict[str, Any]]:
    return rows if top is None else sorted(rows, key=lambda r: -r["cycles"])[:top]


def _title(what: str, shown: Sequence[object], rows: Sequence[object]) -> str:
    return f"\n{what}" if len(shown) == len(rows) else f"\n{what}: the costliest {len(shown)} of {len(rows)}"


def _names(names: Sequence[str], limit: int = 3) -> str:
    more = f" +{len(names) - limit}" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def comparison_table(out: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Tensors against the oracle."""
    columns = ("tensor", "type", "verdict", "max abs", "max rel", "cosine", "SQNR dB", "allowed rel")
    cells = (
        (
            r["name"],
            r["type"],
            "ok" if r["ok"] else "WRONG",
            f"{r['max_abs']:.3g}",
            f"{r['max_rel']:.3g}",
            f"{r['cosine']:.8f}",
            "exact" if r["sqnr_db"] >= 999 else f"{r['sqnr_db']:.1f}",
            f"{r['tolerance']:.2g}",
        )
        for r in rows
    )
    table(out, title, columns, cells, left=(0, 1, 2))
    for row in rows:
        if not row["ok"]:
            out.print(f"  {row['name']}: {row['reason']}")
        if row["sensitivity"] is not None:
            growth = f"{row['sensitivity']:.3g}"
            out.print(f"  {row['name']}: a relative change of the weights grows {growth} times in the model itself")

"""Two runs side by side: as tables, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.tables import duration, quantity, shortened
from ppuc.compiler.validation.compare import sqnr_text

if TYPE_CHECKING:
    from rich.console import Console

_UNITS = {"seconds": "s", "host_seconds": "s", "joules": "J", "hbm_bytes": "B", "l2_bytes": "B"}

Section = tuple[str, tuple[str, ...], list[tuple[str, ...]], tuple[int, ...]]
"""Title, columns, rows, and the columns that hold text."""


def sections(record: dict[str, Any], top: int | None) -> Iterator[Section]:
    """The tables of a comparison that have rows; `top` rows of nodes and kernels (None: all)."""
    if record["totals"]:
        totals = [_total(name, r) for name, r in record["totals"].items() if r["a"] or r["b"]]
        yield "the whole run", ("", "a", "b", "b / a"), totals, (0,)
    if record["waterfall"]:
        parts = [r for r in record["waterfall"] if r["a"] or r["b"]]
        rows = [(r["part"], r["owner"], *_times(r), _share(r["b"] - r["a"], record)) for r in parts]
        yield "where the time goes", ("part", "whose", "a", "b", "b / a", "of the change"), rows, (0, 1)
    for what, key in (("nodes", "node"), ("kernels", "kernel")):
        rows = [
            (shortened(r[key], 44), *_times(r), _signed(r["change"]), _bounds(r["bound_by"]))
            for r in record[what][:top]
            if r["change"]
        ]
        if rows:
            yield f"{what} whose time changed most", (key, "a", "b", "b / a", "change", "bound by"), rows, (0, 5)
    if record["outputs"]:
        rows = [(r["output"], *(sqnr_text(x) for x in r["sqnr_db"]), *r["verdict"]) for r in record["outputs"]]
        yield "accuracy, dB", ("output", "a", "b", "verdict a", "verdict b"), rows, (0, 3, 4)
    if record["passes"]:
        rows = [(f"{r['pass']} ({r['time']})", *_step(r["a"]), *_step(r["b"])) for r in record["passes"]]
        columns = ("step (time)", "kernels a", "expected clk a", "kernels b", "expected clk b")
        yield "steps after which kernels or expected cycles differ", columns, rows, (0,)


def _label(side: dict[str, Any]) -> str:
    version = f", ppuc {side['ppuc']}" if side["ppuc"] else ""
    return f"{side['model']} on {side['target']}, {side['precision'] or 'unknown precision'}{version}"


def _total(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    unit = _UNITS.get(name, "")

    def text(number: float | None) -> str:
        if number is None:
            return "-"
        return duration(number) if unit == "s" and number else quantity(number, unit) if unit else f"{number:,.0f}"

    return name.removesuffix("_bytes").replace("_", " "), text(row["a"]), text(row["b"]), _ratio(row["ratio"])


def _times(row: dict[str, Any]) -> tuple[str, ...]:
    return *(duration(row[side]) if row[side] else "-" for side in ("a", "b")), _ratio(row["ratio"])


def _ratio(ratio: float | None) -> str:
    return f"{ratio:.3f}" if ratio is not None else "-"


def _share(change: float, record: dict[str, Any]) -> str:
    seconds = record["totals"]["seconds"]
    whole = seconds["b"] - seconds["a"]
    return f"{change / whole:.0%}" if whole and change else "-"


def _signed(seconds: float) -> str:
    return ("+" if seconds > 0 else "-") + duration(abs(seconds))


def _bounds(bounds: Sequence[str | None]) -> str:
    a, b = bounds
    return a or b or "" if a == b or None in bounds else f"{a} -> {b}"


def _step(step: dict[str, Any] | None) -> tuple[str, str]:
    if step is None:
        return "-", "-"
    return str(step["kernels"]), f"{step['expected_clk']:,.0f}" if step["expected_clk"] is not None else "-"


def show(out: Console, record: dict[str, Any], top: int | None) -> None:
    """Print a comparison, and the checks that it was given."""
    from ppuc.compiler.report.tables import table

    for side in ("a", "b"):
        out.print(f"{side}: {_label(record[side])}")
    for title, columns, rows, left in sections(record, top):
        table(out, f"\n{title}", columns, rows, left=left)
    for check in record["checks"]:
        out.print(f"\n{'ok' if check['ok'] else 'FAILED'} {check['rule']} {check['subject']}: {check['text']}")


def markdown(record: dict[str, Any], top: int | None) -> str:
    """A comparison as Markdown, for a comment on a change."""
    lines = [f"- {side}: {_cell(_label(record[side]))}" for side in ("a", "b")]
    for check in record["checks"]:
        verdict = "ok" if check["ok"] else "**failed**"
        lines.append(f"- {verdict}: {check['rule']} {_cell(check['subject'])}: {_cell(check['text'])}")
    for title, columns, rows, left in sections(record, top):
        lines += ["", f"### {title}", "", *markdown_table(columns, rows, left)]
    return "\n".join(lines) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[int]) -> list[str]:
    """The lines of a table; columns but those in `left` are aligned to the right."""
    rule = ("---" if i in left else "--:" for i in range(len(columns)))
    return [_line(columns), _line(rule), *(_line(map(_cell, row)) for row in rows)]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def csv_text(record: dict[str, Any]) -> str:
    """Totals, parts of the waterfall, nodes and kernels, one a line: what, name, a, b, ratio; seconds unless the name
    says otherwise."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("what", "name", "a", "b", "ratio"))
    writer.writerows(("total", name, r["a"], r["b"], r["ratio"]) for name, r in record["totals"].items())
    for what, rows, key in (
        ("part", record["waterfall"], "part"),
        ("node", record["nodes"], "node"),
        ("kernel", record["kernels"], "kernel"),
    ):
        writer.writerows((what, r[key], r["a"], r["b"], r["ratio"]) for r in rows)
    return out.getvalue()

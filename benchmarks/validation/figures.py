"""The table of errors in README.md.

Invariant: only what stands between the two marks is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: written by run.py --readme -->", "<!-- end of figures -->"


def write_figures(readme: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the table of `readme` by that of `records`: per set the results of run.py (`mape`, `goal`, `classes`,
    `cases`, and `given` when the rows are not part of the repository). Raises ValueError when `readme` has no such
    table."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no place for figures: {BEGIN} ... {END}")
    readme.write_text(f"{before}{BEGIN}\n{figures(records)}{END}{after}", encoding="utf-8")


def figures(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with a row a set, and one for each class of its cases."""
    lines = ["| set | cases | error | goal |", "|---|---|---|---|"]
    for name, record in records.items():
        mark, goal = " *" if record["given"] else "", f"{record['goal']:.1%}" if record["goal"] else ""
        lines.append(f"| {name}{mark} | {len(record['cases'])} | {record['mape']:.1%} | {goal} |")
        lines += [f"| - {kind} | {count} | {error:.1%} | |" for kind, (count, error) in record["classes"].items()]
    lines += ["", "\\* rows that are not part of this repository (`--data`)."]
    return "\n".join(lines) + "\n"

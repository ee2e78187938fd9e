"""--format: the result of a command as a table, as data, or as the checks that CI systems read.

Invariant: the exit code does not depend on the format; checks hold exactly if it is 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ppuc.compiler.commands.common import emit

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.recording.gate import Check

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "json", "csv", "markdown", "junit", "github", "sarif")
OF_CHECKS = ("junit", "github", "sarif")
"""Formats that hold checks, and nothing else."""

Rows = Sequence[Mapping[str, Any]]


def format_option(what: str) -> Callable[[F], F]:
    """--format, with `what` its help says of the formats that hold checks."""
    return click.option(
        "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help=what
    )  # fmt: skip


def print_result(
    command: str,
    record: dict[str, Any],
    form: str,
    show: Callable[[Console, dict[str, Any]], None],
    rows: Callable[[], Rows],
    found: Callable[[], Sequence[Check]],
) -> None:
    """Print a command's record in a format: `rows` are those of its main table, `found` its checks."""
    if form in ("table", "json"):
        emit(command, record, form == "json", show)
    elif form == "csv":
        click.echo(csv_rows(rows()), nl=False)
    elif form == "markdown":
        click.echo(markdown_rows(rows()), nl=False)
    else:
        click.echo(checks_text(command, found(), form), nl=False)


def checks_text(command: str, found: Sequence[Check], form: str) -> str:
    """The checks of a command in one of OF_CHECKS."""
    from ppuc.compiler.recording import gate
    from ppuc.compiler.version import VERSION

    if form == "junit":
        return gate.junit(found, f"ppuc {command}")
    return gate.github(found) if form == "github" else gate.sarif(found, VERSION)


def csv_rows(rows: Rows) -> str:
    """Rows as CSV, with the keys of the first as its head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue() if rows else ""


def markdown_rows(rows: Rows) -> str:
    """Rows as a Markdown table; columns of numbers to the right."""
    if not rows:
        return ""
    from ppuc.compiler.report.difference import markdown_table

    columns = list(rows[0])
    texts = [[_text(row.get(name)) for name in columns] for row in rows]
    left = [i for i, name in enumerate(columns) if isinstance(rows[0].get(name), str)]
    return "\n".join(markdown_table(columns, texts, left)) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

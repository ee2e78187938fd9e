"""Shared code of commands: output, progress, and options of the form KEY=VALUE.

Invariant: a command's result goes to stdout (one JSON object with --json, tables without), everything else to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ppuc.ir.strict_json import plain

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.options import Progress

F = TypeVar("F", bound=Callable[..., Any])

SCHEMA = 1
"""Version of the JSON that commands print; it changes when a field is removed or changes its meaning."""


def json_option(function: F) -> F:
    """--json."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object instead of tables; docs/json.md describes it."
    )(function)


def remarks_option(function: F) -> F:
    """--remarks."""
    return click.option(
        "--remarks",
        metavar="FILTER",
        help="What the passes did and refused, and why: 'all', or words separated by commas that must all match, each "
        "the name of a pass, 'missed', 'applied' or 'note', a decision such as split-k, or a part of a node's name.",
    )(function)


def emit(command: str, record: dict[str, Any], as_json: bool, show: Callable[[Console, dict[str, Any]], None]) -> None:
    """Print the command's result."""
    if as_json:
        click.echo(json.dumps(plain({"command": command, "schema": SCHEMA, **record}), ensure_ascii=False))
        return
    from ppuc.compiler.report.tables import console

    show(console(sys.stdout), record)


def note(text: str) -> None:
    """Print a note for the user on stderr."""
    click.echo(text, err=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A callback that drives a progress bar while stderr is a terminal, and does nothing otherwise."""
    if not sys.stderr.isatty():
        yield lambda name, number, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, step="")
        yield lambda name, number, total: bar.update(task, completed=number, total=total or None, step=name)


@contextmanager
def simulation_bar() -> Iterator[Callable[[str, float], None]]:
    """A callback for the simulator that drives a bar as `progress_bar` does. The length of a run is unknown until its
    end."""
    with progress_bar("simulate") as progress:
        yield lambda segment, cycles: progress(f"{cycles:,.0f} cycles", 0, 0)


def pairs(options: Sequence[str], name: str) -> dict[str, str]:
    """`KEY=VALUE` options as a dict. Raises UsageError for one without `=` or given twice."""
    from ppuc.ir.errors import UsageError

    found: dict[str, str] = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or not key or not value:
            raise UsageError.of(name, "is not of the form NAME=VALUE", got=option)
        if key in found:
            raise UsageError.of(name, f"gives '{key}' twice", got=f"{found[key]} and {value}")
        found[key] = value
    return found

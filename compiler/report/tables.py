"""Prints records as tables. Every function takes a console and a record that also exists as JSON.

Invariant: only units and widths are computed here; names from models are printed literally, never as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppuc.compiler.validation.compare import sqnr_text
from ppuc.ir.errors import printable

PIPE_WIDTH = 160
"""Columns when the output is not a terminal, so that logs and pipes get whole lines."""


class _Console(Console):
    """A console that removes control characters, which names in models may contain."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


def console(stream: IO[str]) -> Console:
    """A console on `stream`, as wide as the terminal or PIPE_WIDTH."""
    width = None if stream.isatty() else PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(
    out: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    left: Sequence[int] = (0,),
    *,
    header: bool = True,
) -> None:
    """Print a table; the columns numbered in `left` are text, the others numbers."""
    body = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=header)
    for i, name in enumerate(columns):
        body.add_column(name, justify="left" if i in left else "right", overflow="fold" if i in left else "ellipsis")
    for row in rows:
        body.add_row(*(Text(printable(str(cell))) for cell in row))
    if title:
        out.print(Text(title, style="bold"))
    with out.capture() as drawn:
        out.print(body)
    out.file.writelines(line.rstrip() + "\n" for line in drawn.get().splitlines())


def quantity(number: float, unit: str = "") -> str:
    """A number with three significant digits and a decimal prefix: `1.53 M`, `820 k`, `6.08 mJ`."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    for limit, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if unit and number and abs(number) >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds in a suitable unit: `12.3 us`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns"


def percent(share: float) -> str:
    """A fraction as percent."""
    return f"{100 * share:.1f}%"


def shortened(name: str, limit: int) -> str:
    """`name` in at most `limit` characters. Words before the last one are shortened, from the left, to three letters
    and then to one, because numbers and the end distinguish names; if that is not enough, the middle is omitted."""
    words = re.split(r"([^A-Za-z])", name)
    for letters in (3, 1):
        for i, word in enumerate(words[:-1]):
            if sum(map(len, words)) <= limit:
                return "".join(words)
            words[i] = word[:letters]
    short = "".join(words)
    if len(short) <= limit:
        return short
    head = (limit - 1) // 2
    return f"{short[:head]}…{short[len(short) - (limit - 1 - head) :]}"


def capacity(size: int) -> str:
    """Bytes with binary prefixes: `256 KiB`."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= limit:
            number = size / limit
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{size} B"


def comparison_table(out: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Tensors against the oracle."""
    columns = ("tensor", "type", "verdict", "max abs", "max rel", "cosine", "SQNR dB", "allowed rel")
    cells = (
        (
            r["name"],
            r["type"],
            "WRONG" if r["verdict"] == "wrong" else r["verdict"],
            f"{r['max_abs']:.3g}",
            f"{r['max_rel']:.3g}",
            f"{r['cosine']:.8f}",
            sqnr_text(r["sqnr_db"]),
            f"{r['tolerance']:.2g}",
        )
        for r in rows
    )
    table(out, title, columns, cells, left=(0, 1, 2))
    for row in rows:
        if not row["ok"]:
            out.print(f"  {row['name']}: {row['reason']}")
        if row["unproven"]:
            out.print(f"  {row['name']}: unproven, because {row['unproven']}")
        if row["note"]:
            out.print(f"  {row['name']}: {row['note']}")
        if row["sensitivity"] is not None:
            growth = f"{row['sensitivity']:.3g}"
            out.print(f"  {row['name']}: a relative change of the weights grows {growth} times in the model itself")

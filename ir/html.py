"""Tables as HTML, for notebooks: plain markup that needs no script and no style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ppuc.ir.errors import printable


def html_table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], text: Sequence[int] = (0,)
) -> str:
    """A table; the columns numbered in `text` are aligned left. A `Bar` is drawn to its share of the cell."""
    styles = ["text-align:left" if i in text else "text-align:right" for i in range(len(columns))]
    head = "".join(f'<th style="{style}">{_safe(name)}</th>' for style, name in zip(styles, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell(value, style) for value, style in zip(row, styles, strict=True))}</tr>" for row in rows
    )
    return f"<table><caption>{_safe(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Bar(float):
    """A share of 1 that is drawn as a bar."""


def _cell(value: object, style: str) -> str:
    if isinstance(value, Bar):
        width = round(100 * min(max(value, 0.0), 1.0), 1)
        drawn = f'<div style="background:#4c78a8;height:0.8em;width:{width}%"></div>'
        return f'<td style="min-width:8em" title="{value:.1%}">{drawn}</td>'
    return f'<td style="{style}">{_safe(value)}</td>'


def _safe(value: object) -> str:
    return escape(printable(str(value)))

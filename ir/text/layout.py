"""Line breaks of headers."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH = 120


def header_lines(start: str, items: Sequence[str], end: str) -> list[str]:
    """`start`, `items` with commas, `end`: on one line, or with the items wrapped over several lines if one would be
    too long. `start` ends in an opening parenthesis, after which a line continues as after a comma."""
    flat = f"{start}{', '.join(items)}{end}"
    if len(flat) <= _WIDTH or not items:
        return [flat]
    indent = " " * (len(start) - len(start.lstrip()) + 4)
    lines = [start]
    for i, item in enumerate(items):
        text = item + (end if i == len(items) - 1 else ",")
        if i > 0 and len(lines[-1]) + 1 + len(text) <= _WIDTH:
            lines[-1] += f" {text}"
        else:
            lines.append(indent + text)
    return lines

"""A scatter plot of predicted against measured time, as SVG text: no plotting library needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

SIZE, MARGIN = 520, 60
BAND = 0.10
"""Relative error that the grey band shows."""


def scatter(title: str, points: Sequence[tuple[float, float, str]]) -> str:
    """`points` are (measured us, predicted us, label); both axes are logarithmic and alike."""
    low = min(min(x, y) for x, y, _ in points) / 1.3
    high = max(max(x, y) for x, y, _ in points) * 1.3
    span = SIZE - 2 * MARGIN

    def at(value: float) -> float:
        return span * math.log(value / low) / math.log(high / low)

    def x_of(value: float) -> str:
        return f"{MARGIN + at(value):.1f}"

    def y_of(value: float) -> str:
        return f"{SIZE - MARGIN - at(value):.1f}"

    band = [(low, low * (1 - BAND)), (high, high * (1 - BAND)), (high, high * (1 + BAND)), (low, low * (1 + BAND))]
    outline = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in band)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE}" height="{SIZE}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{SIZE}" height="{SIZE}" fill="white"/>',
        f'<text x="{SIZE / 2}" y="24" text-anchor="middle" font-size="14">{escape(title)}</text>',
        f'<polygon points="{outline}" fill="#e4e4e4"/>',
        f'<line x1="{x_of(low)}" y1="{y_of(low)}" x2="{x_of(high)}" y2="{y_of(high)}" stroke="#888"/>',
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{span}" height="{span}" fill="none" stroke="black"/>',
    ]
    for tick in _ticks(low, high):
        parts.append(f'<text x="{x_of(tick)}" y="{SIZE - MARGIN + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y_of(tick)}" text-anchor="end">{tick:g}</text>')
    for x, y, label in points:
        dot = f'<circle cx="{x_of(x)}" cy="{y_of(y)}" r="2.2" fill="#1f6fb4" fill-opacity="0.6">'
        parts.append(f"{dot}<title>{escape(label)}</title></circle>")
    middle = SIZE / 2
    parts.append(f'<text x="{middle}" y="{SIZE - 16}" text-anchor="middle">measured, us (band: 10 %)</text>')
    parts.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">predicted, us</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for d in decades for t in (10.0**d, 3 * 10.0**d) if low <= t <= high]

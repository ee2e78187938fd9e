"""Draws the memory plan: steps from left to right, addresses upwards, one panel per memory.

Invariant: the drawing is one valid, self-contained SVG file without scripts; names from models are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from ppuc.compiler.report.memory import Block, MemoryPlan, SpacePlan
from ppuc.compiler.report.tables import quantity

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 1200, 420, 90, 20, 60, 70
"""Pixels: the drawing's width, a panel's height, margins, and the space between panels."""

COLOURS = {
    "constant": "#9aa5b1", "staged": "#7fb069", "input": "#4a90d9", "output": "#d97b4a", "activation": "#e6c84f",
}  # fmt: skip

_LABEL_WIDTH, _LABEL_HEIGHT, _LETTER = 40, 11, 5.6
_FONT = 'font-family="sans-serif" font-size'


def memory_svg(plan: MemoryPlan) -> str:
    """The text of an SVG file."""
    panels = [s for s in plan.spaces if s.blocks]
    height = TOP + len(panels) * (PANEL + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 22, f"{plan.name} on {plan.target}: memory by step ({len(plan.steps)} steps)", 15),
        *_legend(),
    ]
    for i, space in enumerate(panels):
        lines += _panel(space, plan, TOP + 20 + i * (PANEL + GAP))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {_FONT}="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend() -> Iterator[str]:
    for i, (role, colour) in enumerate(COLOURS.items()):
        yield f'<rect x="{LEFT + 110 * i}" y="32" width="12" height="12" fill="{colour}" stroke="#444"/>'
        yield _text(LEFT + 110 * i + 17, 42, role)


def _panel(space: SpacePlan, plan: MemoryPlan, top: float) -> Iterator[str]:
    """Draw one memory. Its scale ends slightly above the used part, or at the capacity if that is near."""
    ceiling = max(space.extent, space.bound) * 1.05
    if space.capacity <= ceiling * 1.2:
        ceiling = max(ceiling, space.capacity * 1.02)
    columns = max((b.end + 1 for b in space.blocks), default=1)
    wide, tall = (WIDTH - LEFT - RIGHT) / columns, PANEL / ceiling
    bottom = top + PANEL
    yield _text(
        LEFT,
        top - 6,
        f"{space.space}: {quantity(space.extent, 'B')} used of {quantity(space.capacity, 'B')}, "
        f"at most {quantity(space.bound, 'B')} alive together",
        12,
    )
    for block in space.blocks:
        yield from _rectangle(block, plan, wide, tall, bottom)
    yield _alive(space, columns, wide, tall, bottom)
    if space.capacity <= ceiling:
        y = bottom - space.capacity * tall
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c00" stroke-dasharray="6 3"/>'
        yield _text(WIDTH - RIGHT, y - 3, "capacity", 11, "end")
    for part in range(5):
        at = ceiling * part / 4
        yield _text(LEFT - 6, bottom - at * tall + 4, quantity(at, "B"), 11, "end")
    yield f'<path d="M{LEFT} {top:.1f}V{bottom:.1f}H{WIDTH - RIGHT}" fill="none" stroke="#444"/>'
    for part in range(9):
        step = round((columns - 1) * part / 8)
        yield _text(LEFT + (step + 0.5) * wide, bottom + 14, str(step), 11, "middle")


def _rectangle(block: Block, plan: MemoryPlan, wide: float, tall: float, bottom: float) -> Iterator[str]:
    x, width = LEFT + block.start * wide, (block.end - block.start + 1) * wide
    y, height = bottom - (block.address + block.bytes) * tall, block.bytes * tall
    first, last = (plan.steps[min(s, len(plan.steps) - 1)] if plan.steps else "" for s in (block.start, block.end))
    about = f"{block.role} {block.tensor}: {block.type}, {block.bytes:,} bytes at {block.address:,}, "
    about += f"steps {block.start} ({first}) to {block.end} ({last})"
    yield (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{max(height, 0.3):.2f}" '
        f'fill="{COLOURS[block.role]}" stroke="#444" stroke-width="0.4"><title>{escape(about)}</title></rect>'
    )
    if width >= _LABEL_WIDTH and height >= _LABEL_HEIGHT:
        yield _text(x + 3, y + height / 2 + 3, block.tensor[: int(width / _LETTER)], 9)


def _alive(space: SpacePlan, columns: int, wide: float, tall: float, bottom: float) -> str:
    """The live bytes at each step, as a step line."""
    changes = [0] * (columns + 1)
    for block in space.blocks:
        changes[block.start] += block.bytes
        changes[block.end + 1] -= block.bytes
    path: list[str] = []
    alive = 0
    for step in range(columns):
        alive += changes[step]
        path.append(f"{'L' if path else 'M'}{LEFT + step * wide:.2f} {bottom - alive * tall:.2f}h{wide:.2f}")
    return f'<path d="{"".join(path)}" fill="none" stroke="black"><title>bytes alive at each step</title></path>'

"""Prints and plots the record of `ppuc quantize`: accuracy against the share of products in 8 bits.

Invariant: only units and coordinates are computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from ppuc.compiler.report.tables import duration, quantity, table
from ppuc.ir.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH, _HEIGHT, _MARGIN = 640, 420, 60


def quantization_tables(out: Console, record: dict[str, Any], top: int | None = None) -> None:
    """Print the layers (the `top` noisiest, or all), what the search tried, and the verdict."""
    layers = record["layers"]
    if top is not None and top < len(layers):
        layers = sorted(layers, key=lambda row: row["isolated_sqnr_db"] or 1e9)[:top]
    rows = [
        (
            row["layer"],
            row["kind"],
            row["format"],
            row["scales"] or "-",
            f"{row['clipped']:.2%}",
            _db(row["isolated_sqnr_db"]),
            _db(row["accumulated_sqnr_db"]),
            f"{row['cosine']:.5f}",
            quantity(row["macs"]),
            f"{row['saved_seconds'] * 1e6:+.2f} us",
        )
        for row in layers
    ]
    head = ("layer", "kind", "format", "scales", "clipped", "alone dB", "so far dB", "cosine", "MACs", "saves")
    title = "layers" if top is None or top >= len(record["layers"]) else f"layers (the {top} noisiest)"
    table(out, title, head, rows, left=(0, 1, 2, 3))
    if record["pareto"]:
        points = [
            (p["lifted"], f"{p['share']:.1%}", _db(p["sqnr_db"]), f"{p['agreement']:.2%}", "yes" if p["met"] else "no")
            for p in record["pareto"]
        ]
        table(out, "\ntried", ("layers in bf16", "MACs in 8 bits", "SQNR dB", "agreement", "goal met"), points, left=())
    _outputs(out, record)


def _outputs(out: Console, record: dict[str, Any]) -> None:
    accuracy, time, samples = record["accuracy"], record["time"], record["samples"]
    rows = [
        (
            name,
            _db(d["sqnr_db"]),
            f"{d['cosine']:.6f}",
            "-" if d["agreement"] is None else f"{d['agreement']:.2%}",
            "-" if d["agreement"] is None else d["decisions"],
            f"{d['weight']:g}",
        )
        for name, d in accuracy["outputs"].items()
    ]
    where = "held-out samples" if samples["apart"] else "the calibration samples: too few to hold some out"
    head = ("output", "SQNR dB", "cosine", "agreement", "of decisions along", "weight")
    weighted = any(d["weight"] != 1.0 for d in accuracy["outputs"].values())
    columns = len(head) if weighted else len(head) - 1
    title = f"\noutputs, on {samples['report']} {where}"
    table(out, title, head[:columns], [row[:columns] for row in rows], left=(0, 4))
    if record["metric"] is not None:
        out.print(f"metric: {record['metric']['quantized']:.6g}, of the model in fp32 {record['metric']['fp32']:.6g}")
    out.print(
        f"\n{record['share']:.1%} of the multiply-accumulates in 8 bits, {accuracy['sqnr_db']:.1f} dB, agreement "
        f"{accuracy['agreement']:.2%}, repair: {record['repair']}; {duration(time['seconds'])} simulated, "
        f"{time['speedup']:.2f} x bf16 ({duration(time['bf16_seconds'])})"
    )
    if slower := record["slower"]:
        known = sorted(slower, key=lambda row: -row["seconds"])
        lost = ", ".join(f"{row['layer']} +{duration(row['seconds'])}" for row in known[:4] if row["seconds"] > 0)
        what = "bf16 is faster here" if record["share"] == 0 else f"{counted(len(slower), 'layer')} faster in bf16"
        because = f", because in 8 bits more time goes to {lost}{', ...' if len(known) > 4 else ''}" if lost else ""
        out.print(f"{what}{because} (--goal macs keeps 8 bits all the same)")
    if host := record["host"]:
        shown = ", ".join(host[:4]) + (", ..." if len(host) > 4 else "")
        out.print(
            f"not quantized: {counted(len(host), 'node')} on the host, or compiled when the program runs: {shown}"
        )
    if (refused := record["repair_refused"]) is not None:
        out.print(f"not repaired: '{refused['method']}' {refused['reason']}")


def _db(number: float | None) -> str:
    return "-" if number is None else f"{number:.1f}"


def pareto_svg(record: dict[str, Any]) -> str:
    """The attempts of a search as points: share of products in 8 bits on the x axis, SQNR on the y axis."""
    points = [(p["share"], p["sqnr_db"], p["met"]) for p in record["pareto"]]
    points = points or [(record["share"], record["accuracy"]["sqnr_db"], record["goal_met"])]
    top = max(10.0, 1.1 * max(min(y, 80.0) for _, y, _ in points))
    span_x, span_y = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    font = 'font-family="sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_MARGIN}" y="30" {font}>{escape(str(record["model"]))} on {escape(str(record["target"]))}</text>',
    ]
    for i in range(6):
        x, y = _MARGIN + span_x * i / 5, _HEIGHT - _MARGIN - span_y * i / 5
        lines.append(f'<path d="M{x:.1f} {_HEIGHT - _MARGIN}V{_MARGIN}" stroke="#dddddd"/>')
        lines.append(f'<path d="M{_MARGIN} {y:.1f}H{_WIDTH - _MARGIN}" stroke="#dddddd"/>')
        lines.append(f'<text x="{x - 12:.1f}" y="{_HEIGHT - _MARGIN + 18}" {font}>{20 * i} %</text>')
        lines.append(f'<text x="{_MARGIN - 34}" y="{y + 4:.1f}" {font}>{top * i / 5:.0f}</text>')
    for share, sqnr, met in points:
        x, y = _MARGIN + span_x * share, _HEIGHT - _MARGIN - span_y * min(sqnr, top) / top
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{"#2f7d32" if met else "#c0392b"}"/>')
    axis = "multiply-accumulates in 8 bits; SQNR of the outputs in dB; green: the goal is met"
    lines += [f'<text x="{_MARGIN}" y="{_HEIGHT - 12}" {font}>{axis}</text>', "</svg>", ""]
    return "\n".join(lines)

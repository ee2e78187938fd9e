"""ppuc check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import chosen_target, compile_options, dim_sizes, emit, json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "check",
    short_help="Before compiling: what runs where, and why not.",
    epilog="Examples:\n\n  ppuc check net.onnx\n\n"
    "  ppuc check net.onnx --dim batch=1 --dim seq=128 -p bf16 -t ppu-edge",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@compile_options
@json_option
def check_command(
    model: Path,
    target: str,
    overrides: tuple[str, ...],
    precision: str,
    dims: tuple[str, ...],
    as_json: bool,
) -> int:
    """Say for every node of MODEL.onnx whether it runs on the PPU, and which sizes have to be given with --dim.

    With all sizes given the model is also taken through the passes that do not depend on tiling. Exit code 1 when
    something stands in the way.
    """
    from ppuc.compiler.driver import obstacles
    from ppuc.compiler.frontend.survey import survey

    machine = chosen_target(target, overrides)
    found = survey(model)
    sizes = dim_sizes(dims)
    unbound = [key for key in found.open_dims if key not in sizes]
    nodes = [
        {"node": n.node, "op": n.op, "where": "ppu" if n.supported else "unsupported", "why": n.how}
        for n in found.nodes
    ]
    problems: list[str] = []
    if all(n.supported for n in found.nodes) and not unbound:
        problems = [str(d) for d in obstacles(model, machine, precision, sizes)]
    unsupported = [n for n in nodes if n["where"] != "ppu"]
    record = {
        **found.record(),
        "model": str(model),
        "target": machine.name,
        "ok": not unsupported and not problems,
        "nodes": nodes,
        "unsupported": len(unsupported),
        "unbound": unbound,
        "problems": problems,
    }
    emit("check", record, as_json, _show)
    return 0 if record["ok"] else 1


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import quantity, table

    out.print(
        f"{record['model']}: {len(record['nodes'])} nodes, {quantity(record['parameters'])} parameters, "
        f"opset {record['opsets'].get('ai.onnx', '-')}{', ' + record['producer'] if record['producer'] else ''}"
    )
    for declared in record["inputs"]:
        out.print(f"  input {declared}")
    table(out, "", ("op", "nodes", "runs on", "how"), _by_op(record["nodes"]), left=(0, 2, 3))
    if record["unbound"]:
        out.print("give sizes with: " + " ".join(f"--dim {key}=..." for key in record["unbound"]))
    for problem in record["problems"]:
        out.print(problem)
    if record["ok"]:
        out.print("everything runs on the PPU" + (", once sizes are given" if record["unbound"] else ""))
    elif record["unsupported"]:
        out.print(f"{record['unsupported']} nodes cannot be compiled")


def _by_op(nodes: Sequence[dict[str, str]]) -> list[tuple[object, ...]]:
    """One row for each op and fate; nodes that do not run are named."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        groups.setdefault((node["op"], node["where"], node["why"]), []).append(node["node"])
    rows: list[tuple[object, ...]] = []
    for (op, where, why), names in sorted(groups.items(), key=lambda g: (g[0][1] == "ppu", -len(g[1]), g[0])):
        named = f"{why}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if where != "ppu" else why
        rows.append((op, len(names), where, named.removeprefix("imported")))
    return rows

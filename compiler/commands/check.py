"""ppuc check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note
from ppuc.compiler.commands.inputs import read_inputs
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.ir.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.driver import Examination
    from ppuc.compiler.frontend.offload.reason import Reason
    from ppuc.compiler.frontend.survey import NodeSurvey

WORST = ("ppu", "host", "refused")
DEFERRED = "compiled at run time, when its sizes are known"
FOLDED = "computed at compile time, or not needed by any output"


@click.command(
    "check",
    short_help="Report operator support and unbound dimensions before compiling.",
    epilog="Examples:\n\n  ppuc check net.onnx\n\n"
    "  ppuc check net.onnx --dim batch=1 --dim seq=128 -p bf16 -t ppu-edge\n\n"
    "  ppuc check odd.onnx --host-ops my_ops.py --json | jq '.nodes[] | select(.where != \"ppu\")'",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@compile_options
@click.option(
    "--inputs",
    "inputs_file",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Inputs whose shapes bind open dimensions, and whose values may be fixed.",
)
@json_option
def check_command(
    model: Path,
    arguments: CompileArguments,
    inputs_file: Path | None,
    as_json: bool,
) -> int:
    """Report for every node of MODEL.onnx whether the PPU or the host runs it, and which dimensions need sizes from
    --dim.

    With all sizes given, the passes before placement run on the model, and tiles are searched for every kernel. Exit
    code 1 if the model cannot be compiled. Weight files may be missing: no value is computed.
    """
    from ppuc.compiler.driver import examine, with_shapes_of_data
    from ppuc.compiler.frontend.conformance.check import conforming
    from ppuc.compiler.frontend.source import read_source
    from ppuc.compiler.frontend.survey import survey
    from ppuc.compiler.host.client import worker

    arrays, _ = read_inputs(inputs_file, ())
    options = arguments.options(arrays)
    hosts = worker(options.host.ops)
    if hosts.files:
        hosts.start()
    absent: set[str] = set()
    source = conforming(replace(read_source(model), absent=absent), options.lenient, note)
    options = with_shapes_of_data(options, source)
    shapes = options.shapes
    found = survey(source.overridden(shapes), hosts.custom)
    unbound = [key for key in found.open_dims if key not in options.dims and key.rpartition(":")[0] not in shapes]
    nodes = [_node(n.node, n.op, n.where, n.how) for n in found.nodes]
    examination = None
    if not (unbound and not shapes):
        examination = examine(source, options)
        nodes = _placed(found.nodes, examination)
        unbound = []
    problems = [str(d) for d in examination.problems] if examination is not None else []
    counts = {where: sum(n["where"] == where for n in nodes) for where in ("ppu", "host", "refused")}
    share = _host_share(examination)
    deferred = len(examination.deferred) if examination is not None else 0
    stopped = counts["refused"] + (0 if options.host.allowed else counts["host"] + deferred)
    record = {
        **found.record(),
        "model": str(model),
        "target": options.target.name,
        "ok": not stopped and not problems,
        "nodes": nodes,
        **counts,
        "later": deferred,
        "host_share": share,
        "ppu_share": None if share is None else 1.0 - share,
        "unbound": unbound,
        "problems": problems,
        "absent": sorted(absent),
    }
    if absent:
        note(f"note: {', '.join(sorted(absent))} is missing: checked with zeros in place of its weights")
    emit("check", record, as_json, _show)
    return 0 if record["ok"] else 1


def _node(node: str, op: str, where: str, why: Reason) -> dict[str, str | None]:
    from ppuc.compiler.frontend.offload.reason import REMEDIES

    hint = REMEDIES.get(why.cause) if where != "ppu" else None
    domain, _, op_type = op.rpartition(":")
    hint = hint.replace("DOMAIN::OP", f"{domain}::{op_type}") if hint else None
    return {"node": node, "op": op, "where": where, "why": why.text, "suggestion": hint}


def _placed(nodes: Sequence[NodeSurvey], examination: Examination) -> list[dict[str, str | None]]:
    """The nodes with the findings of the import. A function call with a part on the host counts as the host's, and
    names that part."""
    from ppuc.compiler.frontend.offload.reason import Reason

    fates = {n.label: ("ppu", n.reason.within(DEFERRED)) for n in examination.deferred}
    fates |= {n.label: ("host", n.reason) for n in examination.host}
    fates |= {n.label: ("refused", n.refused) for n in examination.refused if n.refused is not None}
    placed, parts = [], _worst_parts(fates)
    for node in nodes:
        name = node.node
        if name in fates:
            placed.append(_node(name, node.op, *fates[name]))
        elif name in parts:
            part, where, why = parts[name]
            placed.append(_node(name, node.op, where, why.within(f"its part {part}")))
        elif examination.problems or node.where == "ppu":
            placed.append(_node(name, node.op, node.where, node.how))
        else:
            placed.append(_node(name, node.op, "ppu", Reason(FOLDED)))
    return placed


def _worst_parts(fates: Mapping[str, tuple[str, Reason]]) -> dict[str, tuple[str, str, Reason]]:
    """For every function call `f` with fates of its parts `f/...`, the first of the worst, with its label."""
    worst: dict[str, tuple[str, str, Reason]] = {}
    for label, fate in fates.items():
        for at in (i for i, letter in enumerate(label) if letter == "/"):
            known = worst.get(call := label[:at])
            if known is None or WORST.index(fate[0]) > WORST.index(known[1]):
                worst[call] = (label, *fate)
    return worst


def _host_share(examination: Examination | None) -> float | None:
    """Share of the arithmetic on the host; None if unknown."""
    if examination is None or examination.problems:
        return None
    if not examination.host:
        return 0.0
    from ppuc.compiler.host.work import host_work, ppu_work

    host = host_work(examination.host)
    total = host + sum(map(ppu_work, examination.graphs))
    return host / total if total else 0.0


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import quantity, table

    out.print(
        f"{record['model']}: {len(record['nodes'])} nodes, {quantity(record['parameters'])} parameters, "
        f"opset {record['opsets'].get('ai.onnx', '-')}{', ' + record['producer'] if record['producer'] else ''}"
    )
    for declared in record["inputs"]:
        out.print(f"  input {declared}")
    table(out, "", ("op", "nodes", "runs on", "how"), _by_op(record["nodes"]), left=(0, 2, 3))
    for hint in dict.fromkeys(n["suggestion"] for n in record["nodes"] if n["suggestion"]):
        out.print(f"suggestion: {hint}")
    if record["unbound"]:
        out.print("give sizes with: " + " ".join(f"--dim {key}=..." for key in record["unbound"]))
    for problem in record["problems"]:
        out.print(problem)
    if record["refused"]:
        out.print(f"{counted(record['refused'], 'node')} cannot be compiled")
    if record["later"]:
        out.print(
            f"{counted(record['later'], 'node')} to be compiled when the program runs; that arithmetic is not counted "
            "here"
        )
    if record["host"]:
        share = f", {record['host_share']:.1%} of the arithmetic" if record["host_share"] is not None else ""
        rest = "" if record["refused"] else "; everything else runs on the PPU"
        out.print(f"{counted(record['host'], 'node')} for the host{share}{rest}")
    elif record["ok"]:
        out.print("everything runs on the PPU" + (", once sizes are given" if record["unbound"] else ""))


def _by_op(nodes: Sequence[dict[str, str]]) -> list[tuple[object, ...]]:
    """One row per op and outcome; nodes that do not run on the PPU are named."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        groups.setdefault((node["op"], node["where"], node["why"]), []).append(node["node"])
    rows: list[tuple[object, ...]] = []
    for (op, where, why), names in sorted(groups.items(), key=lambda g: (g[0][1] == "ppu", -len(g[1]), g[0])):
        named = f"{why}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if where != "ppu" else why
        rows.append((op, len(names), where, named.removeprefix("imported")))
    return rows

"""Which tensors stay inside a kernel, which are written to memory between two, and why.

An edge leads from the op that computes a tensor to one that reads it, through views that cost nothing; constants and
the model's inputs have none. The edges are those of fusion; what later passes fuse too (a concatenation computed in
place, a cascade) counts as fused, and what else they change is listed.

Invariant: the kernels counted are those that the pipeline compiles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.driver import import_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.cascade import Decision
from ppuc.compiler.passes.fuse import Fuse, Grouping
from ppuc.compiler.passes.fuse_graph import is_view
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.report.regrouping import regrouped
from ppuc.ir.graph import Op, Value

if TYPE_CHECKING:
    from rich.console import Console


def fusion_record(model: Path, options: CompileOptions) -> dict[str, Any]:
    """Every edge of the graph that is fused: its ends, its bytes, and why it was not fused if it was not."""
    target = options.target
    run = Run(target, passes_of(options, Fuse.name))
    module = run.run(import_model(run, model, options).module)
    grouping = Grouping(module.graph, target, epilogues=True)
    grouping.build()
    later = regrouped(module, target)
    ends = _ends(grouping)
    edges = [_edge(grouping, *end) for end in ends]
    for edge, (value, _, reader) in zip(edges, ends, strict=True):
        if (value.name, grouping.graph.ops[reader].results[0].name) in later.joined:
            edge["fused"], edge["why"] = True, ""
    for cascade in later.cascades:
        _mark(edges, cascade)
    apart = [e for e in edges if not e["fused"]]
    reasons: dict[str, dict[str, int]] = {}
    for edge in apart:
        found = reasons.setdefault(_kind_of_reason(edge["why"]), {"edges": 0, "bytes": 0})
        found["edges"] += 1
        found["bytes"] += edge["bytes"]
    return {
        "kind": "fusion",
        "target": target.name,
        "precision": options.precision,
        "kernels": later.kernels,
        "fused": len(edges) - len(apart),
        "not_fused": len(apart),
        "reasons": reasons,
        "edges": edges,
        "cascades": [asdict(cascade) for cascade in later.cascades],
        "after_fusion": [asdict(change) for change in later.passes],
    }


def _mark(edges: list[dict[str, Any]], cascade: Decision) -> None:
    """Say of the edge between two groups what the choice for or against a cascade was."""
    for edge in edges:
        if edge["from"] in cascade.first and edge["to"] in cascade.second and not edge["fused"]:
            if cascade.taken:
                edge["fused"], edge["why"] = True, ""
            elif cascade.joined_clk is not None:
                edge["why"] = "one kernel that keeps the tensor in l1 would take longer than two"
            else:
                edge["why"] = cascade.why_not


def _kind_of_reason(why: str) -> str:
    """A reason without the shapes that it mentions."""
    return re.sub(r"\[[\d, ]*\]", "[...]", why)


def _ends(grouping: Grouping) -> list[tuple[Value, int, int]]:
    """(tensor, op that computes it, op that reads it) of every edge between ops that belong to kernels."""
    found: dict[tuple[int, int], tuple[Value, int, int]] = {}
    for i, op in enumerate(grouping.graph.ops):
        if _is_free(grouping, i):
            continue
        for operand in op.operands:
            value, source = _computed(grouping, operand)
            if source is not None and grouping.graph.ops[source].name != "const":
                found.setdefault((source, i), (value, source, i))
    return list(found.values())


def _is_free(grouping: Grouping, i: int) -> bool:
    return is_view(grouping.graph.ops[i]) and i not in grouping.group_of


def _computed(grouping: Grouping, value: Value) -> tuple[Value, int | None]:
    """The tensor that `value` is a view of, and the op that computes it; None for an input of the model."""
    source = grouping.position.get(value.name)
    while source is not None and _is_free(grouping, source):
        value = grouping.graph.ops[source].operands[0]
        source = grouping.position.get(value.name)
    return value, source


def _edge(grouping: Grouping, value: Value, source: int, reader: int) -> dict[str, Any]:
    ops, group_of = grouping.graph.ops, grouping.group_of
    fused = source not in group_of or group_of[source] == group_of.get(reader)
    return {
        "tensor": value.name,
        "bytes": value.type.bytes,
        "from": _node(ops[source]),
        "from_op": ops[source].name,
        "to": _node(ops[reader]),
        "to_op": ops[reader].name,
        "fused": fused,
        "why": "" if fused else _why(grouping, source, reader),
    }


def _node(op: Op) -> str:
    return op.loc[0] if op.loc else op.results[0].name


def _why(grouping: Grouping, source: int, reader: int) -> str:
    """Why the reader is not in the kernel that computes what it reads."""
    known = grouping.refused.get((grouping.group_of[source], reader))
    if known:
        return known
    first, op = grouping.graph.ops[source], grouping.graph.ops[reader]
    if is_view(first) or first.name in ("pad", "gather", "scatter_nd", "concat"):
        return f"the kernel of a '{first.name}' takes no other ops"
    if is_view(op) or op.name == "pad":
        return f"'{op.name}' is written out, because its readers cannot read through it"
    return f"'{op.name}' starts a kernel of its own"


def show(out: Console, record: dict[str, Any], limit: int = 40) -> None:
    """Print the reasons, and the edges that are not fused, those of most bytes first."""
    from ppuc.compiler.report.tables import quantity, table

    total = record["fused"] + record["not_fused"]
    out.print(
        f"{record['file']} on {record['target']} at precision {record['precision']}: {record['kernels']} kernels; "
        f"{record['fused']} of {total} edges stay inside one"
    )
    if record["cascades"]:
        taken = [c for c in record["cascades"] if c["joined_clk"] is not None and c["joined_clk"] < c["apart_clk"]]
        out.print(f"{len(taken)} of {len(record['cascades'])} windows and the products that read them are one kernel")
        rows = [
            (
                c["first"][0],
                c["second"][0],
                *(f"{c[k]:,.0f}" if c[k] is not None else "-" for k in ("joined_clk", "apart_clk")),
            )
            for c in record["cascades"]
        ]
        table(out, "", ("window", "product", "as one, clk", "apart, clk"), rows, left=(0, 1))
    if record["after_fusion"]:
        rows = [(c["name"], c["before"], c["after"], _changes(c["nodes"])) for c in record["after_fusion"]]
        table(out, "\nwhat later passes change", ("pass", "kernels", "then", "nodes"), rows, left=(0, 3))
    by_bytes = sorted(record["reasons"].items(), key=lambda r: -r[1]["bytes"])
    number = {why: i + 1 for i, (why, _) in enumerate(by_bytes)}
    rows = [(number[why], r["edges"], quantity(r["bytes"], "B"), why) for why, r in by_bytes]
    table(out, "\nwhy the others do not", ("", "edges", "bytes", "reason"), rows, left=(3,))
    apart = sorted((e for e in record["edges"] if not e["fused"]), key=lambda e: -e["bytes"])
    more = f" (the {limit} largest of {len(apart)})" if len(apart) > limit else ""
    lines = [
        (_end(e, "from"), _end(e, "to"), quantity(e["bytes"], "B"), number[_kind_of_reason(e["why"])])
        for e in apart[:limit]
    ]
    table(out, f"\nedges between kernels{more}", ("from", "to", "bytes", "reason"), lines, left=(0, 1))


def _changes(nodes: Mapping[str, int], limit: int = 4) -> str:
    """The nodes of which there are more or fewer kernels."""
    from ppuc.compiler.report.tables import shortened

    shown = [f"{shortened(node, 26)} {count:+d}" for node, count in list(nodes.items())[:limit]]
    return ", ".join(shown) + (f" and {len(nodes) - limit} more" if len(nodes) > limit else "")


def _end(edge: dict[str, Any], end: str) -> str:
    from ppuc.compiler.report.tables import shortened

    return f"{shortened(edge[end], 26)} ({edge[end + '_op']})"

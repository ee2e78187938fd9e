"""The fusion report: which tensors stay inside a kernel, which are written to memory, and why, from the passes'
remarks.

An edge leads from the op that computes a tensor to an op that reads it, through free views; constants and model inputs
have no edges. Edges come from fusion; edges that later passes fuse (a concatenation computed in place, a cascade) count
as fused, and other changes by later passes are listed.

Invariant: the kernels counted are those that the pipeline compiles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppuc.compiler.passes.remarks import Remark
from ppuc.compiler.report.remarks import settled
from ppuc.ir.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

FUSE = "fuse"
"""The pass with remarks on edges."""


def fusion_record(remarks: Sequence[Remark]) -> dict[str, Any]:
    """Every edge considered by fusion: its ends, its bytes, and the reason if it was not fused; and later changes of
    the groups."""
    edges = [_edge(r) for r in settled(remarks) if r.decision in ("fused", "not-fused")]
    apart = [e for e in edges if not e["fused"]]
    reasons: dict[str, dict[str, int]] = {}
    for edge in apart:
        found = reasons.setdefault(_kind_of_reason(edge["why"]), {"edges": 0, "bytes": 0})
        found["edges"] += 1
        found["bytes"] += edge["bytes"]
    return {
        "kind": "fusion",
        "kernels": sum(map(_kernels, remarks)),
        "fused": len(edges) - len(apart),
        "not_fused": len(apart),
        "reasons": reasons,
        "edges": edges,
        "cascades": [_cascade(r) for r in remarks if r.decision in ("cascaded", "not-cascaded")],
        "after_fusion": _regroupings(remarks),
    }


def _edge(remark: Remark) -> dict[str, Any]:
    first, second = remark.nodes
    return {
        "tensor": remark.entity,
        "bytes": remark.details["bytes"],
        "from": first,
        "from_op": remark.details["from_op"],
        "to": second,
        "to_op": remark.details["to_op"],
        "fused": remark.kind == "applied",
        "why": remark.reason,
    }


def _kernels(remark: Remark) -> int:
    return int(remark.details.get("kernels", 0))


def _cascade(remark: Remark) -> dict[str, Any]:
    writers = int(remark.details["writers"])
    return {
        "first": list(remark.nodes[:writers]) or [remark.entity],
        "second": list(remark.nodes[writers:]),
        "joined_clk": remark.after_clk,
        "apart_clk": remark.before_clk,
        "why_not": remark.reason,
    }


def _regroupings(remarks: Sequence[Remark]) -> list[dict[str, Any]]:
    """The passes after fusion that changed the number of kernels, with the change by first node."""
    count = sum(_kernels(r) for r in remarks if r.pass_name == FUSE)
    found: dict[str, dict[str, int]] = {}
    for remark in remarks:
        if remark.pass_name != FUSE and _kernels(remark):
            nodes, node = found.setdefault(remark.pass_name, {}), (*remark.nodes, remark.entity)[0]
            nodes[node] = nodes.get(node, 0) + _kernels(remark)
    listed = []
    for name, nodes in found.items():
        before, count = count, count + sum(nodes.values())
        listed.append({"name": name, "before": before, "after": count, "nodes": nodes})
    return listed


def _kind_of_reason(why: str) -> str:
    """A reason without its shapes."""
    return re.sub(r"\[[\d, ]*\]", "[...]", why)


def show(out: Console, record: dict[str, Any], limit: int = 40) -> None:
    """Print the reasons, and the unfused edges, largest first."""
    from ppuc.compiler.report.tables import quantity, table

    total = record["fused"] + record["not_fused"]
    out.print(
        f"{record['file']} on {record['target']} at precision {record['precision']}: "
        f"{counted(record['kernels'], 'kernel')}; {record['fused']} of {total} edges stay inside one"
    )
    if record["cascades"]:
        taken = [c for c in record["cascades"] if not c["why_not"]]
        out.print(f"{len(taken)} of {len(record['cascades'])} kernels and the ones that read them are one kernel")
        rows = [
            (
                c["first"][0],
                c["second"][0],
                *(f"{c[k]:,.0f}" if c[k] is not None else "-" for k in ("joined_clk", "apart_clk")),
            )
            for c in record["cascades"]
        ]
        table(out, "", ("first", "second", "as one, clk", "apart, clk"), rows, left=(0, 1))
    if record["after_fusion"]:
        rows = [(c["name"], c["before"], c["after"], _changes(c["nodes"])) for c in record["after_fusion"]]
        table(out, "\nchanges by later passes", ("pass", "kernels", "then", "nodes"), rows, left=(0, 3))
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
    """The nodes with more or fewer kernels."""
    from ppuc.compiler.report.tables import shortened

    shown = [f"{shortened(node, 26)} {count:+d}" for node, count in list(nodes.items())[:limit]]
    return ", ".join(shown) + (f" and {len(nodes) - limit} more" if len(nodes) > limit else "")


def _end(edge: dict[str, Any], end: str) -> str:
    from ppuc.compiler.report.tables import shortened

    return f"{shortened(edge[end], 26)} ({edge[end + '_op']})"

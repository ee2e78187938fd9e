"""Remarks of fusion: which edges stay inside a kernel, and why others do not.

An edge leads from the op that computes a tensor to an op that reads it, through free views and pads. Constants and
model inputs have no edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping

from ppuc.compiler.passes.grouping.fuse_graph import GroupedGraph, is_view
from ppuc.compiler.passes.remarks import Collector
from ppuc.ir.graph import Graph, Op, Value
from ppuc.targets.cost import l2_bytes_per_clk

Refused = Mapping[tuple[int, int], str]
"""(group, op) -> why the op, a consumer of the group, is not part of it."""


def remark_groups(grouped: GroupedGraph, made: Graph, refused: Refused, remarks: Collector) -> None:
    """Remarks on every group of `made`, the graph that `grouped` became, and on every edge."""
    rate = l2_bytes_per_clk(grouped.target)
    outputs = {v.name for v in made.results}
    for op in made.ops:
        if op.body is None:
            continue
        result = op.results[0]
        if all(_moves(inner) for inner in op.body.ops):
            size = result.type.bytes
            why = _why_copied(grouped, result.name, outputs)
            remarks.missed("copied", result.name, op.loc, why, kernels=1, bytes=size, lost_clk=2 * size / rate)
        else:
            kind = op.attrs.kind  # type: ignore[attr-defined]
            remarks.applied("grouped", result.name, op.loc, kernels=1, kind=kind, ops=len(op.body.ops))
    edges = _edges(grouped)
    apart = Counter(value.name for value, source, reader in edges if not _together(grouped, source, reader))
    for value, source, reader in edges:
        ops, size = (grouped.graph.ops[source], grouped.graph.ops[reader]), value.type.bytes
        nodes, first, second = [_node(op) for op in ops], ops[0].name, ops[1].name
        if _together(grouped, source, reader):
            remarks.applied("fused", value.name, nodes, bytes=size, from_op=first, to_op=second)
        else:
            why = refused.get((grouped.group_of[source], reader)) or _why_apart(*ops)
            lost = (1 + 1 / apart[value.name]) * size / rate  # read once here; one write shared by all separate readers
            remarks.missed("not-fused", value.name, nodes, why, bytes=size, lost_clk=lost, from_op=first, to_op=second)


def _together(grouped: GroupedGraph, source: int, reader: int) -> bool:
    """Whether the result of op `source` reaches op `reader` without going through memory."""
    group = grouped.group_of.get(source)
    return group is None or group == grouped.group_of.get(reader)


def _edges(grouped: GroupedGraph) -> list[tuple[Value, int, int]]:
    """(tensor, producer, consumer) of every edge between ops in kernels."""
    found: dict[tuple[int, int], tuple[Value, int, int]] = {}
    for i, op in enumerate(grouped.graph.ops):
        if _is_free(grouped, i):
            continue
        for operand in op.operands:
            value, source = _computed(grouped, operand)
            if source is not None and grouped.graph.ops[source].name != "const":
                found.setdefault((source, i), (value, source, i))
    return list(found.values())


def _is_free(grouped: GroupedGraph, i: int) -> bool:
    """Whether every consumer reads through op `i`."""
    op = grouped.graph.ops[i]
    return (is_view(op) or op.name == "pad") and i not in grouped.group_of


def _computed(grouped: GroupedGraph, value: Value) -> tuple[Value, int | None]:
    """The tensor that `value` is read from, and its producer; None for a model input."""
    source = grouped.position.get(value.name)
    while source is not None and _is_free(grouped, source):
        value = grouped.graph.ops[source].operands[0]
        source = grouped.position.get(value.name)
    return value, source


def _node(op: Op) -> str:
    return op.loc[0] if op.loc else op.results[0].name


def _why_apart(first: Op, reader: Op) -> str:
    """Why the reader was not a candidate for its producer's kernel."""
    if is_view(first) or first.name in ("pad", "gather", "scatter_nd", "concat"):
        return f"the kernel of a '{first.name}' takes no other ops"
    if is_view(reader) or reader.name == "pad":
        return f"'{reader.name}' is written out, because its readers cannot read through it"
    return f"'{reader.name}' starts a kernel of its own"


def _moves(op: Op) -> bool:
    return is_view(op) or op.name in ("pad", "const")


def _why_copied(grouped: GroupedGraph, name: str, outputs: Container[str]) -> str:
    """Why a copy kernel writes `name`."""
    at = grouped.position.get(name)
    if at is None:
        own = "an output of the model that is also an input, a constant or a view of one gets memory of its own"
        return own if name in outputs else "a scatter updates its data in place, so it gets a copy"
    if name in outputs:
        return f"'{grouped.graph.ops[at].name}' is an output of the model"
    return f"the readers of '{grouped.graph.ops[at].name}' cannot read through it, or only element by element"

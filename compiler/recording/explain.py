"""What became of one ONNX node: its ops after each pass, the remarks on it, and its kernels.

Invariant: everything is read from the record of a run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ppuc.ir.errors import UsageError
from ppuc.ir.text.literals import quote


def explained(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What became of the node `name`, or of the node that computes the tensor `name`. Raises UsageError for a name that
    the model does not have, or a record without texts of passes."""
    if record.get("graph") is None or not record["passes"]:
        hint = "explain the .onnx file, or the record of a run that compiled it"
        raise UsageError.of(record["model"]["file"], "holds no texts of the passes", hint=hint)
    node = _node(record, name)
    loc = quote(node["node"])
    steps = [step for p in record["passes"] if (step := _step(p, loc))]
    kernels = [_kernel(record, name, k) for name, k in record["kernels"].items() if node["node"] in k["loc"]]
    return {"node": node, "steps": steps, "kernels": kernels}


def _node(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    nodes = record["graph"]["nodes"]
    for node in nodes:
        if name == node["node"] or name in node["writes"]:
            return dict(node)
    known = [n["node"] for n in nodes] + [t for n in nodes for t in n["writes"]]
    close = difflib.get_close_matches(name, known, 3, 0.4) or [n for n in known if name in n][:3]
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "`ppuc check MODEL --json` lists all nodes"
    raise UsageError.of(record["model"]["file"], f"has no node or tensor '{name}'", hint=hint)


def _step(made: Mapping[str, Any], loc: str) -> dict[str, Any] | None:
    """The lines with the node that a step removed and added, and its remarks on the node; None without either."""
    lines = made["change"]["diff"].split("\n") if made["change"] is not None else []
    touched = [line for line in lines if line[:1] in "+-" and _is_at(line, loc)]
    removed, added = ([_op(line) for line in touched if line[0] == sign] for sign in "-+")
    if sorted(removed) == sorted(added):
        removed, added = [], []
    quoted = [r for r in made["remarks"] if loc in map(quote, r["nodes"])]
    if not (removed or added or quoted):
        return None
    return {"pass": made["pass"], "removed": removed, "added": added, "remarks": quoted}


def _is_at(line: str, loc: str) -> bool:
    """Whether a line's op comes from the node."""
    return loc in line.rpartition(" loc(")[2]


def _op(line: str) -> str:
    """The op of a line of a difference, without the node's name."""
    return line[1:].rpartition(" loc(")[0].strip()


def _kernel(record: Mapping[str, Any], name: str, kernel: Mapping[str, Any]) -> dict[str, Any]:
    """A kernel that computes the node, with its time where the run was timed."""
    timed: Iterator[Mapping[str, Any]] = (
        k for k in record.get("profile", {}).get("kernels", ()) if k["kernel"] == name
    )
    row = next(timed, None)
    kept = ("cycles", "share", "units", "bound_by", "macs", "read_bytes", "write_bytes", "split", "utilisation")
    return {
        "kernel": name,
        "nodes": kernel["loc"],
        "reads": [record["tensors"][t]["source"] or t for t in kernel["reads"]],
        "writes": [record["tensors"][t]["source"] or t for t in kernel["writes"]],
        "loops": kernel["loops"],
        "time": {key: row[key] for key in kept} if row is not None else None,
    }

"""Node counts after simplification, compared with other tools: `python benchmarks/simplify.py [--json] [MODEL.onnx
...]`.

Counts include nodes of subgraphs and exclude Constant nodes. Without arguments, the nine light models in the onnx wheel
are used. Tools that are not installed (`pip install onnxsim onnxslim onnxscript onnxoptimizer`) or that fail on a model
are shown as "-". ppuc's result is checked with ONNX Runtime, and simplified again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.backend.test

from ppuc.compiler.simplify.driver import node_counts, simplify


def nodes(model: onnx.ModelProto) -> int:
    """The number of nodes, without Constant nodes."""
    return sum(node_counts(model).values())


Tool = Callable[[Any, onnx.ModelProto], onnx.ModelProto]

TOOLS: dict[str, tuple[str, Tool]] = {
    "onnxsim": ("onnxsim", lambda tool, model: tool.simplify(model)[0]),
    "onnxslim": ("onnxslim", lambda tool, model: tool.slim(model)),
    "onnxscript": ("onnxscript.optimizer", lambda tool, model: tool.optimize(model)),
    "onnxoptimizer": (
        "onnxoptimizer",
        lambda tool, model: tool.optimize(model, tool.get_fuse_and_elimination_passes()),
    ),
}
"""Column -> module, and how it is called."""


def attempt(name: str, path: Path) -> int | None:
    """A tool's count; None if the tool is missing or fails, with any exception."""
    module, call = TOOLS[name]
    try:
        return nodes(call(importlib.import_module(module), onnx.load(path)))
    except Exception:
        return None


def measure(path: Path) -> dict[str, Any]:
    """One row of the table."""
    begin = time.process_time()
    ours = simplify(path)
    seconds = time.process_time() - begin
    again = simplify(ours.model, verify=False)
    row: dict[str, Any] = {name: attempt(name, path) for name in TOOLS}
    counts = [n for n in row.values() if n is not None]
    return {
        "model": path.stem if path.stem != "model" else path.parent.name,
        "original": sum(ours.before.values()),
        **row,
        "best": min(counts, default=None),
        "ppuc": sum(ours.after.values()),
        "agrees": ours.ok,
        "idempotent": nodes(again.model) == sum(ours.after.values()),
        "cpu_s": round(seconds, 2),
    }


def main() -> int:
    """Print the table; the exit code is 1 if a model has more nodes than with the best tool, disagrees, or changes when
    simplified again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    light = Path(onnx.backend.test.__file__).parent / "data" / "light"
    rows = [measure(path) for path in options.models or sorted(light.glob("*.onnx"))]
    if options.json:
        print(json.dumps(rows))
    else:
        columns = [*rows[0]]
        print(f"{'model':28}" + "".join(f"{c:>14}" for c in columns[1:]))
        for row in rows:
            print(f"{row['model']:28}" + "".join(f"{'-' if row[c] is None else row[c]!s:>14}" for c in columns[1:]))
        for key in ("best", "ppuc"):
            ratios = [math.log(r[key] / r["original"]) for r in rows if r[key]]
            print(f"geomean of {key} / original: {math.exp(sum(ratios) / max(len(ratios), 1)):.3f}")
    good = all(r["agrees"] and r["idempotent"] and (r["best"] is None or r["ppuc"] <= r["best"]) for r in rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

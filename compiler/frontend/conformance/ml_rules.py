"""Rules N8 and N9 for the ops of ai.onnx.ml whose attributes hold tables: tree ensembles and linear models.

A tree ensemble is a table of nodes and a table of leaf values, in columns of one length; a node is known by the pair of
its tree's and its own number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from ppuc.compiler.frontend.conformance.shaped_node import Broken, Rule, ShapedNode

TREES = {"TreeEnsembleRegressor": "target_", "TreeEnsembleClassifier": "class_"}
"""Op -> what the names of the columns of leaf values begin with."""
LEAF = b"LEAF"


def _length(value: Any) -> int:
    return math.prod(value.dims) if isinstance(value, onnx.TensorProto) else len(value)


def _columns(attributes: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """Lengths of the columns that are there."""
    lengths = {name: _length(value) for name, value in attributes.items() if name.startswith(prefix)}
    return {name: length for name, length in lengths.items() if length}


def tree_table(node: ShapedNode) -> Iterator[Broken]:
    """Columns of one length; children, leaf values and their targets refer to what exists."""
    held, leaves = node.attributes, TREES[node.site.node.op_type]
    for prefix, first in (("nodes_", "nodes_treeids"), (leaves, f"{leaves}nodeids")):
        lengths = _columns(held, prefix)
        rows = lengths.get(first, 0)
        for name in (f"{prefix}treeids", f"{prefix}nodeids", *lengths):
            if lengths.get(name, 0) != rows:
                yield f"attribute '{name}' has the wrong length", lengths.get(name, 0), f"{rows}, as '{first}'"
                return
    rows = _length(held.get("nodes_treeids", ()))
    trees = np.array(held.get("nodes_treeids", ()), np.int64)
    ids = _keys(trees, held.get("nodes_nodeids", ()))
    inner = np.array([mode != LEAF for mode in held.get("nodes_modes", ())], bool)
    if len(inner) != rows:
        yield "attribute 'nodes_modes' has the wrong length", len(inner), str(rows)
        return
    if len(np.unique(ids)) != rows:
        yield "its nodes have the same numbers", f"{rows} nodes, {len(np.unique(ids))} numbers", "distinct ones"
        return
    for side in ("true", "false"):
        children = _keys(trees, held.get(f"nodes_{side}nodeids", np.zeros(rows)))[inner]
        if not np.isin(children, ids).all() or (children == ids[inner]).any():
            got = list(held.get(f"nodes_{side}nodeids", ()))[:20]
            yield f"attribute 'nodes_{side}nodeids' is out of range", got, "other nodes of the same tree"
            return
    features = np.array(held.get("nodes_featureids", np.zeros(rows)), np.int64)[inner]
    if (features < 0).any():
        yield "attribute 'nodes_featureids' is out of range", features[features < 0][0], "zero or more"
    elif not np.isin(_keys(held.get(f"{leaves}treeids", ()), held.get(f"{leaves}nodeids", ())), ids).all():
        yield f"attribute '{leaves}nodeids' is out of range", list(held[f"{leaves}nodeids"])[:20], "nodes of the trees"
    else:
        yield from _targets(held, leaves)


def _keys(trees: Any, nodes: Any) -> np.ndarray:
    """One number for each pair of a tree and a node."""
    return (np.asarray(trees, np.int64) << 32) + np.asarray(nodes, np.int64)


def _targets(held: Mapping[str, Any], leaves: str) -> Iterator[Broken]:
    if leaves == "target_":
        count = held.get("n_targets", 1)
    else:
        count = max(len(held.get(name, ())) for name in ("classlabels_int64s", "classlabels_strings"))
    ids = np.array(held.get(f"{leaves}ids", ()), np.int64)
    if ((ids < 0) | (ids >= count)).any():
        yield f"attribute '{leaves}ids' is out of range", ids[(ids < 0) | (ids >= count)][0], f"0 to {count - 1}"


def linear(node: ShapedNode) -> Iterator[Broken]:
    """A row of coefficients and one intercept for each target or class."""
    held, x = node.attributes, node.shape(0)
    intercepts, coefficients = len(held.get("intercepts", ())), len(held.get("coefficients", ()))
    rows = intercepts
    if node.site.node.op_type == "LinearRegressor":
        rows = held.get("targets", 1)
        if intercepts not in (0, rows):
            yield "attribute 'intercepts' has the wrong length", intercepts, f"{rows}, one for each target"
            return
    elif not any(len(held.get(name, ())) for name in ("classlabels_ints", "classlabels_strings")):
        yield "it names no classes", "none", "attribute classlabels_ints or classlabels_strings"
        return
    features = x[-1] if x else None
    if rows and features is not None and coefficients != rows * features:
        yield "attribute 'coefficients' has the wrong length", coefficients, f"{rows} rows of {features}"


def imputer(node: ShapedNode) -> Iterator[Broken]:
    """One value, or one for each feature."""
    x = node.shape(0)
    for name in ("imputed_value_floats", "imputed_value_int64s"):
        count = len(node.attributes.get(name, ()))
        if x and x[-1] is not None and count not in (0, 1, x[-1]):
            yield f"attribute '{name}' has the wrong length", count, f"1 or {x[-1]}"


ML: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(TREES, (tree_table,)),
    **dict.fromkeys(("LinearClassifier", "LinearRegressor"), (linear,)),
    "Imputer": (imputer,),
}
"""Op -> its rules."""

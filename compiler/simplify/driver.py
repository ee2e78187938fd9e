"""Simplifies an ONNX model: ONNX in, ONNX out, with the same inputs and outputs and fewer nodes.

Rules run to a fixpoint, so simplification is idempotent. Symbolic dimensions stay symbolic. Invariant: unless the check
is disabled, ONNX Runtime runs the result and the original on random inputs, and the outputs agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ppuc.compiler.frontend.conformance.check import conforming
from ppuc.compiler.frontend.source import overridable_initializers
from ppuc.compiler.simplify.check import check
from ppuc.compiler.simplify.convert import bind, fix_defaults, read_model, static_types, to_graph, to_model
from ppuc.compiler.simplify.model import ModelGraph
from ppuc.compiler.simplify.rules import arithmetic, patterns, shapes, views
from ppuc.compiler.simplify.rules.base import RULES
from ppuc.compiler.simplify.rules.branches import inline_branches
from ppuc.compiler.simplify.rules.constants import drop_unread, fold_constants, merge_equal_nodes
from ppuc.compiler.simplify.symbolic import infer
from ppuc.compiler.validation.compare import Comparison
from ppuc.ir.errors import InternalError

if TYPE_CHECKING:
    import onnx

__all__ = ["Simplified", "check", "simplify", "simplify_model"]

MOST_ROUNDS = 100
_FAMILIES = (views, arithmetic, patterns, shapes)  # importing them registers their rules


@dataclass(frozen=True, slots=True)
class Simplified:
    """`before` and `after` count nodes by op type, without constants. `sizes` are the sizes of symbolic dimensions in
    the check, and `comparisons` has one entry per output; both are None without a check. `defaults` are the
    initializers that are also inputs."""

    model: onnx.ModelProto
    before: Mapping[str, int]
    after: Mapping[str, int]
    sizes: Mapping[str, int] | None = None
    comparisons: tuple[Comparison, ...] | None = None
    defaults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all comparisons, if any, passed."""
        return all(c.ok for c in self.comparisons or ())


def simplify(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    *,
    fold_defaults: bool = False,
    verify: bool = True,
    seed: int = 0,
) -> Simplified:
    """Simplify a model. `dims` fixes symbolic dimensions. With `fold_defaults`, initializers that are also inputs
    become constants. Raises ModelError and UsageError."""
    where = str(source) if isinstance(source, str | Path) else source.graph.name or "model"
    conforming(source)
    original = read_model(source)
    if fold_defaults:
        fix_defaults(original)
    bind(original, dims or {}, where)
    model = simplify_model(original, where)
    result = Simplified(
        model, node_counts(original), node_counts(model), defaults=tuple(overridable_initializers(original))
    )
    if not verify:
        return result
    sizes, comparisons = check(original, model, where, seed)
    return replace(result, sizes=sizes, comparisons=comparisons)


def simplify_model(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Apply all rules to a fixpoint. Raises ModelError for a malformed graph."""
    g = to_graph(model, where)
    for _ in range(MOST_ROUNDS):
        static = static_types(g)  # new constants may improve ONNX's shape inference
        infer(g, static)
        if not _round(g):
            return to_model(g, model)
        for _ in range(MOST_ROUNDS):
            infer(g, static)
            if not _round(g):
                break
    raise InternalError(f"the clean-up of {where} does not come to an end")


def fold_model(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Only fold constants and shape arithmetic, inline branches and drop what nothing reads; all other nodes stay as
    they are. Raises ModelError for a malformed graph."""
    g = to_graph(model, where)
    for _ in range(MOST_ROUNDS):
        infer(g, static_types(g))
        if not any([fold_constants(g), inline_branches(g), drop_unread(g)]):
            return to_model(g, model)
    raise InternalError(f"the folding of constants of {where} does not come to an end")


def _round(g: ModelGraph) -> bool:
    """Apply every rule once, wherever it matches. Equal nodes are merged last: two equal convolutions can each absorb
    the normalisation that follows, but a merged one, with two readers, cannot."""
    changed = fold_constants(g)
    changed |= inline_branches(g)
    changed |= drop_unread(g)
    for node in g.live_nodes():
        if node.domain == "" and not node.has_graph:
            changed |= any(apply(g, node) for apply in RULES.get(node.op, ()))
    changed |= drop_unread(g)
    if changed or not merge_equal_nodes(g):
        return changed
    drop_unread(g)
    return True


def node_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Node counts by op type, most frequent first, including nodes of subgraphs, without Constant nodes."""
    counts: Counter[str] = Counter()
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += node.op_type != "Constant"
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    return {op: n for op, n in counts.most_common() if n}

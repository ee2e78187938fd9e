"""Cleaning an ONNX model up: ONNX in, ONNX out, the same inputs and outputs, fewer nodes.

Rules run to a fixpoint, so simplifying twice changes nothing more. Symbolic dimensions stay symbolic. Invariant: the
result is checked against the original by ONNX Runtime on random inputs, unless that is declined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from ppuc.compiler.frontend.bind import bind_inputs, declared_inputs
from ppuc.compiler.frontend.conformance.check import conforming
from ppuc.compiler.frontend.source import overridable_initializers
from ppuc.compiler.inputs import InputSpec, generate_all
from ppuc.compiler.simplify.convert import bind, fix_defaults, inputs_of, read_model, static_types, to_graph, to_model
from ppuc.compiler.simplify.model import ModelGraph
from ppuc.compiler.simplify.rules import arithmetic, patterns, shapes, views
from ppuc.compiler.simplify.rules.base import RULES
from ppuc.compiler.simplify.rules.branches import inline_branches
from ppuc.compiler.simplify.rules.constants import drop_unread, fold_constants, merge_equal_nodes
from ppuc.compiler.simplify.symbolic import infer
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.tolerance import FP32_FLOOR, UNIT_ROUNDOFF, Tolerance
from ppuc.ir.errors import InternalError, ModelError
from ppuc.ir.types import DType

if TYPE_CHECKING:
    import onnx

__all__ = ["Simplified", "check", "simplify", "simplify_model"]

MOST_ROUNDS = 100
TRIED_SIZES = (2, 1, 8, 32, 64, 224, 256)
"""Sizes given to symbolic dimensions for the check, one after the other until ONNX Runtime accepts the original."""

_FAMILIES = (views, arithmetic, patterns, shapes)  # importing them registers their rules


@dataclass(frozen=True, slots=True)
class Simplified:
    """`before` and `after` count nodes by op type, constants left out. `sizes` are those of symbolic dimensions in the
    check, `comparisons` one entry for each output; both None when there was none. `defaults` are the initializers that
    are inputs as well."""

    model: onnx.ModelProto
    before: Mapping[str, int]
    after: Mapping[str, int]
    sizes: Mapping[str, int] | None = None
    comparisons: tuple[Comparison, ...] | None = None
    defaults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the result."""
        return all(c.ok for c in self.comparisons or ())


def simplify(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    *,
    fold_defaults: bool = False,
    verify: bool = True,
    seed: int = 0,
) -> Simplified:
    """Clean a model up. `dims` fixes symbolic dimensions. With `fold_defaults`, initializers that are inputs as well
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
    """The fixpoint of all rules. Raises ModelError for a graph that is malformed."""
    g = to_graph(model, where)
    for _ in range(MOST_ROUNDS):
        static = static_types(g)  # what has become constant may tell ONNX's shape inference more
        infer(g, static)
        if not _round(g):
            return to_model(g, model)
        for _ in range(MOST_ROUNDS):
            infer(g, static)
            if not _round(g):
                break
    raise InternalError(f"the clean-up of {where} does not come to an end")


def _round(g: ModelGraph) -> bool:
    """Every rule once, wherever it applies. Equal nodes are merged last: of two equal convolutions each can take in the
    normalisation behind it; once they are one, neither normalisation can join."""
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
    """Nodes by op type, most frequent first; Constant nodes are left out, nodes of subgraphs count."""
    counts: Counter[str] = Counter()
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += node.op_type != "Constant"
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    return {op: n for op, n in counts.most_common() if n}


# The check


def check(
    original: onnx.ModelProto, result: onnx.ModelProto, where: str, seed: int = 0
) -> tuple[dict[str, int], tuple[Comparison, ...]]:
    """Run both models on the same random inputs. Returns the sizes that symbols were given and the comparisons. Raises
    ModelError when ONNX Runtime refuses the original for every size tried, or the result."""
    from ppuc.compiler.validation.oracle import Oracle

    oracle = Oracle(original)
    refusal: ModelError | None = None
    for sizes, feeds in _trials(original, where, seed):
        try:
            wanted = oracle.run(feeds)
        except ModelError as error:
            refusal = refusal or error
            continue
        got = Oracle(result).run(feeds)
        return sizes, tuple(compare(name, got[name], want, _tolerance(want)) for name, want in wanted.items())
    raise refusal or InternalError("no size was tried")


def _trials(model: onnx.ModelProto, where: str, seed: int) -> Iterator[tuple[dict[str, int], dict[str, np.ndarray]]]:
    """Sizes of the symbolic dimensions, and inputs of those sizes."""
    defaults = overridable_initializers(model)
    declarations = declared_inputs([i for i in inputs_of(model) if i.name not in defaults], where)
    keys = {
        d if isinstance(d, str) else f"{i.name}:{axis}"
        for i in declarations
        for axis, d in enumerate(i.shape or ())
        if not isinstance(d, int)
    }
    free = sorted(k for k in keys if not set(k) & set("+-*/ "))  # expressions follow from their symbols
    for size in TRIED_SIZES if free else TRIED_SIZES[:1]:
        sizes = dict.fromkeys(free, size)
        types, _ = bind_inputs(declarations, sizes, {}, where)
        specs = [InputSpec(d.name, t) for d, t in zip(declarations, types, strict=True)]
        others = {name: _other(numpy_helper.to_array(tensor)) for name, tensor in defaults.items()}
        yield sizes, {**generate_all(specs, "random", seed), **others}


def _other(default: np.ndarray) -> np.ndarray:
    """What the check gives for an input that has a default: numbers near it, and of integers, which may be sizes or
    indices, the same."""
    return default * default.dtype.type(1.125) if default.dtype.kind == "f" else default


def _tolerance(reference: np.ndarray) -> Tolerance:
    """Reassociation in f32 stays within 90 dB; narrower formats within a few of their steps; integers are equal."""
    dtype = DType.of(reference.dtype)
    if not dtype.is_float:
        return Tolerance(0.0)
    return Tolerance(max(FP32_FLOOR, 8 * UNIT_ROUNDOFF[dtype]))

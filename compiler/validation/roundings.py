"""The rounding of intermediate results, as noise on the values of a graph.

A change of weights and inputs does not show what happens when a model subtracts nearly equal numbers that it computed
itself: the mean of a row of equal numbers cancels whatever the numbers are, while its rounding error does not. So every
sum is multiplied by noise of the size of its rounding error (Parker, "Monte Carlo Arithmetic: exploiting randomness
in floating-point arithmetic", 1997). That includes results inside composites, which are replaced by the ops that they
consist of. Contractions have none, because a change of their operands shows their error, nor do functions of single
elements: their errors do not cancel, and would break ties that are none of rounding.

Invariant: a value of the graph keeps its name and, without noise, its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.validation.tolerance import added_by, contracts
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import OPS, Kind
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.rewrite import Builder, rewrite


@dataclass(frozen=True, slots=True)
class Expanded:
    """`graph` without composites except contractions; `names` maps the name of a value to those that the given graph
    had for it."""

    graph: Graph
    names: Mapping[str, tuple[str, ...]]


def expanded(graph: Graph, kept: Collection[str] = ()) -> Expanded:
    """`graph` with every composite, except contractions and those `kept`, replaced by the ops that it consists of."""
    final = {v.name: v.name for v in (*graph.params, *(r for op in graph.ops for r in op.results))}
    replaced: dict[str, str] = {}

    def expand(builder: Builder, op: Op) -> Sequence[Value] | None:
        parts = OPS[op.name].decompose
        if parts is None or op.name in kept or contracts(op):
            return None
        results = parts(builder, op)
        replaced.update((old.name, new.name) for old, new in zip(op.results, results, strict=True))
        return results

    while (simpler := rewrite(graph, expand)) is not graph:  # a composite may consist of composites
        final = {name: replaced.get(value, value) for name, value in final.items()}
        replaced, graph = {}, simpler
    names: dict[str, tuple[str, ...]] = {}
    for name, value in final.items():
        names[value] = (*names.get(value, ()), name)
    return Expanded(graph, names)


def rounding_error(op: Op) -> float:
    """The root mean square of the relative error by which the results of `op` are rounded (0 if it does not sum)."""
    adds = op.name in ("add", "sub") or OPS[op.name].kind in (Kind.REDUCTION, Kind.SCAN, Kind.WINDOW)
    selects = isinstance(op.attrs, ReduceAttrs | PoolAttrs) and op.attrs.kind in ("max", "min")
    return math.sqrt(added_by(op)[0] / 6) if adds and not selects else 0.0


def with_noise(op: Op, arrays: Sequence[np.ndarray], scale: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Results `arrays` of `op`, floats with noise of `scale` times their rounding error."""
    size = scale * rounding_error(op)
    return [_noisy(a, size, rng) if size and a.dtype.kind == "f" else a for a in arrays]


def _noisy(array: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # a number at the edge of f16
        return np.asarray(array * (1 + size * rng.standard_normal(array.shape, np.float32)), array.dtype)

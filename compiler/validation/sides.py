"""What a correct program may compute where its model jumps.

A rounding to whole numbers, a conversion to integers, a comparison, a sign, a remainder, a choice of the largest: where
such a step reads a number within the allowed error of an edge, either side is right, and everything computed from it is
right or wrong with that side. So the model runs again with the operands of all such steps changed within their allowed
errors: all of them by the same fraction of it, up or down, then each by a random fraction. An element that no such run
changes has only one right value.

How far an operand may be off is what the rule for rounding errors (`ppuc.compiler.validation.tolerance`) allows its
elements, but not far from what changes of weights and inputs by a rounding error make of each of them: a zero that a
Relu makes of a negative number is exact. An operand that nothing rounds is exact too, so that ties stay ties.

Invariant: the runs depend on the imported graph, the precision, the inputs and fixed seeds, never on what a program
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ppuc.compiler.validation.conditioning import SMALLEST_CHANGE, Move, moved, perturbed
from ppuc.compiler.validation.overflow import overflows
from ppuc.compiler.validation.roundings import Expanded, expanded, with_noise
from ppuc.compiler.validation.tolerance import UNIT_ROUNDOFF, ExpectedError, Tolerance, errors_read, tolerance_of
from ppuc.ir.errors import InputError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.types import DType

_OF_ONE = ("ceil", "floor", "fmod", "mod", "round", "sign")
_COMPARING = ("eq", "ge", "gt", "le", "lt", "ne")
_CHOOSING = ("argreduce", "topk")
_SELECTING = ("abs", "max", "min", "neg", "relu", "select")
_ADDING = ("add", "cast", "mul", "sub")
LARGEST_WHOLE = 2.0**24
PARTS = (1.0, -1.0, 0.5, -0.5, 0.25, -0.25, 0.125, -0.125)
"""Of the allowed error, by which all operands are off alike: within some of them each number between the farthest two
is found."""
RANDOM = 8
DRAWS = 6
FACTORS = (1, 2, 4)
LEAST, MOST = 2.0, 4.0
"""Times the largest change of an element in DRAWS runs with typical rounding errors: what it may be off at least, and
at the most."""
NO_MATTER = Tolerance(0.0).absolute

Shift = Callable[[np.ndarray], np.ndarray]
"""Part of the allowed error of each element by which it is off."""


def steps(op: Op) -> bool:
    """Whether the results of `op` jump somewhere."""
    if not op.operands or not op.operands[0].type.dtype.is_float:
        return False
    return op.name in (*_OF_ONE, *_COMPARING, *_CHOOSING) or (
        op.name == "cast" and not op.results[0].type.dtype.is_float
    )


def _whole_numbers(op: Op) -> bool:
    """Whether `op` is a step with nothing but jumps: on a given side its results are exact."""
    return steps(op) and op.name not in ("fmod", "mod", "topk")


def _exact(base: Mapping[str, np.ndarray], op: Op, operands: Sequence[ExpectedError]) -> bool:
    """Whether the results of `op`, on a given side, have no error: it has nothing but jumps, or selects among exact
    numbers or adds up whole ones; `base` are the values of its graph."""
    if _whole_numbers(op):
        return True
    if any(e.variance or e.absolute for e in operands):
        return False
    if op.name in _SELECTING or (isinstance(op.attrs, ReduceAttrs | PoolAttrs) and op.attrs.kind in ("max", "min")):
        return True
    adds = op.name in _ADDING or (isinstance(op.attrs, ReduceAttrs) and op.attrs.kind == "sum")
    return adds and all(map(_is_whole, (base[v.name] for v in (*op.operands, *op.results))))


def _is_whole(array: np.ndarray) -> bool:
    """Whether f32 holds numbers like these exactly, and sums of them."""
    with np.errstate(all="ignore"):
        return bool(np.all((array == np.rint(array)) & (np.abs(array) < LARGEST_WHOLE)))


@dataclass(frozen=True, slots=True)
class Sided:
    """A value as the model computes it, and `others` of its arrays, which differ, with other sides of steps."""

    base: np.ndarray
    others: tuple[np.ndarray, ...]

    def given(self, want: np.ndarray) -> list[np.ndarray]:
        """The reference `want`, and what takes its place with other sides: wherever these change something, which side
        the reference itself is on is open, too."""
        changed = self.changed()
        return [want, *(np.where(changed, array, want) for array in (self.base, *self.others))]

    def changed(self) -> np.ndarray:
        """Which elements are other ones on other sides."""
        found = np.zeros(self.base.shape, bool)
        for other in self.others:
            found |= (other != self.base) & ~((other != other) & (self.base != self.base))
        return found

    def beyond(self, got: np.ndarray) -> np.ndarray:
        """Which integers `got` are less or more than on any side."""
        every = (self.base, *self.others)
        found: np.ndarray = (got < np.minimum.reduce(every)) | (got > np.maximum.reduce(every))
        return found


def sided(
    graph: Graph,
    precision: str,
    feeds: Mapping[str, np.ndarray],
    step: float,
    names: Collection[str],
    transforms: Collection[str] = (),
    held: Mapping[str, DType] | None = None,
) -> dict[str, Sided]:
    """The values `names` of the imported `graph`, on `feeds` by parameter name, on all sides of steps. `step` is the
    typical rounding error, `held` are the dtypes in which a program stored parameters that it computed. Nothing of a
    graph that overflows its 16-bit formats, where numbers jump to infinity, or whose indices may then lie outside of
    what they index."""
    whole = _upstream(expanded(graph, kept=_CHOOSING), names)
    wanted = {value: ours for value, ours in whole.names.items() if not set(names).isdisjoint(ours)}
    base = dict(feeds)
    run_graph(whole.graph, feeds, lambda op, arrays: base.update(_named(op, arrays)))
    if any(overflows(v.type.dtype, base[v.name]) for op in whole.graph.ops for v in op.results):
        return {}
    units = {name: UNIT_ROUNDOFF.get(dtype, 0.0) for name, dtype in (held or {}).items()}
    given = {name: ExpectedError(u**2, narrow=True) for name, u in units.items() if u > UNIT_ROUNDOFF[DType.F32]}
    read = errors_read(whole.graph, precision, given, transforms, partial(_exact, base))
    errors = {op.results[0].name: each for op, each in zip(whole.graph.ops, read, strict=True) if steps(op)}
    inexact = {name: each for name, each in errors.items() if any(e.variance or e.absolute for e in each)}
    found: dict[str, list[np.ndarray]] = {value: [] for value in wanted if value in base}
    try:
        allowed = _allowed(whole.graph, base, inexact, _reach(whole.graph, feeds, base, step)) if inexact else {}
        tail = _behind(whole.graph, allowed)
        known = {v.name: base[v.name] for v in tail.params}
        for shift in _shifts() if allowed else ():
            for value, array in _shifted(tail, known, allowed, shift, found).items():
                if not np.array_equal(array, base[value], equal_nan=array.dtype.kind in "fV"):
                    found[value].append(array)
    except InputError:  # other indices may lie outside of what they index
        return {}
    return {name: Sided(base[value], tuple(others)) for value, others in found.items() for name in wanted[value]}


def drawn(
    run: Callable[[Move], Mapping[str, Any]], want: Mapping[str, Any], step: float, names: Collection[str]
) -> dict[str, Sided]:
    """The same for the integer outputs `names` of a model that is a function, as in
    `ppuc.compiler.validation.conditioning.sensitivities_of_outputs`: what changes of its weights and inputs by one, two
    and four typical rounding errors make of the oracle's answer `want`."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for draw in range(DRAWS * len(FACTORS)):
        change = FACTORS[draw % len(FACTORS)] * step
        answer = run(partial(moved, change=change, rng=np.random.default_rng(draw)))
        for name in names:
            if np.shape(answer[name]) == np.shape(want[name]):
                found[name].append(answer[name])
    return {name: Sided(want[name], tuple(others)) for name, others in found.items() if others}


def _named(op: Op, arrays: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(value.name, array) for value, array in zip(op.results, arrays, strict=True)]


def _upstream(whole: Expanded, names: Collection[str]) -> Expanded:
    """`whole` without the ops that none of the given graph's values `names` needs."""
    wanted = {value for value, ours in whole.names.items() if not set(names).isdisjoint(ours)}
    needed, ops = set(wanted), list[Op]()
    for op in reversed(whole.graph.ops):
        if any(r.name in needed for r in op.results):
            needed |= {v.name for v in op.operands}
            ops.append(op)
    results = tuple(r for op in reversed(ops) for r in op.results if r.name in wanted)
    return replace(whole, graph=whole.graph.with_ops(reversed(ops), results=results))


def _behind(graph: Graph, first: Collection[str]) -> Graph:
    """The part of `graph` that depends on the steps whose first results are `first`; what it reads of the others are
    its parameters."""
    made, ops, read = set[str](), list[Op](), dict[str, Value]()
    for op in graph.ops:
        if op.results[0].name in first or any(v.name in made for v in op.operands):
            made |= {r.name for r in op.results}
            ops.append(op)
            read |= {v.name: v for v in op.operands if v.name not in made}
    results = tuple(v for v in graph.results if v.name in made)
    return replace(graph, params=tuple(read.values()), ops=tuple(ops), results=results)


def _reach(
    graph: Graph, feeds: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], step: float
) -> dict[str, np.ndarray]:
    """How far typical rounding errors move the elements of what steps read, by name, at the most in DRAWS runs."""
    operands = {v.name for op in graph.ops if steps(op) for v in op.operands if v.type.dtype.is_float}
    found = {name: np.zeros(base[name].shape) for name in operands}
    change = max(step, SMALLEST_CHANGE)

    def note(name: str, array: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            off = np.abs(array.astype(np.float64) - base[name].astype(np.float64)) * (step / change)
        found[name] = np.maximum(found[name], np.where(np.isfinite(off), off, 0.0))

    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        near = {name: moved(array, change, rng) for name, array in feeds.items()}
        held = dict(near)

        def on_op(
            op: Op, arrays: Sequence[np.ndarray], rng: np.random.Generator = rng, held: dict[str, np.ndarray] = held
        ) -> Sequence[np.ndarray]:
            noisy = with_noise(op, arrays, change / step, rng) if not steps(op) else _same_side(op, held, base)
            held.update((name, array) for name, array in _named(op, noisy) if name in operands)
            for name, array in _named(op, noisy):
                if name in operands:
                    note(name, array)
            return noisy

        run_graph(perturbed(graph, change, rng), near, on_op)
        for name in operands & near.keys():
            note(name, near[name])
    return found


def _same_side(op: Op, near: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The results of a step that reads operands `near` those of `base`, on the side of these."""
    results = [base[r.name] for r in op.results]
    if _whole_numbers(op):
        return results
    first = op.operands[0].name
    if op.name == "topk":
        return [np.take_along_axis(near[first], results[1], op.attrs.axis), results[1]]  # type: ignore[attr-defined]
    return [np.asarray((results[0] + (near[first] - base[first])).astype(results[0].dtype))]


def _allowed(
    graph: Graph,
    base: Mapping[str, np.ndarray],
    errors: Mapping[str, Sequence[ExpectedError]],
    reach: Mapping[str, np.ndarray],
) -> dict[str, list[np.ndarray]]:
    """For each step that reads anything inexact, by its first result, how far the elements of each operand may be
    off."""
    return {
        op.results[0].name: [
            _margin(base[v.name], e, reach.get(v.name))
            for v, e in zip(op.operands, errors[op.results[0].name], strict=True)
        ]
        for op in graph.ops
        if op.results[0].name in errors
    }


def _margin(array: np.ndarray, error: ExpectedError, reach: np.ndarray | None) -> np.ndarray:
    if reach is None or not (error.variance or error.absolute):  # an integer, or exact
        return np.zeros(array.shape)
    finite = np.where(np.isfinite(array), array, 0).astype(np.float64)
    tolerance, scale = tolerance_of(error), math.sqrt(float(np.mean(finite**2))) if array.size else 0.0
    rule = tolerance.spread(array.size) * tolerance.relative * (np.abs(finite) + scale)
    rule += tolerance.absolute if tolerance.absolute > NO_MATTER else 0.0
    own = UNIT_ROUNDOFF.get(DType.of(array.dtype), 0.0) * np.abs(finite)  # rounded to its format, or kept wider
    if not reach.any():
        return np.maximum(rule, own)
    return np.maximum(np.minimum(rule, MOST * reach), np.maximum(LEAST * reach, own))


def _shifts() -> Iterator[Shift]:
    for part in PARTS:
        yield lambda margin, part=part: part * margin  # type: ignore[misc]
    for draw in range(RANDOM):
        rng = np.random.default_rng(draw)
        if draw % 2:
            yield lambda margin, rng=rng: margin * rng.uniform(-1, 1, margin.shape)  # type: ignore[misc]
        else:
            yield lambda margin, rng=rng: margin * rng.choice((-1.0, 1.0), margin.shape)  # type: ignore[misc]


def _shifted(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    allowed: Mapping[str, Sequence[np.ndarray]],
    shift: Shift,
    wanted: Collection[str],
) -> dict[str, np.ndarray]:
    """The values `wanted` of `graph` whose steps read operands that are off."""
    read = {v.name for op in graph.ops if op.results[0].name in allowed for v in op.operands}
    held, found = dict(feeds), dict[str, np.ndarray]()

    def on_op(op: Op, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        margins = allowed.get(op.results[0].name)
        if margins is not None:
            arrays = _other_side(op, [held[v.name] for v in op.operands], arrays, margins, shift)
        held.update((name, array) for name, array in _named(op, arrays) if name in read)
        found.update((name, array) for name, array in _named(op, arrays) if name in wanted)
        return arrays

    run_graph(graph, feeds, on_op)
    return found


def _other_side(
    op: Op, operands: Sequence[np.ndarray], results: Sequence[np.ndarray], margins: Sequence[np.ndarray], shift: Shift
) -> list[np.ndarray]:
    """The results of a step whose operands are off; numbers that only the operands' own errors move stay."""
    x = operands[0]
    if op.name in _COMPARING:
        margin = np.broadcast_to(sum(margins), np.broadcast_shapes(x.shape, operands[1].shape))
        off = shift(margin)
        with np.errstate(all="ignore"):
            apart = x.astype(np.float64) - operands[1].astype(np.float64)
        if op.name in ("eq", "ne"):
            return [np.where((np.abs(apart) <= margin) & (margin > 0), (off > 0) == (op.name == "eq"), results[0])]
        near = _reference(op, apart + off, np.zeros(()))
        return [np.where(np.isfinite(apart), near[0], results[0])]
    off = shift(margins[0])
    if op.name == "topk":
        (_, indices) = _reference(op, _plus(x, off))
        return [np.take_along_axis(x, indices, op.attrs.axis), indices]  # type: ignore[attr-defined]
    near = _reference(op, _plus(x, off), *operands[1:])
    if op.name in ("mod", "fmod"):
        jumped = np.abs(near[0].astype(np.float64) - results[0].astype(np.float64)) > 2 * np.abs(off)
        return [np.where(jumped, near[0], results[0]).astype(results[0].dtype)]
    return [a.astype(r.dtype) for a, r in zip(near, results, strict=True)]


def _reference(op: Op, *operands: np.ndarray) -> Sequence[np.ndarray]:
    reference = OPS[op.name].reference
    assert reference is not None
    with np.errstate(all="ignore"):
        arrays: Sequence[np.ndarray] = reference(op.attrs, *operands)
    return arrays


def _plus(x: np.ndarray, off: np.ndarray) -> np.ndarray:
    """The sum; of numbers in 16 bits in f32, as kernels have them."""
    return np.asarray((x.astype(np.float64) + off).astype(x.dtype if x.dtype.itemsize >= 4 else np.float32))

"""How much error a correct program may show, from number formats and reduction lengths alone.

The rule. Rounding errors are taken as independent and relative to the size of what is rounded (the probabilistic model
of Higham & Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019: a sum of K terms in precision u errs
by about sqrt(K) u, not K u). Each op adds to the error variance of its result, on the longest path from the inputs:

    contraction of length K, operands rounded to a format of unit roundoff u_t:   2 u_t^2 + K u_f32^2
    reduction of length K:                                                        K u_f32^2
    other float arithmetic, special functions good to 4 units:                    (4 u_f32)^2
    every result stored in a format narrower than f32:                            u_store^2
    other ops on an operand of a contraction, which is stored in its format:      u_t^2

Of operands in formats of 8 bits and less only u_t^2 / 3 counts: an error that is uniform within u of a power of
two has that mean square, and of any other number a smaller one. These errors dwarf all that the rule leaves out, so
they need no more room than SAFETY gives. An op's operands contribute the largest of their variances. A tensor agrees
with its reference when

    rms(error) <= r rms(reference),                 r = 2 sqrt(variance)
    |error_i|  <= s r (|reference_i| + rms(reference)),   s = 1 + sqrt(2 ln 2n) for n elements

s being the expected largest of n normal draws plus one: a single wrong element of a large tensor fails although it
hardly moves the rms. With all arithmetic in f32, r is capped at 90 dB. Integers must be equal when all arithmetic is
f32; with narrower formats a share r of them may differ (a comparison or an argmax may flip).

The reference errs too. ONNX Runtime computes the logistic function and tanh to u_f32 of one, not of their values: that
much is tolerated of their results, and of what only moves, adds up or scales them. Its Fourier transforms of N points,
N not a power of two, go by way of a chirp (Bluestein, "A linear filtering approach to the computation of the discrete
Fourier transform", 1970) of phases pi k^2 / N, k = 0 .. N, in f32: three factors of mean square error (pi N u_f32)^2 /
15.

What the rule leaves out is conditioning: a model that amplifies a change of its weights amplifies rounding as well.
That is measured (ppuc.compiler.validation.conditioning) when a tensor breaks the rule, as is how many integers change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppuc.compiler.precisions import PRECISIONS
from ppuc.ir.graph import Graph, Op
from ppuc.ir.ops import OPS, Kind
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType

UNIT_ROUNDOFF: dict[DType, float] = {
    DType.F64: 2.0**-53,
    DType.F32: 2.0**-24,
    DType.F16: 2.0**-11,
    DType.BF16: 2.0**-8,
    DType.F8E4M3: 2.0**-4,
    DType.F8E5M2: 2.0**-3,
    DType.F4E2M1: 2.0**-2,
}
"""Largest relative error of rounding to nearest: 2^-p for p significant bits."""

SAFETY = 2.0
FP32_FLOOR = 10 ** (-90 / 20)
_SUMMING = (Kind.CONTRACTION, Kind.REDUCTION, Kind.COMPOSITE)
_CONTRACTING_COMPOSITES = ("attention", "conv_transpose", "deform_conv", "gru", "lstm", "resize", "rnn")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`relative` bounds rms(error) / rms(reference); `absolute` is an error that is always tolerated (denormals);
    `mismatch_share` is the part of an integer tensor that may differ, `flips` that which is expected to; `largest` the
    error that an element may have, where that is known; `rms` the root mean square of the error that is always
    tolerated of a tensor (None: `absolute`)."""

    relative: float
    mismatch_share: float = 0.0
    absolute: float = 1e-30
    largest: float | None = None
    rms: float | None = None
    flips: float = 0.0

    def mismatches(self, elements: int) -> int:
        """How many of `elements` integers may differ. Of as many as are expected, a count scatters by its root: three
        of those more, and none where the chance of a first one is under one in thirty."""
        expected = self.flips * elements
        return max(math.floor(self.mismatch_share * elements), math.floor(expected + 3 * math.sqrt(expected) + 0.4))

    def spread(self, elements: int) -> float:
        """How far the largest of `elements` errors may lie above the rms bound."""
        return 1.0 + math.sqrt(2.0 * math.log(2.0 * max(elements, 1)))


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """Variance of the relative error, whether a format narrower than f32 contributed to it, an error that does not
    shrink with the value, and the variance that the reference's own error has."""

    variance: float = 0.0
    narrow: bool = False
    absolute: float = 0.0
    reference: float = 0.0


NO_ERROR = ExpectedError()
ExactResults = Callable[[Op, Sequence[ExpectedError]], bool]


def tolerances(graph: Graph, precision: str, transforms: Collection[str] = ()) -> dict[str, Tolerance]:
    """The tolerance of every value of `graph` (parameters and constants: none but storage) computed at `precision`.
    `transforms` are the ONNX nodes that the reference computes as Fourier transforms."""
    return {name: tolerance_of(e) for name, e in expected_errors(graph, precision, {}, transforms).items()}


def expected_errors(
    graph: Graph, precision: str, given: Mapping[str, ExpectedError], transforms: Collection[str] = ()
) -> dict[str, ExpectedError]:
    """The expected error of every value that `graph` computes at `precision`; `given` are those of its parameters."""
    return _propagated(graph, precision, given, transforms)[0]


def errors_read(
    graph: Graph,
    precision: str,
    given: Mapping[str, ExpectedError],
    transforms: Collection[str],
    exact_results: ExactResults,
) -> list[list[ExpectedError]]:
    """For each op of `graph`, in order, the expected error of each operand as the op reads it: as it was computed, and
    stored where a contraction reads it too; `given` are those of its parameters. `exact_results` says of which ops the
    results have none, with these errors of their operands."""
    return _propagated(graph, precision, given, transforms, exact_results)[1]


def _propagated(
    graph: Graph,
    precision: str,
    given: Mapping[str, ExpectedError],
    transforms: Collection[str],
    exact_results: ExactResults = lambda op, operands: False,
) -> tuple[dict[str, ExpectedError], list[list[ExpectedError]]]:
    errors, constants, read = dict(given), graph.constants(), list[list[ExpectedError]]()
    tensor_format, storage = PRECISIONS[precision].rounding_type, PRECISIONS[precision].storage_type
    stored = _stored_for_contractions(graph) if storage is not None else frozenset()
    for op in graph.ops:
        operands = [errors.get(v.name, NO_ERROR) for v in op.operands]
        if storage is not None and not contracts(op) and OPS[op.name].kind is not Kind.VIEW:
            operands = [
                replace(e, variance=e.variance + _stored(storage), narrow=True) if v.name in stored else e
                for e, v in zip(operands, op.operands, strict=True)
            ]
        read.append(operands)
        if exact_results(op, operands):
            continue
        inherited = inherited_error(operands)
        added, is_narrow = added_by(op, tensor_format)
        reference = inherited.reference + _of_reference(op, transforms)
        approximate = op.name in ("sigmoid", "tanh")
        absolute = UNIT_ROUNDOFF[DType.F32] if approximate else inherited.absolute * _gain(op, constants)
        for result in op.results:
            narrow = inherited.narrow or is_narrow
            errors[result.name] = ExpectedError(inherited.variance + added, narrow, absolute, reference)
    views = {op.results[0].name for op in graph.ops if OPS[op.name].kind is Kind.VIEW}
    for name in stored & views & {v.name for v in graph.results}:  # copied from what is stored
        errors[name] = replace(errors[name], variance=errors[name].variance + _stored(storage), narrow=True)
    return errors, read


def _stored(storage: DType | None) -> float:
    """Variance that storing in a format adds; None keeps types."""
    return 0.0 if storage is None else UNIT_ROUNDOFF[storage] ** 2


def _stored_for_contractions(graph: Graph) -> frozenset[str]:
    """Values that are computed, read by a contraction, and therefore stored in its format for all that reads them,
    with the views of them. What the model takes and gives keeps its type."""
    produced = {r.name: op for op in graph.ops for r in op.results if OPS[op.name].kind is not Kind.CONSTANT}
    same = _first_of_equals(graph)
    views = {name: op for name, op in produced.items() if OPS[op.name].kind is Kind.VIEW}

    def base(name: str, *ops: str) -> str:
        while name in views and (not ops or views[name].name in ops):
            name = views[name].operands[0].name
        return same.get(name, name)

    read = {base(v.name) for op in graph.ops if contracts(op) for v in op.operands if v.type.dtype.is_float}
    kept = {base(v.name, "reshape") for v in graph.results}  # other views of a result are copied into it
    stored = read & produced.keys() - kept
    return frozenset(name for name in produced if base(name) in stored)


def _first_of_equals(graph: Graph) -> dict[str, str]:
    """Value -> the first value of `graph` that the same ops compute from the same operands, of which a program keeps
    one."""
    first: dict[str, str] = {}
    seen: dict[Hashable, tuple[str, ...]] = {}
    for op in graph.ops:
        names = tuple(r.name for r in op.results)
        if op.body is None and OPS[op.name].kind is not Kind.CONSTANT:
            key = (op.name, op.attrs, tuple(first.get(v.name, v.name) for v in op.operands))
            names = seen.setdefault(key, names)
        first |= {r.name: name for r, name in zip(op.results, names, strict=True)}
    return first


def contracts(op: Op) -> bool:
    """Whether `op` is a contraction, by itself or inside."""
    return OPS[op.name].kind is Kind.CONTRACTION or op.name in _CONTRACTING_COMPOSITES


def _gain(op: Op, constants: Mapping[str, Resource]) -> float:
    """How much an absolute error grows in ops that move, add up or scale; 0 for others, which pass on relative ones."""
    if OPS[op.name].kind in (Kind.VIEW, Kind.MOVE):
        return 1.0
    if isinstance(op.attrs, ReduceAttrs):
        return {"sum": float(reduction_length(op)), "max": 1.0, "min": 1.0}.get(op.attrs.kind, 0.0)
    known = [constants[v.name] for v in op.operands if v.name in constants]
    if op.name == "mul" and known and known[0].type.elements == 1:
        return float(np.abs(known[0].array()).reshape(()))
    return 0.0


def _of_reference(op: Op, transforms: Collection[str]) -> float:
    """Variance of the error of ONNX Runtime's Fourier transforms, which are matmuls and convolutions here."""
    if OPS[op.name].kind is not Kind.CONTRACTION or not any(node in transforms for node in op.loc):
        return 0.0
    points = reduction_length(op)
    return 0.0 if points & (points - 1) == 0 else (math.pi * points * UNIT_ROUNDOFF[DType.F32]) ** 2 / 5


def inherited_error(operands: Sequence[ExpectedError]) -> ExpectedError:
    """What an op's operands contribute to the error of its results."""
    return ExpectedError(
        max((e.variance for e in operands), default=0.0),
        any(e.narrow for e in operands),
        max((e.absolute for e in operands), default=0.0),
        max((e.reference for e in operands), default=0.0),
    )


def host_error(operands: Sequence[ExpectedError], elements: int) -> ExpectedError:
    """The error of a result of a host node whose largest operand has `elements`: f32 arithmetic with sums of at most as
    many terms, on operands with these errors."""
    inherited = inherited_error(operands)
    u32 = UNIT_ROUNDOFF[DType.F32]
    return ExpectedError(inherited.variance + max(elements, 16) * u32**2, inherited.narrow)


def tolerance_of(error: ExpectedError) -> Tolerance:
    """The tolerance that an expected error makes. The cap on f32 does not hold for what the reference errs."""
    tolerance = _tolerance(error.variance, error.narrow)
    relative = math.hypot(tolerance.relative, SAFETY * math.sqrt(error.reference))
    return replace(tolerance, relative=relative, absolute=max(tolerance.absolute, SAFETY * error.absolute))


def typical_step(graph: Graph, precision: str, transforms: Collection[str] = ()) -> float:
    """The root mean square of the relative errors that contractions and reductions of `graph` add at `precision`, or
    other ops if there are none.

    Rounding to unit roundoff u errs by u at most and by u / sqrt(6) in the mean: the error is uniform within u of the
    mantissa's scale (mean square u^2 / 3), the mantissa uniform in [1, 2) (mean inverse square 1 / 2)."""
    tensor_format = PRECISIONS[precision].rounding_type
    summing = [op for op in graph.ops if OPS[op.name].kind in _SUMMING]
    added = [added_by(op, tensor_format)[0] + _of_reference(op, transforms) for op in summing or graph.ops]
    rounding = [variance for variance in added if variance > 0] or [UNIT_ROUNDOFF[DType.F32] ** 2]
    return math.sqrt(sum(rounding) / len(rounding) / 6)


def exact() -> Tolerance:
    """For values that nothing rounds; only the order of f32 arithmetic may differ."""
    return _tolerance(0.0, False)


def stored_as(dtype: DType, tolerance: Tolerance) -> Tolerance:
    """`tolerance` for a tensor that was rounded once more to be stored as `dtype`."""
    unit = UNIT_ROUNDOFF.get(dtype, 0.0)
    if unit <= UNIT_ROUNDOFF[DType.F32]:
        return tolerance
    return replace(tolerance, relative=math.hypot(tolerance.relative, SAFETY * unit))


def _tolerance(variance: float, narrow: bool) -> Tolerance:
    relative = SAFETY * math.sqrt(max(variance, UNIT_ROUNDOFF[DType.F32] ** 2))
    return Tolerance(relative, relative) if narrow else Tolerance(min(relative, FP32_FLOOR))


def added_by(op: Op, tensor_format: DType | None = None) -> tuple[float, bool]:
    """Variance that `op` adds, and whether it rounds to something narrower than f32."""
    kind = OPS[op.name].kind
    if kind in (Kind.VIEW, Kind.MOVE, Kind.CONSTANT, Kind.STRUCTURE) or not op.results[0].type.dtype.is_float:
        return 0.0, False
    u32 = UNIT_ROUNDOFF[DType.F32]
    stored = op.results[0].type.dtype
    variance = max(reduction_length(op) * u32**2, (4 * u32) ** 2)
    narrow = UNIT_ROUNDOFF[stored] > u32
    if narrow:
        variance += UNIT_ROUNDOFF[stored] ** 2
    if contracts(op):
        operand = tensor_format or op.operands[0].type.dtype
        stages = 2 if op.name == "attention" else 1
        if operand.is_float and UNIT_ROUNDOFF[operand] > u32:
            share = 1 / 3 if operand.bits <= 8 else 1.0
            variance += stages * 2 * share * UNIT_ROUNDOFF[operand] ** 2
            narrow = True
    return variance, narrow


def reduction_length(op: Op) -> int:
    """Terms of the longest sum behind one element of `op`'s result: from its indexing, from what the composite is, or
    bounded by the elements of its first operand outside the leading axis."""
    record = OPS[op.name]
    if record.indexing is not None:
        pattern = record.pattern(op)  # None: a movement of elements
        return 1 if pattern is None else math.prod(d.size for d in pattern.dims if d.reduced)
    shapes = [v.type.dims for v in op.operands]
    if op.name in _LENGTHS:
        return max(1, _LENGTHS[op.name](op, shapes))
    return max(1, math.prod(shapes[0][1:])) if shapes else 1


def _axis_length(op: Op, shapes: Sequence[tuple[int, ...]]) -> int:
    axis: int = op.attrs.axis  # type: ignore[attr-defined]
    return math.prod(shapes[0][axis:])


def _recurrent_length(op: Op, shapes: Sequence[tuple[int, ...]]) -> int:
    """A state passes through every step, each a sum over inputs and state."""
    return shapes[0][0] * (shapes[1][1] + shapes[2][1])


WEIGHTS = 16
"""What weights that are computed in f32 too, good to 4 units, add to the variance of a weighted sum, in u_f32^2."""

_LENGTHS: dict[str, Callable[[Op, Sequence[tuple[int, ...]]], int]] = {
    "attention": lambda op, shapes: shapes[0][-1] + shapes[1][-2],
    "batch_norm": lambda op, shapes: 1,
    "conv_transpose": lambda op, shapes: math.prod(shapes[1]) // max(shapes[1][1], 1),
    "deform_conv": lambda op, shapes: math.prod(shapes[1][1:]),
    "dequantize": lambda op, shapes: 1,
    "grid_sample": lambda op, shapes: 4 ** (len(shapes[0]) - 2),
    "gru": _recurrent_length,
    "layer_norm": _axis_length,
    "lstm": _recurrent_length,
    "max_roi_pool": lambda op, shapes: 1,
    "resize": lambda op, shapes: 4 ** max(len(shapes[0]) - 2, 1) + WEIGHTS,
    "rms_norm": _axis_length,
    "rnn": _recurrent_length,
    "roi_align": lambda op, shapes: 4 * op.attrs.ratio**2,  # type: ignore[attr-defined]
    "topk": lambda op, shapes: 1,
}
"""Composites whose sums are shorter than the bound. Resizing and sampling take at most four taps an axis."""

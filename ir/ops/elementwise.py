"""Elementwise ops, generated from one literal table, and `cast`.

A row gives an op's name, formula, numpy function and supported element types. The function works on arrays in compute
dtypes (f32, f64, ints, bool). Vector programs run the same function, so graph and kernel agree bit for bit.

Invariants: all operands of an op have one dtype (a select's condition is bool) and broadcast as in numpy; floats
narrower than f32 are computed in f32 and rounded once; no function warns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ppuc.ir.encode import ENCODED, LARGE, encode
from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, broadcast_access, dim_names, register
from ppuc.ir.ops.erf import erf
from ppuc.ir.types import DType, TensorType, broadcast_shapes

FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8E4M3, DType.F8E5M2})
"""Element types of floating-point ops. f8e8m0 and f4e2m1 are storage formats: they can only be cast and selected."""
INTS = frozenset(d for d in DType if d.is_integer)
NUMBERS = FLOATS | INTS
BOOLS = frozenset({DType.BOOL})
ANY = frozenset(DType)


def compute_dtype(dtype: DType) -> DType:
    """The dtype that arithmetic on `dtype` runs in: f32 for narrower floats, else `dtype` itself."""
    return DType.F32 if dtype.is_float and dtype.bits < 32 else dtype


def convert(array: np.ndarray, to: DType, saturate: bool = True) -> np.ndarray:
    """`array` as `to`, same shape: float -> int truncates toward zero (NaN and values out of range are unspecified,
    as in ONNX), anything -> bool is `!= 0`, float -> float rounds to nearest even. Values beyond the range of an f8
    or f4 type, infinities included, become its largest finite value when `saturate`; else what the format has for
    overflow."""
    source = DType.of(array.dtype)
    if source is to:
        return array
    with np.errstate(all="ignore"):
        work = array.astype(np.float32) if compute_dtype(source) is not source else array
        if work.dtype == np.float32 and work.size >= LARGE and to in ENCODED:
            return encode(work, to, saturate).view(to.numpy)
        if to.is_float and to.bits <= 8:
            work = work if work.dtype == np.float64 else work.astype(np.float32)
            if saturate:
                limits = ml_dtypes.finfo(to.numpy)  # type: ignore[no-untyped-call]
                work = np.clip(work, float(limits.min), float(limits.max))
        elif to is DType.BF16:
            work = work.astype(np.float32)
        return work.astype(to.numpy)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "f":
        return np.asarray(np.divide(x, y))
    return np.asarray(np.floor_divide(x - np.fmod(x, y), y))


def _power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "f":
        return np.asarray(np.power(x, y))
    magnitude = np.asarray(np.power(x, np.maximum(y, 0)))
    if x.dtype.kind == "u":
        return magnitude
    inverse = np.where(x == 1, 1, np.where(x == -1, 1 - 2 * (y & 1), 0)).astype(x.dtype)
    return np.where(y < 0, inverse, magnitude)


def _isinf(x: np.ndarray, positive: bool = True, negative: bool = True) -> np.ndarray:
    return np.asarray(((x == np.inf) & positive) | ((x == -np.inf) & negative))


@dataclass(frozen=True, slots=True)
class IsinfAttrs(Attrs):
    """Which infinities count."""

    positive: bool = True
    negative: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One elementwise op. `dtypes` are those of its operands (except a select's condition); `test` if the result is
    bool."""

    name: str
    operands: str
    formula: str
    function: Callable[..., np.ndarray]
    dtypes: frozenset[DType]
    test: bool = False
    attrs: type[Attrs] = Attrs


TABLE = (
    Row("neg", "x", "-x", np.negative, NUMBERS),
    Row("abs", "x", "|x|", np.abs, NUMBERS),
    Row("sign", "x", "-1, 0 or 1", np.sign, NUMBERS),
    Row("relu", "x", "max(x, 0)", lambda x: np.maximum(x, 0), NUMBERS),
    Row("exp", "x", "e**x", np.exp, FLOATS),
    Row("expm1", "x", "e**x - 1", np.expm1, FLOATS),
    Row("log", "x", "ln x", np.log, FLOATS),
    Row("log1p", "x", "ln(1 + x)", np.log1p, FLOATS),
    Row("sqrt", "x", "x**(1/2)", np.sqrt, FLOATS),
    Row("rsqrt", "x", "x**(-1/2)", lambda x: 1 / np.sqrt(x), FLOATS),
    Row("reciprocal", "x", "1 / x", lambda x: 1 / x, FLOATS),
    Row("floor", "x", "largest integer <= x", np.floor, FLOATS),
    Row("ceil", "x", "smallest integer >= x", np.ceil, FLOATS),
    Row("round", "x", "nearest integer, ties to even", np.rint, FLOATS),
    Row("sin", "x", "sin x", np.sin, FLOATS),
    Row("cos", "x", "cos x", np.cos, FLOATS),
    Row("tan", "x", "tan x", np.tan, FLOATS),
    Row("asin", "x", "asin x", np.arcsin, FLOATS),
    Row("acos", "x", "acos x", np.arccos, FLOATS),
    Row("atan", "x", "atan x", np.arctan, FLOATS),
    Row("sinh", "x", "sinh x", np.sinh, FLOATS),
    Row("cosh", "x", "cosh x", np.cosh, FLOATS),
    Row("tanh", "x", "tanh x", np.tanh, FLOATS),
    Row("asinh", "x", "asinh x", np.arcsinh, FLOATS),
    Row("acosh", "x", "acosh x", np.arccosh, FLOATS),
    Row("atanh", "x", "atanh x", np.arctanh, FLOATS),
    Row("erf", "x", "2 / sqrt(pi) * integral of e**(-t*t) for t in 0..x", erf, FLOATS),
    # exp(-x) may overflow to infinity; 1 / infinity = 0 is still the right answer.
    Row("sigmoid", "x", "1 / (1 + e**-x)", lambda x: 1 / (1 + np.exp(-x)), FLOATS),
    Row("isnan", "x", "x is not a number", np.isnan, FLOATS, test=True),
    Row("isinf", "x", "x = inf and positive or x = -inf and negative", _isinf, FLOATS, test=True, attrs=IsinfAttrs),
    Row("not", "x", "not x", np.logical_not, BOOLS),
    Row("bitnot", "x", "~x", np.bitwise_not, INTS),
    Row("add", "x, y", "x + y", np.add, NUMBERS),
    Row("sub", "x, y", "x - y", np.subtract, NUMBERS),
    Row("mul", "x, y", "x * y", np.multiply, NUMBERS),
    Row("div", "x, y", "x / y; of ints truncated toward zero", _divide, NUMBERS),
    Row("mod", "x, y", "x - floor(x / y) * y", np.mod, NUMBERS),
    Row("fmod", "x, y", "x - trunc(x / y) * y", np.fmod, NUMBERS),
    Row("pow", "x, y", "x**y; of ints truncated toward zero", _power, NUMBERS),
    Row("min", "x, y", "smaller of x and y; NaN if either is", np.minimum, NUMBERS),
    Row("max", "x, y", "larger of x and y; NaN if either is", np.maximum, NUMBERS),
    Row("and", "x, y", "x and y", np.logical_and, BOOLS),
    Row("or", "x, y", "x or y", np.logical_or, BOOLS),
    Row("xor", "x, y", "x != y", np.logical_xor, BOOLS),
    Row("bitand", "x, y", "x & y", np.bitwise_and, INTS),
    Row("bitor", "x, y", "x | y", np.bitwise_or, INTS),
    Row("bitxor", "x, y", "x ^ y", np.bitwise_xor, INTS),
    Row("shl", "x, y", "x << y", np.left_shift, INTS),
    Row("shr", "x, y", "x >> y", np.right_shift, INTS),
    Row("eq", "x, y", "x = y", np.equal, NUMBERS | BOOLS, test=True),
    Row("ne", "x, y", "x != y", np.not_equal, NUMBERS | BOOLS, test=True),
    Row("lt", "x, y", "x < y", np.less, NUMBERS, test=True),
    Row("le", "x, y", "x <= y", np.less_equal, NUMBERS, test=True),
    Row("gt", "x, y", "x > y", np.greater, NUMBERS, test=True),
    Row("ge", "x, y", "x >= y", np.greater_equal, NUMBERS, test=True),
    Row("select", "condition, x, y", "x where condition, else y", np.where, ANY),
)

ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {row.name: row.function for row in TABLE}
"""Op name -> numpy function on arrays in compute dtypes; `isinf` also takes `positive` and `negative`."""


def evaluate(name: str, *arrays: np.ndarray, **flags: bool) -> np.ndarray:
    """Op `name` on broadcastable arrays in compute dtypes (f32, f64, ints, bool); the result is in the operands'
    dtype, or bool for tests. `flags` are the attributes of `isinf`. Raises KeyError for a name that is not in
    ELEMENTWISE."""
    with np.errstate(all="ignore"):
        return np.asarray(ELEMENTWISE[name](*arrays, **flags))


def _infer(row: Row) -> Callable[[Attrs, Sequence[TensorType]], tuple[TensorType, ...]]:
    names = row.operands.split(", ")

    def infer(attrs: Attrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        if len(types) != len(names):
            raise ValueError(f"{row.name} takes {len(names)} operand{'s' * (len(names) > 1)} (got {len(types)})")
        data = types[1:] if row.name == "select" else types
        if row.name == "select" and types[0].dtype is not DType.BOOL:
            raise ValueError(f"the condition of select must be bool (got {types[0]})")
        dtype = data[0].dtype
        if any(t.dtype is not dtype for t in data):
            raise ValueError(f"operands of {row.name} must have one element type (got {', '.join(map(str, data))})")
        if dtype not in row.dtypes:
            raise ValueError(f"{row.name} is not defined for {dtype} (got {', '.join(map(str, data))})")
        return (TensorType(DType.BOOL if row.test else dtype, broadcast_shapes(*(t.dims for t in types))),)

    return infer


def _reference(row: Row) -> Callable[..., tuple[np.ndarray, ...]]:
    def reference(attrs: Attrs, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        dtype = DType.of(arrays[-1].dtype)
        compute = compute_dtype(dtype)
        if row.name == "select" or compute is dtype:
            work: Sequence[np.ndarray] = arrays
        else:
            work = [a.astype(compute.numpy) for a in arrays]
        flags = {"positive": attrs.positive, "negative": attrs.negative} if isinstance(attrs, IsinfAttrs) else {}
        result = evaluate(row.name, *work, **flags)
        return (result if row.test else convert(result, dtype),)

    return reference


def _indexing(attrs: Attrs, types: Sequence[TensorType]) -> Indexing:
    shape = broadcast_shapes(*(t.dims for t in types))
    dims = tuple(IterDim(n, s) for n, s in zip(dim_names(len(shape)), shape, strict=True))
    reads = tuple(broadcast_access(t.dims, shape) for t in types)
    return Indexing(dims, reads, (broadcast_access(shape, shape),))


for _row in TABLE:
    register(
        OpDef(
            name=_row.name,
            formula=f"result = {_row.formula}",
            kind=Kind.ELEMENTWISE,
            operands=_row.operands,
            attrs=_row.attrs,
            infer=_infer(_row),
            reference=_reference(_row),
            indexing=_indexing,
        )
    )


@dataclass(frozen=True, slots=True)
class CastAttrs(Attrs):
    """`to` is the result's dtype; `saturate` matters for f8 and f4 only."""

    to: DType
    saturate: bool = True


def _infer_cast(attrs: CastAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if len(types) != 1:
        raise ValueError(f"cast takes 1 operand (got {len(types)})")
    return (types[0].with_dtype(attrs.to),)


register(
    OpDef(
        name="cast",
        formula="result = x as `to`: floats round to nearest even, to ints truncate, to bool compare with 0",
        kind=Kind.ELEMENTWISE,
        operands="x",
        attrs=CastAttrs,
        infer=_infer_cast,
        reference=lambda attrs, x: (convert(np.asarray(x), attrs.to, attrs.saturate),),
        indexing=_indexing,
    )
)

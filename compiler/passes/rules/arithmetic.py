"""Rewrites of elementwise arithmetic: neutral elements, chains of constants, cheaper forms of the same function.

Integer rewrites are exact. Float rewrites are exact up to one rounding: constant factors are multiplied together, but
constant terms are not added. Everything else is exact except for the sign of zero.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from ppuc.compiler.passes.rewriter import Rule, Rules, Walk
from ppuc.compiler.passes.rules.views import drop_expand
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.base import Kind
from ppuc.ir.ops.elementwise import FLOATS, INTS, CastAttrs
from ppuc.ir.ops.view import ExpandAttrs
from ppuc.ir.scaling import factors_merge
from ppuc.ir.types import DType, broadcast_shapes

_COMMUTATIVE = ("add", "mul", "min", "max", "and", "or", "xor", "bitand", "bitor", "bitxor", "eq", "ne")
_NEUTRAL: dict[str, Any] = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1, "and": True, "or": False, "xor": False}
_NEUTRAL |= {"bitor": 0, "bitxor": 0, "shl": 0, "shr": 0}
_RECIPROCAL_ROWS = 4
"""x / sqrt(v) becomes x * rsqrt(v) when v has at least this many times fewer elements than x."""


def _small(w: Walk, value: Value) -> np.ndarray | None:
    """The values of a constant of at most 64 Ki elements."""
    resource = w.resource(value)
    return None if resource is None or value.type.elements > 1 << 16 else resource.array()


def constant_second(w: Walk, op: Op) -> Value | None:
    """add(c, x) -> add(x, c)."""
    x, y = op.operands
    if w.resource(x) is None or w.resource(y) is not None:
        return None
    return w.emit(op.name, y, x, attrs=op.attrs)


def neutral_operand(w: Walk, op: Op) -> Value | None:
    """x + 0, x - 0, x * 1, x / 1, x ** 1, x and true, x or false -> x."""
    x, y = op.operands
    if x.type != op.result.type or (number := w.number(y)) is None:
        return None
    return x if number == _NEUTRAL[op.name] else None


def deciding_operand(w: Walk, op: Op) -> Value | None:
    """x and false -> false; x or true -> true."""
    number = w.number(op.operands[1])
    if number is None or bool(number) is (op.name == "and"):
        return None
    constant = op.operands[1]
    if constant.type == op.result.type:
        return constant
    return w.emit("expand", constant, attrs=ExpandAttrs(op.result.type.dims))


def splat_as_scalar(w: Walk, op: Op) -> Value | None:
    """A constant of one repeated value -> a rank-0 constant, when the result keeps its shape."""
    operands = list(op.operands)
    for i, value in enumerate(operands):
        if value.type.rank == 0 or w.number(value) is None:
            continue
        shapes = [v.type.dims for v in (*operands[:i], *operands[i + 1 :])]
        if shapes and broadcast_shapes(*shapes) == op.result.type.dims:
            resource = w.resource(value)
            assert resource is not None
            operands[i] = w.const(resource.array().reshape(-1)[:1].reshape(()))
    return None if tuple(operands) == op.operands else w.emit(op.name, *operands, attrs=op.attrs)


def constant_chain(w: Walk, op: Op) -> Value | None:
    """(x * c1) * c2 -> x * (c1 * c2) for f32 and integers; (x + c1) + c2 -> x + (c1 + c2) for integers."""
    dtype = op.result.type.dtype
    if dtype not in INTS and not (op.name == "mul" and dtype in (DType.F32, DType.F64)):
        return None
    inner = w.sole(op.operands[0], op.name)
    outer_constant = _small(w, op.operands[1])
    if inner is None or outer_constant is None or (inner_constant := _small(w, inner.operands[1])) is None:
        return None
    if dtype in FLOATS and not factors_merge(inner_constant, outer_constant):
        return None
    w.absorb(inner)
    return w.emit(op.name, inner.operands[0], w.emit(op.name, inner.operands[1], op.operands[1]))


def subtract_constant(w: Walk, op: Op) -> Value | None:
    """x - c -> x + (-c)."""
    if op.result.type.dtype not in FLOATS or w.resource(op.operands[1]) is None:
        return None
    return w.emit("add", op.operands[0], w.emit("neg", op.operands[1]))


def add_negated(w: Walk, op: Op) -> Value | None:
    """x + (-y) -> x - y, when y is not constant."""
    for x, y in (op.operands, op.operands[::-1]):
        inner = w.sole(y, "neg")
        if inner is not None:
            w.absorb(inner)
            return w.emit("sub", x, inner.operands[0])
    return None


def divide_by_power_of_two(w: Walk, op: Op) -> Value | None:
    """x / 2**n -> x * 2**-n."""
    number = w.number(op.operands[1])
    if op.result.type.dtype not in (DType.F32, DType.F64) or not number or not math.isfinite(number):
        return None
    if abs(math.frexp(number)[0]) != 0.5 or not 2.0**-100 < abs(number) < 2.0**100:
        return None
    return w.emit("mul", op.operands[0], _like(w, op.operands[1], 1 / number))


def scale_of_error_function(w: Walk, op: Op) -> Value | None:
    """erf(x / c) -> erf(x * (1/c)): a rounding of the argument changes the result by about as much."""
    inner = w.sole(op.operands[0], "div")
    number = None if inner is None else w.number(inner.operands[1])
    if inner is None or not number or op.result.type.dtype is not DType.F32 or not 2.0**-100 < abs(number) < 2.0**100:
        return None
    w.absorb(inner)
    return w.emit("erf", w.emit("mul", inner.operands[0], _like(w, inner.operands[1], 1 / number)))


_GATES = ("erf", "tanh")


def sum_of_gate(w: Walk, op: Op) -> Value | None:
    """x (gate + 1) -> x gate + x, one operation of a lane instead of two: the end of a gelu."""
    if op.result.type.dtype is not DType.F32:
        return None
    for x, total in (op.operands, op.operands[::-1]):
        plus = w.sole(total, "add")
        if plus is None or x.type != op.result.type or w.number(plus.operands[1]) != 1:
            continue
        if w.producer(plus.operands[0], *_GATES) is not None:
            w.absorb(plus)
            return w.emit("add", w.emit("mul", x, plus.operands[0]), x)
    return None


def _like(w: Walk, constant: Value, number: float) -> Value:
    return w.const(np.full(constant.type.dims, number, constant.type.dtype.numpy))


def divide_one(w: Walk, op: Op) -> Value | None:
    """1 / x -> reciprocal(x)."""
    x, y = op.operands
    if op.result.type.dtype not in FLOATS or y.type != op.result.type or w.number(x) != 1:
        return None
    return w.emit("reciprocal", y)


def divide_by_root(w: Walk, op: Op) -> Value | None:
    """x / sqrt(v) -> x * rsqrt(v), when v is much smaller than x."""
    x, y = op.operands
    inner = w.sole(y, "sqrt")
    if inner is None or op.result.type.elements < _RECIPROCAL_ROWS * y.type.elements:
        return None
    w.absorb(inner)
    return w.emit("mul", x, w.emit("rsqrt", inner.operands[0]))


def reciprocal_of_root(w: Walk, op: Op) -> Value | None:
    """reciprocal(sqrt(x)) -> rsqrt(x)."""
    inner = w.sole(op.operands[0], "sqrt")
    if inner is None:
        return None
    w.absorb(inner)
    return w.emit("rsqrt", inner.operands[0])


def root_of_reciprocal(w: Walk, op: Op) -> Value | None:
    """sqrt(reciprocal(x)) -> rsqrt(x)."""
    inner = w.sole(op.operands[0], "reciprocal")
    if inner is None:
        return None
    w.absorb(inner)
    return w.emit("rsqrt", inner.operands[0])


def known_power(w: Walk, op: Op) -> Value | None:
    """x ** n for n = 2, 3, 1/2, -1/2, -1 -> products, sqrt, rsqrt, reciprocal."""
    x = op.operands[0]
    if x.type != op.result.type or (n := w.number(op.operands[1])) is None:
        return None
    if n in (2, 3):
        square = w.emit("mul", x, x)
        return square if n == 2 else w.emit("mul", square, x)
    name = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(n) if x.type.dtype in FLOATS else None
    return None if name is None else w.emit(name, x)


def maximum_with_zero(w: Walk, op: Op) -> Value | None:
    """max(x, 0) -> relu(x)."""
    x, y = op.operands
    return w.emit("relu", x) if x.type == op.result.type and w.number(y) == 0 else None


def _involution(w: Walk, op: Op) -> Value | None:
    """f(f(x)) -> x for neg, not and bitnot."""
    inner = w.producer(op.operands[0], op.name)
    return None if inner is None else inner.operands[0]


def _idempotent(w: Walk, op: Op) -> Value | None:
    """f(f(x)) -> f(x) for relu, abs, floor, ceil and round."""
    inner = w.producer(op.operands[0], op.name)
    return None if inner is None else inner.result


def _lossless(source: DType, to: DType) -> bool:
    """Whether every value of `source` is one of `to`."""
    if source is DType.BOOL or source is to:
        return to is not DType.F8E8M0
    if source.is_float:
        exact = {
            DType.F32: (DType.F64,),
            DType.F16: (DType.F32, DType.F64),
            DType.BF16: (DType.F32, DType.F64),
            DType.F8E4M3: (DType.F16, DType.BF16, DType.F32, DType.F64),
            DType.F8E5M2: (DType.F16, DType.BF16, DType.F32, DType.F64),
        }
        return to in exact.get(source, ())
    if to.is_integer:
        a, b = np.iinfo(source.numpy), np.iinfo(to.numpy)
        return int(b.min) <= int(a.min) and int(a.max) <= int(b.max)
    digits = {DType.F64: 53, DType.F32: 24}.get(to, 0)
    return source.bits <= digits


def merge_casts(w: Walk, op: Op) -> Value | None:
    """cast(x) to its own type -> x; cast(cast(x)) -> cast(x) when the inner one loses nothing."""
    assert isinstance(op.attrs, CastAttrs)
    x = op.operands[0]
    if x.type.dtype is op.attrs.to:
        return x
    inner = w.producer(x, "cast")
    if inner is None or not _lossless(inner.operands[0].type.dtype, x.type.dtype):
        return None
    source = inner.operands[0]
    if source.type.dtype is op.attrs.to:
        return source
    w.absorb(inner)
    return w.emit("cast", source, attrs=op.attrs)


def decided_select(w: Walk, op: Op) -> Value | None:
    """select(true, x, y) -> x; select(c, x, x) -> x; select(not c, x, y) -> select(c, y, x)."""
    condition, x, y = op.operands
    number = w.number(condition)
    chosen = x if x == y or number else y if number is not None else None
    if chosen is not None:
        if chosen.type == op.result.type:
            return chosen
        return w.emit("expand", chosen, attrs=ExpandAttrs(op.result.type.dims))
    inner = w.producer(condition, "not")
    if inner is None:
        return None
    w.absorb(inner)
    return w.emit("select", inner.operands[0], y, x)


def _table() -> Rules:
    rules: defaultdict[str, list[Rule]] = defaultdict(list)

    def add(rule: Callable[[Walk, Op], Value | None], *names: str) -> None:
        for name in names:
            rules[name].append(rule)

    add(constant_second, *_COMMUTATIVE)
    add(neutral_operand, *_NEUTRAL)
    add(deciding_operand, "and", "or")
    add(constant_chain, "add", "mul")
    add(subtract_constant, "sub")
    add(add_negated, "add")
    add(divide_one, "div")
    add(divide_by_power_of_two, "div")
    add(divide_by_root, "div")
    add(scale_of_error_function, "erf")
    add(sum_of_gate, "mul")
    add(reciprocal_of_root, "reciprocal")
    add(root_of_reciprocal, "sqrt")
    add(known_power, "pow")
    add(maximum_with_zero, "max")
    add(_involution, "neg", "not", "bitnot")
    add(_idempotent, "relu", "abs", "floor", "ceil", "round")
    add(merge_casts, "cast")
    add(decided_select, "select")
    return {name: tuple(listed) for name, listed in rules.items()}


def broadcast_operands(w: Walk, op: Op) -> Value | None:
    """Simplifies constants and expands read by an elementwise op of several operands. This covers ops of other packages
    too, so no table lists them."""
    if len(op.operands) < 2 or OPS[op.name].kind is not Kind.ELEMENTWISE:
        return None
    simpler = splat_as_scalar(w, op)
    return simpler if simpler is not None else drop_expand(w, op)


ARITHMETIC_RULES: Rules = {**_table(), "*": (broadcast_operands,)}

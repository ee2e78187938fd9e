"""RNN, GRU and LSTM: one record per direction; DynamicQuantizeLSTM: the same steps with integer products.

Invariant: records have steps first and one direction; `layout` = 1 and the direction axis become transposes, slices and
concatenations around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.quantized import as_parameter, dynamically_quantized, integer_matmul, zero_point
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped, sliced, transposed
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.composite import cast
from ppuc.ir.ops.gates import GATES
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.recurrent import GruAttrs, LstmAttrs, RnnAttrs, ValueMachine, unrolled
from ppuc.ir.types import DType

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ACTIVATIONS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _cell(ctx: NodeContext) -> str:
    """RNN, GRU or LSTM."""
    return ctx.op_type.removeprefix("DynamicQuantize")


def _directions(ctx: NodeContext) -> tuple[bool, ...]:
    """For each direction of the node, whether it runs backwards."""
    name = str(ctx.attr("direction", "forward"))
    if name not in _DIRECTIONS:
        ctx.fail("unknown direction", got=name, expected=", ".join(_DIRECTIONS))
    return _DIRECTIONS[name]


def _functions(ctx: NodeContext, directions: int) -> list[tuple[str, float, float]]:
    """(activation, alpha, beta), first direction first. Parameters are listed only for functions that have them."""
    plain = list(_ACTIVATIONS[_cell(ctx)]) * directions
    names = [str(n).lower() for n in ctx.attr("activations") or ()] or plain
    if len(names) != len(plain):
        ctx.fail("activations needs a function for each gate and direction", got=names, expected=f"{len(plain)} names")
    alphas, betas = (iter(ctx.attr(n) or ()) for n in ("activation_alpha", "activation_beta"))
    functions = []
    for name in names:
        if name not in GATES:
            ctx.fail("unknown activation", got=name, expected=", ".join(GATES))
        gate = GATES[name]
        alpha = 0.0 if gate.alpha is None else float(next(alphas, gate.alpha))
        beta = 0.0 if gate.beta is None else float(next(betas, gate.beta))
        functions.append((name, alpha, beta))
    return functions


def _attrs(ctx: NodeContext, functions: Sequence[tuple[str, float, float]], reverse: bool, lengths: bool) -> RnnAttrs:
    names, alphas, betas = zip(*functions, strict=True)
    common = (names, alphas, betas, reverse, float(ctx.attr("clip", 0.0)), lengths)
    if _cell(ctx) == "LSTM":
        return LstmAttrs(*common, bool(ctx.attr("input_forget", 0)), ctx.has(7))
    return GruAttrs(*common, bool(ctx.attr("linear_before_reset", 0))) if _cell(ctx) == "GRU" else RnnAttrs(*common)


def _lengths(ctx: NodeContext, steps: int) -> Value | None:
    """The lengths of the sequences; None if all are full."""
    if not ctx.has(4):
        return None
    known = ctx.constant(4)
    if known is not None and (known < 0).any() | (known > steps).any():
        ctx.fail("a sequence is longer than the input", got=known.tolist(), expected=f"lengths up to {steps}")
    return None if known is not None and (known == steps).all() else cast(ctx.b, ctx.operand(4), DType.I32)


class _Operands:
    """The inputs of one node, direction by direction. Quantized weights are stored with their gates last."""

    def __init__(self, ctx: NodeContext, quantized: bool = False) -> None:
        self.ctx = ctx
        self.batch_first = bool(ctx.attr("layout", 0))
        x = ctx.operand(0)
        if x.type.rank != 3 or ctx.type(2).rank != 3:
            ctx.fail("X and R need three dimensions", got=f"{x.type} and {ctx.type(2)}")
        self.x = transposed(ctx, x, (1, 0, 2)) if self.batch_first else x
        self.batch, self.hidden = self.x.type.dims[1], ctx.shape(2)[1 if quantized else 2]
        if int(ctx.attr("hidden_size", self.hidden)) != self.hidden:
            ctx.fail("hidden_size contradicts R", got=ctx.attr("hidden_size"), expected=self.hidden)

    def of(self, index: int, direction: int, axis: int = 0) -> Value:
        """Input `index` without its axis of directions."""
        whole = self.ctx.operand(index)
        shape = (*whole.type.dims[:axis], *whole.type.dims[axis + 1 :])
        return reshaped(self.ctx, sliced(self.ctx, whole, axis, direction, 1), shape)

    def _zeros(self, *shape: int) -> Value:
        return self.ctx.b.const(np.zeros(shape, self.x.type.dtype.numpy), "zeros")

    def of_direction(self, direction: int, lengths: Value | None) -> list[Value]:
        """The record's operands."""
        ctx, rows = self.ctx, _GATES[_cell(self.ctx)] * self.hidden
        operands = [self.x, self.of(1, direction), self.of(2, direction)]
        operands.append(self.of(3, direction) if ctx.has(3) else self._zeros(2 * rows))
        for index in (5, 6) if _cell(ctx) == "LSTM" else (5,):
            state_axis = 1 if self.batch_first else 0
            given = self.of(index, direction, state_axis) if ctx.has(index) else None
            operands.append(self._zeros(self.batch, self.hidden) if given is None else given)
        if _cell(ctx) == "LSTM" and ctx.has(7):
            operands.append(self.of(7, direction))
        return [*operands, *([lengths] if lengths is not None else [])]


@importer("RNN", "GRU", "LSTM")
def recurrent(ctx: NodeContext) -> Sequence[Value]:
    """Y, Y_h and, for LSTM, Y_c."""

    def record(attrs: RnnAttrs, given: list[Value], direction: int) -> Sequence[Value]:
        return ctx.b.emit(ctx.op_type.lower(), given, attrs, hint=ctx.hint)

    return _all_directions(ctx, _Operands(ctx), record)


@importer("DynamicQuantizeLSTM", domain="com.microsoft")
def dynamic_quantize_lstm(ctx: NodeContext) -> Sequence[Value]:
    """Weights W[D, I, 4 H] and R[D, H, 4 H] in 8 bits; the whole input is quantized at once, the state at every
    step."""
    operands = _Operands(ctx, quantized=True)

    def steps(attrs: RnnAttrs, given: list[Value], direction: int) -> Sequence[Value]:
        lengths = None
        if attrs.lengths:
            if operands.batch > 1:
                ctx.fail("sequences of different lengths cannot be quantized together", got=f"{operands.batch} of them")
            lengths = reshaped(ctx, given.pop(), (1, 1))
            given[0] = _without_padding(ctx, given[0], lengths)
        given[1:3] = [transposed(ctx, w, (1, 0)) for w in given[1:3]]
        scales = [_of_direction(ctx, operands, direction, i) for i in (8, 10)]
        zeros = [_of_direction(ctx, operands, direction, i) if zero_point(ctx, i) else None for i in (9, 11)]
        stored = {w.name: pair for w, pair in zip(given[1:3], zip(scales, zeros, strict=True), strict=True)}
        machine = _QuantizedMachine(ctx, attrs, given, stored)
        return unrolled("lstm", machine, operands.x.type.dims[0], given[4:6], lengths, DType.F32)

    return _all_directions(ctx, operands, steps)


def _without_padding(ctx: NodeContext, x: Value, lengths: Value) -> Value:
    """x[T, 1, I] with zeros past the end of the sequence, so that padding does not affect its range."""
    steps = ctx.b.const(np.arange(x.type.dims[0], dtype=np.int32).reshape(-1, 1, 1), "steps")
    live = ctx.op("gt", reshaped(ctx, lengths, (1, 1, 1)), steps)
    return ctx.op("select", live, x, ctx.b.scalar(0, x.type.dtype))


def _of_direction(ctx: NodeContext, operands: _Operands, direction: int, index: int) -> Value:
    """A scale or zero point of one direction: one number, or one for each column."""
    return as_parameter(ctx, operands.of(index, direction))


class _QuantizedMachine(ValueMachine):
    """Steps whose products are of integers. `stored`: scale and zero point by name of the weights, whose gates come
    first as in the record."""

    def __init__(
        self,
        ctx: NodeContext,
        attrs: RnnAttrs,
        operands: Sequence[Value],
        stored: Mapping[str, tuple[Value, Value | None]],
    ) -> None:
        self._ctx, self._stored = ctx, stored
        super().__init__(attrs, ctx.b, operands)

    def product(self, x: Value, rows: Value) -> Value:
        ctx, (scale, zero) = self._ctx, self._stored[rows.name]
        numbers, x_scale, x_zero = dynamically_quantized(ctx, x)
        total = integer_matmul(ctx, numbers, transposed(ctx, rows, (1, 0)), x_zero, zero)
        return ctx.op("mul", cast_to(ctx, total, DType.F32), ctx.op("mul", x_scale, scale))


def _all_directions(
    ctx: NodeContext, operands: _Operands, run: Callable[[RnnAttrs, list[Value], int], Sequence[Value]]
) -> Sequence[Value]:
    """The node's results: `run` on each direction's attributes and operands, joined."""
    directions = _directions(ctx)
    functions = _functions(ctx, len(directions))
    per = len(functions) // len(directions)
    if any(len(directions) != ctx.shape(i)[0] for i in (1, 2)):
        ctx.fail("W and R need a block for each direction", got=f"{ctx.type(1)} and {ctx.type(2)}")
    lengths = _lengths(ctx, operands.x.type.dims[0])
    results = []
    for i, reverse in enumerate(directions):
        attrs = _attrs(ctx, functions[i * per : (i + 1) * per], reverse, lengths is not None)
        results.append(run(attrs, operands.of_direction(i, lengths), i))
    y, *states = (_joined(ctx, [r[k] for r in results], k == 0) for k in range(len(results[0])))
    if operands.batch_first:
        y, states = transposed(ctx, y, (2, 0, 1, 3)), [transposed(ctx, s, (1, 0, 2)) for s in states]
    return (y, *states)


def _joined(ctx: NodeContext, parts: Sequence[Value], sequence: bool) -> Value:
    """[T, B, H] of each direction -> [T, D, B, H], or [B, H] -> [D, B, H]."""
    axis = 1 if sequence else 0
    lead = [reshaped(ctx, p, (*p.type.dims[:axis], 1, *p.type.dims[axis:])) for p in parts]
    return lead[0] if len(lead) == 1 else ctx.b.emit("concat", lead, ConcatAttrs(axis), hint=ctx.hint)[0]

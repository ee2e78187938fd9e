"""RNN, GRU and LSTM: one record a direction.

Invariant: records see steps first and one direction; `layout` = 1 and the axis of directions are transposes, slices and
concatenations around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext, importer
from ppuc.compiler.frontend.shape import reshaped, sliced, transposed
from ppuc.ir.graph import Value
from ppuc.ir.ops.composite import cast
from ppuc.ir.ops.gates import GATES
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.recurrent import GruAttrs, LstmAttrs, RnnAttrs
from ppuc.ir.types import DType

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ACTIVATIONS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _directions(ctx: NodeContext) -> tuple[bool, ...]:
    """Whether each direction of the node walks backwards."""
    name = str(ctx.attr("direction", "forward"))
    if name not in _DIRECTIONS:
        ctx.fail("unknown direction", got=name, expected=", ".join(_DIRECTIONS))
    return _DIRECTIONS[name]


def _functions(ctx: NodeContext, directions: int) -> list[tuple[str, float, float]]:
    """(activation, alpha, beta), those of the first direction first. Parameters are listed only for the functions that
    have them."""
    plain = list(_ACTIVATIONS[ctx.op_type]) * directions
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
    if ctx.op_type == "LSTM":
        return LstmAttrs(*common, bool(ctx.attr("input_forget", 0)), ctx.has(7))
    return GruAttrs(*common, bool(ctx.attr("linear_before_reset", 0))) if ctx.op_type == "GRU" else RnnAttrs(*common)


def _lengths(ctx: NodeContext, steps: int) -> Value | None:
    """The lengths of the sequences; None when all of them are full."""
    if not ctx.has(4):
        return None
    known = ctx.constant(4)
    if known is not None and (known < 0).any() | (known > steps).any():
        ctx.fail("a sequence is longer than the input", got=known.tolist(), expected=f"lengths up to {steps}")
    return None if known is not None and (known == steps).all() else cast(ctx.b, ctx.operand(4), DType.I32)


class _Operands:
    """The inputs of one node, direction by direction."""

    def __init__(self, ctx: NodeContext) -> None:
        self.ctx = ctx
        self.batch_first = bool(ctx.attr("layout", 0))
        x = ctx.operand(0)
        if x.type.rank != 3 or ctx.type(2).rank != 3:
            ctx.fail("X and R need three dimensions", got=f"{x.type} and {ctx.type(2)}")
        self.x = transposed(ctx, x, (1, 0, 2)) if self.batch_first else x
        self.batch, self.hidden = self.x.type.dims[1], ctx.shape(2)[2]
        if int(ctx.attr("hidden_size", self.hidden)) != self.hidden:
            ctx.fail("hidden_size contradicts R", got=ctx.attr("hidden_size"), expected=self.hidden)

    def _of(self, index: int, direction: int, axis: int = 0) -> Value:
        """Input `index` without its axis of directions."""
        whole = self.ctx.operand(index)
        shape = (*whole.type.dims[:axis], *whole.type.dims[axis + 1 :])
        return reshaped(self.ctx, sliced(self.ctx, whole, axis, direction, 1), shape)

    def _zeros(self, *shape: int) -> Value:
        return self.ctx.b.const(np.zeros(shape, self.x.type.dtype.numpy), "zeros")

    def of_direction(self, direction: int, lengths: Value | None) -> list[Value]:
        """The record's operands."""
        ctx, rows = self.ctx, _GATES[self.ctx.op_type] * self.hidden
        operands = [self.x, self._of(1, direction), self._of(2, direction)]
        operands.append(self._of(3, direction) if ctx.has(3) else self._zeros(2 * rows))
        for index in (5, 6) if ctx.op_type == "LSTM" else (5,):
            state_axis = 1 if self.batch_first else 0
            given = self._of(index, direction, state_axis) if ctx.has(index) else None
            operands.append(self._zeros(self.batch, self.hidden) if given is None else given)
        if ctx.op_type == "LSTM" and ctx.has(7):
            operands.append(self._of(7, direction))
        return [*operands, *([lengths] if lengths is not None else [])]


@importer("RNN", "GRU", "LSTM")
def recurrent(ctx: NodeContext) -> Sequence[Value]:
    """Y, Y_h and, for LSTM, Y_c."""
    operands, directions = _Operands(ctx), _directions(ctx)
    functions = _functions(ctx, len(directions))
    per = len(functions) // len(directions)
    if any(len(directions) != ctx.shape(i)[0] for i in (1, 2)):
        ctx.fail("W and R need a block for each direction", got=f"{ctx.type(1)} and {ctx.type(2)}")
    lengths = _lengths(ctx, operands.x.type.dims[0])
    results = []
    for i, reverse in enumerate(directions):
        attrs = _attrs(ctx, functions[i * per : (i + 1) * per], reverse, lengths is not None)
        given = operands.of_direction(i, lengths)
        results.append(ctx.b.emit(ctx.op_type.lower(), given, attrs, hint=ctx.hint))
    y, *states = (_joined(ctx, [r[k] for r in results], k == 0) for k in range(len(results[0])))
    if operands.batch_first:
        y, states = transposed(ctx, y, (2, 0, 1, 3)), [transposed(ctx, s, (1, 0, 2)) for s in states]
    return (y, *states)


def _joined(ctx: NodeContext, parts: Sequence[Value], sequence: bool) -> Value:
    """[T, B, H] of each direction -> [T, D, B, H], or [B, H] -> [D, B, H]."""
    axis = 1 if sequence else 0
    lead = [reshaped(ctx, p, (*p.type.dims[:axis], 1, *p.type.dims[axis:])) for p in parts]
    return lead[0] if len(lead) == 1 else ctx.b.emit("concat", lead, ConcatAttrs(axis), hint=ctx.hint)[0]

"""Recurrent layers in one direction: rnn, gru and lstm, and their expansion into unrolled steps.

One matmul over all steps computes the input projections of all gates. A step multiplies the state by the recurrent
weights of all gates at once and adds the input projections; the rest is elementwise on slices of the sum. (One product
per gate, with its activation as the epilogue, measured 8% slower with more than twice as many kernels.) A shorter
sequence keeps its state and yields zeros past its end; in reverse, it therefore begins at its own last element.

Operands: x[T, B, I], w[G * H, I], r[G * H, H], b[2 * G * H] (of w, then of r), the initial states [B, H] (h; for lstm
also c), then p[3 * H] with `peepholes`, then i32 lengths[B] with `lengths`. Results: y[T, B, H] and the last states.
Gates in order: rnn (h), gru (z, r, h), lstm (i, o, f, c); p (i, o, f).

Invariants: all floats have one dtype; f16 and bf16 are computed in f32 throughout and results rounded once; the
reference computes in f64. Steps and cells follow the ONNX operators RNN-22, GRU-22 and LSTM-22.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import FLOATS, convert
from ppuc.ir.ops.gates import GATES, Algebra, OnArrays, OnValues
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class RnnAttrs(Attrs):
    """`activations` are keys of GATES, one per function of the cell, with their `alphas` and `betas`. Inputs of gates
    are clipped to +-`clip` (0: no clipping); the cell state of lstm is not, as in ONNX Runtime. `reverse` runs from the
    last step to the first. `lengths`: the last operand holds the sequences' lengths."""

    activations: tuple[str, ...]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    reverse: bool = False
    clip: float = 0.0
    lengths: bool = False


@dataclass(frozen=True, slots=True)
class GruAttrs(RnnAttrs):
    """`linear_before_reset`: the reset gate is applied after the recurrent product and its bias."""

    linear_before_reset: bool = False


@dataclass(frozen=True, slots=True)
class LstmAttrs(RnnAttrs):
    """`input_forget` couples the gates: f = 1 - i. `peepholes`: operand p adds the cell state to the gates."""

    input_forget: bool = False
    peepholes: bool = False


@dataclass(frozen=True, slots=True)
class _Cell:
    """`step(machine, t, states)` -> the states after step t; the first state is the output."""

    gates: int
    states: int
    functions: int
    step: Callable[[Any, int, Sequence[Any]], Sequence[Any]]


def _rnn_step(m: Any, t: int, states: Sequence[Any]) -> Sequence[Any]:
    """h = f(x W' + h R' + b)"""
    return (m.activate(0, *m.gates(t, 0, 1, states[0])),)


def _gru_step(m: Any, t: int, states: Sequence[Any]) -> Sequence[Any]:
    """h = (1 - z) * g(x W' + (r * h) R' + b) + z * h, or with r applied after the product."""
    (h,) = states
    update, reset = (m.activate(0, gate) for gate in m.gates(t, 0, 2, h))
    if m.attrs.linear_before_reset:
        hidden = m.algebra("add", m.projected(t, 2, 1), m.algebra("mul", reset, m.hidden_gate(h)))
    else:
        (hidden,) = m.gates(t, 2, 1, m.algebra("mul", reset, h))
    # (1 - z) * n + z * h = n + z * (h - n), one product less.
    new = m.activate(1, hidden)
    return (m.algebra("add", new, m.algebra("mul", update, m.algebra("sub", h, new))),)


def _lstm_step(m: Any, t: int, states: Sequence[Any]) -> Sequence[Any]:
    """c = f * c + i * g(..); h = o * h(c); peepholes: i and f see the old cell state, o the new one."""
    h, cell = states
    a, (i, o, f, g) = m.algebra, m.gates(t, 0, 4, h)
    enter = m.activate(0, m.add_peephole(0, i, cell))
    forget = a("sub", 1.0, enter) if m.attrs.input_forget else m.activate(0, m.add_peephole(2, f, cell))
    new = a("add", a("mul", forget, cell), a("mul", enter, m.activate(1, g)))
    leave = m.activate(0, m.add_peephole(1, o, new))
    return a("mul", leave, m.activate(2, new, clipped=False)), new


_CELLS = {
    "rnn": _Cell(1, 1, 1, _rnn_step),
    "gru": _Cell(3, 1, 2, _gru_step),
    "lstm": _Cell(4, 2, 3, _lstm_step),
}


class _Machine:
    """The interface that steps are written against, for arrays or values. A range of gates is given by its first gate
    and a count."""

    def __init__(self, attrs: RnnAttrs, algebra: Algebra) -> None:
        self.attrs = attrs
        self.algebra = algebra

    def projected(self, t: int, first: int, count: int) -> Any:
        """[B, count * H]: input projections of step `t` of x, including biases."""
        raise NotImplementedError

    def gates(self, t: int, first: int, count: int, h: Any) -> Sequence[Any]:
        """[B, H] each: x W' + h R' + biases, the inputs of the gates' activations."""
        raise NotImplementedError

    def hidden_gate(self, h: Any) -> Any:
        """[B, H]: h R' + recurrent bias of a gru's last gate."""
        raise NotImplementedError

    def peephole(self, index: int) -> Any:
        """[H]: peephole weights (0: i, 1: o, 2: f)."""
        raise NotImplementedError

    def add_peephole(self, index: int, x: Any, cell: Any) -> Any:
        if not _extras(self.attrs)[0]:
            return x
        return self.algebra("add", x, self.algebra("mul", cell, self.peephole(index)))

    def activate(self, index: int, x: Any, clipped: bool = True) -> Any:
        attrs = self.attrs
        if attrs.clip and clipped:
            x = self.algebra("min", self.algebra("max", x, -attrs.clip), attrs.clip)
        return GATES[attrs.activations[index]].formula(self.algebra, x, attrs.alphas[index], attrs.betas[index])


def _reset_last(attrs: RnnAttrs) -> bool:
    """Whether the recurrent bias of a gru's last gate must be added to the recurrent product."""
    return isinstance(attrs, GruAttrs) and attrs.linear_before_reset


def _extras(attrs: RnnAttrs) -> tuple[bool, bool]:
    return isinstance(attrs, LstmAttrs) and attrs.peepholes, attrs.lengths


def _infer(name: str) -> Callable[[RnnAttrs, Sequence[TensorType]], tuple[TensorType, ...]]:
    cell = _CELLS[name]

    def infer(attrs: RnnAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        count = 4 + cell.states + sum(_extras(attrs))
        if len(types) != count:
            raise ValueError(f"{name} takes {count} operands (got {len(types)})")
        _check_activations(name, attrs)
        x, r = types[0], types[2]
        if x.rank != 3 or r.rank != 2:
            raise ValueError(f"{name} needs x[T, B, I] and r[G * H, H] (got {x} and {r})")
        (steps, batch, inputs), hidden = x.dims, r.dims[1]
        if not steps:
            raise ValueError(f"{name} needs one step at least (got {x})")
        rows = cell.gates * hidden
        shapes: list[tuple[int, ...]] = [(steps, batch, inputs), (rows, inputs), (rows, hidden), (2 * rows,)]
        shapes += [(batch, hidden)] * cell.states + [(3 * hidden,)] * _extras(attrs)[0]
        floats = types[: len(shapes)]
        for type, shape in zip(floats, shapes, strict=True):
            if type.dims != shape or type.dtype is not x.dtype or x.dtype not in FLOATS:
                raise ValueError(f"an operand of {name} should be {TensorType(x.dtype, shape)} of floats (got {type})")
        if attrs.lengths and types[-1] != TensorType(DType.I32, (batch,)):
            raise ValueError(f"lengths of {name} should be i32[{batch}] (got {types[-1]})")
        state = TensorType(x.dtype, (batch, hidden))
        return (TensorType(x.dtype, (steps, batch, hidden)), *[state] * cell.states)

    return infer


def _check_activations(name: str, attrs: RnnAttrs) -> None:
    wanted = _CELLS[name].functions
    if not len(attrs.activations) == len(attrs.alphas) == len(attrs.betas) == wanted:
        raise ValueError(f"{name} needs {wanted} activations with an alpha and a beta each")
    for activation in attrs.activations:
        if activation not in GATES:
            raise ValueError(f"unknown activation '{activation}' (known: {', '.join(GATES)})")


class _ArrayMachine(_Machine):
    """Computes on arrays in f64."""

    def __init__(self, attrs: RnnAttrs, arrays: Sequence[np.ndarray]) -> None:
        super().__init__(attrs, OnArrays())
        x, w, self.r, b = arrays[:4]
        self.hidden = self.r.shape[1]
        self.of_w, self.of_r = b.reshape(2, -1)
        self.x = x @ w.T + self.of_w + self.of_r
        if _reset_last(attrs):
            self.x[..., 2 * self.hidden :] -= self.of_r[2 * self.hidden :]
        self.p = arrays[-1].reshape(3, self.hidden) if _extras(attrs)[0] else None

    def projected(self, t: int, first: int, count: int) -> np.ndarray:
        return np.asarray(self.x[t, :, first * self.hidden : (first + count) * self.hidden])

    def gates(self, t: int, first: int, count: int, h: Any) -> Sequence[np.ndarray]:
        rows = self.r[first * self.hidden : (first + count) * self.hidden]
        return np.split(h @ rows.T + self.projected(t, first, count), count, axis=1)

    def hidden_gate(self, h: Any) -> np.ndarray:
        start = 2 * self.hidden
        return np.asarray(h @ self.r[start:].T + self.of_r[start:])

    def peephole(self, index: int) -> np.ndarray:
        assert self.p is not None
        return np.asarray(self.p[index])


def _reference(name: str) -> Callable[..., tuple[np.ndarray, ...]]:
    cell = _CELLS[name]

    def reference(attrs: RnnAttrs, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        dtype, steps = DType.of(arrays[0].dtype), arrays[0].shape[0]
        lengths = arrays[-1] if attrs.lengths else None
        wide = [a.astype(np.float64) for a in arrays[: len(arrays) - attrs.lengths]]
        states: Sequence[np.ndarray] = wide[4 : 4 + cell.states]
        y = np.zeros((steps, *states[0].shape))
        with np.errstate(all="ignore"):
            machine = _ArrayMachine(attrs, wide)
            for t in reversed(range(steps)) if attrs.reverse else range(steps):
                after = cell.step(machine, t, states)
                if lengths is None:
                    states, y[t] = after, after[0]
                    continue
                live = (t < lengths)[:, None]
                y[t] = np.where(live, after[0], 0)
                states = [np.where(live, new, old) for new, old in zip(after, states, strict=True)]
        return tuple(convert(a, dtype) for a in (y, *states))

    return reference


class ValueMachine(_Machine):
    """Appends ops to a Builder. Slices of constant weights and biases fold. `operands` are x, w, r and b of a record,
    and p last with peepholes."""

    def __init__(self, attrs: RnnAttrs, b: Builder, operands: Sequence[Value]) -> None:
        super().__init__(attrs, OnValues(b))
        self.b = b
        x, w, self.r, bias = operands[:4]
        (steps, self.batch, inputs), (self.rows, self.hidden) = x.type.dims, self.r.type.dims
        self.of_w, self.of_r = (self._cut(bias, i * self.rows, self.rows) for i in range(2))
        flat = c.reshape(b, x, (steps * self.batch, inputs))
        self.x = b("add", self.product(flat, w), self._input_bias())
        self.p = operands[-1] if _extras(attrs)[0] else None

    def _input_bias(self) -> Value:
        """[G * H]: the sum of both biases, except the part that stays with the recurrent product."""
        of_r = self.of_r
        if _reset_last(self.attrs):
            keep = self.b.const(np.arange(self.rows) < 2 * self.hidden, "keep")
            of_r = self.b("select", keep, of_r, self.b.scalar(0, of_r.type.dtype))
        return self.b("add", self.of_w, of_r)

    def _cut(self, x: Value, start: int, size: int, axis: int = 0) -> Value:
        """`size` elements of `x` from `start` on."""
        dims = x.type.dims
        if dims[axis] == size:
            return x
        starts = tuple(start if i == axis else 0 for i in range(len(dims)))
        sizes = tuple(size if i == axis else d for i, d in enumerate(dims))
        return self.b("slice", x, attrs=SliceAttrs(starts, sizes, (1,) * len(dims)))

    def product(self, x: Value, rows: Value) -> Value:
        """The product x rows' of inputs or states with weights."""
        return self.b("matmul", x, rows, attrs=MatmulAttrs(transpose_b=True))

    def _of_state(self, h: Value, first: int, count: int) -> Value:
        return self.product(h, self._cut(self.r, first * self.hidden, count * self.hidden))

    def projected(self, t: int, first: int, count: int) -> Value:
        step = self._cut(self.x, t * self.batch, self.batch)
        return self._cut(step, first * self.hidden, count * self.hidden, axis=1)

    def gates(self, t: int, first: int, count: int, h: Any) -> Sequence[Value]:
        all_of_them = self.b("add", self._of_state(h, first, count), self.projected(t, first, count))
        return [self._cut(all_of_them, g * self.hidden, self.hidden, axis=1) for g in range(count)]

    def hidden_gate(self, h: Any) -> Value:
        start = 2 * self.hidden
        return self.b("add", self._of_state(h, 2, 1), self._cut(self.of_r, start, self.hidden))

    def peephole(self, index: int) -> Value:
        assert self.p is not None
        return self._cut(self.p, index * self.hidden, self.hidden)


def unrolled(
    name: str, machine: ValueMachine, steps: int, states: Sequence[Value], lengths: Value | None, dtype: DType
) -> list[Value]:
    """y[T, B, H] and the last states [B, H] in `dtype`, with the steps of cell `name` unrolled. `states` are the
    initial ones, `lengths` i32[B, 1]."""
    b, states = machine.b, list(states)
    zero, outputs = b.scalar(0, states[0].type.dtype), [b.scalar(0, dtype)] * steps
    for t in reversed(range(steps)) if machine.attrs.reverse else range(steps):
        after = list(_CELLS[name].step(machine, t, states))
        out = after[0]
        if lengths is not None:
            live = b("gt", lengths, b.scalar(t, DType.I32))
            out = b("select", live, after[0], zero)
            after = [b("select", live, new, old) for new, old in zip(after, states, strict=True)]
        outputs[t], states = c.cast(b, out, dtype), after
    whole = b.emit("concat", outputs, ConcatAttrs(0))[0] if steps > 1 else outputs[0]
    return [c.reshape(b, whole, (steps, machine.batch, machine.hidden)), *(c.cast(b, s, dtype) for s in states)]


def _decompose(name: str) -> Callable[[Builder, Op], Sequence[Value]]:
    cell = _CELLS[name]

    def decompose(b: Builder, op: Op) -> Sequence[Value]:
        attrs = op.attrs
        assert isinstance(attrs, RnnAttrs)
        steps, batch, _ = op.results[0].type.dims
        wide = [c.widen(b, v) for v in op.operands[: len(op.operands) - attrs.lengths]]
        lengths = c.reshape(b, op.operands[-1], (batch, 1)) if attrs.lengths else None
        machine, dtype = ValueMachine(attrs, b, wide), op.results[0].type.dtype
        return unrolled(name, machine, steps, wide[4 : 4 + cell.states], lengths, dtype)

    return decompose


def _register(name: str, formula: str, states: str, attrs: type[RnnAttrs]) -> None:
    register(
        OpDef(
            name=name,
            formula=formula,
            kind=Kind.COMPOSITE,
            operands=f"x, w, r, b, {states}, lengths?",
            attrs=attrs,
            infer=_infer(name),
            reference=_reference(name),
            decompose=_decompose(name),
        )
    )


_register("rnn", "y[t] = h = f(x[t] w' + h r' + b)", "h", RnnAttrs)
_register("gru", "y[t] = h = (1 - z) * g(x[t] w' + (r * h) r' + b) + z * h", "h", GruAttrs)
_register("lstm", "y[t] = h = o * tanh(c), c = f * c + i * g(x[t] w' + h r' + b)", "h, c, p?", LstmAttrs)

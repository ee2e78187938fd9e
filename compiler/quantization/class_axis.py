"""Finds the axis along which an output's classes lie, from what computes it and what reads it.

From each output, the graph is followed backwards through ops that keep or rename axes. The first of these decides:

1. a softmax, argmax or top-k on the way, or one that reads a value on the way: its axis;
2. a convolution or product with constant weights: its output channels;
3. else the layout: [N, C, H, W] has its classes on axis 1, [N, classes] and [N, T, V] on the last one.

An axis of one class holds decisions only after a sigmoid: whether a probability exceeds one half.

Invariant: the same graph gives the same axes; an axis is found, or its layout is said to be assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ppuc.compiler.quantization.criteria import Criterion
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.base import OPS, Kind

_DECIDING = {"softmax": "softmax", "log_softmax": "log-softmax", "argreduce": "argmax", "topk": "top-k"}
_CHANNELS = {"conv": 1, "conv_transpose": 1, "int_conv": 1, "deform_conv": 1, "matmul": -1, "int_matmul": -1}
_NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm", "lp_normalize")
_KEEPING = ("slice", "expand", "concat", "pad", "resize", "pool", "cumsum", "quantize", "dequantize", *_NORMS)

ASSUMED = "assumed from the layout"

Axes = tuple[int | None, ...]
"""For each axis of a value on the way: the output's axis that it becomes; None if it becomes part of one or is lost."""


def found_criteria(graph: Graph) -> dict[str, Criterion]:
    """The criterion of every result of `graph` by value name. Floating-point results count equally; others only if
    there are no floating-point ones."""
    readers: dict[str, list[Op]] = {}
    for op in graph.ops:
        for operand in op.operands:
            readers.setdefault(operand.name, []).append(op)
    floats = any(v.type.dtype.is_float for v in graph.results)
    found = {}
    for value in graph.results:
        own = _criterion(graph, readers, value)
        weight = 1.0 if value.type.dtype.is_float or not floats else 0.0
        found[value.name] = Criterion(weight, own.axis, own.threshold, own.why)
    return found


def _criterion(graph: Graph, readers: dict[str, list[Op]], output: Value) -> Criterion:
    if not output.type.dtype.is_float:
        return Criterion(why="indices")
    value, axes, sigmoid = output, tuple(range(output.type.rank)), False
    at: Axes = axes
    while True:
        producer = graph.producer(value)
        for op in (*readers.get(value.name, ()), *((producer,) if producer is not None else ())):
            axis = _decided(op, at)
            if axis is not None:
                return _of_axis(output, axis, f"{_DECIDING[op.name]}{_named(op)}", sigmoid)
        if producer is None:
            break
        sigmoid = sigmoid or producer.name == "sigmoid"
        if producer.name in _CHANNELS and _constant(graph, producer.operands[1]):
            channels = _CHANNELS[producer.name]
            if value.type.dims[channels] == 1:
                return _lone(sigmoid)
            if not at[channels]:  # lost, or the batch
                break
            return _of_axis(output, at[channels], f"output channels{_named(producer)}", sigmoid)
        step = _before(graph, producer, at)
        if step is None:
            break
        value, at = step
    return _of_axis(output, by_layout(output.type.rank).axis, ASSUMED, sigmoid)


def _of_axis(output: Value, axis: int | None, why: str, sigmoid: bool) -> Criterion:
    if axis is None or output.type.dims[axis] > 1:
        return Criterion(axis=axis, why=why if axis is not None else "")
    return _lone(sigmoid)


def _lone(sigmoid: bool) -> Criterion:
    """The criterion of an output with one class."""
    return Criterion(threshold=0.5, why="a probability") if sigmoid else Criterion(why="no classes")


def by_layout(rank: int) -> Criterion:
    """The criterion of an output of which only the number of axes is known."""
    return Criterion(axis=None if not rank else 1 if rank >= 4 else rank - 1, why=ASSUMED)


def _decided(op: Op, at: Axes) -> int | None:
    """The output's axis that `op` takes its decision along, if it takes one."""
    if op.name not in _DECIDING:
        return None
    attrs: Any = op.attrs
    if op.name == "argreduce" and attrs.kind != "max":
        return None
    return at[attrs.axis] if attrs.axis < len(at) else None


def _before(graph: Graph, op: Op, at: Axes) -> tuple[Value, Axes] | None:
    """The operand that `op` makes its result of, with its axes; None if axes cannot be followed."""
    attrs: Any = op.attrs
    result = op.results[0]
    if OPS[op.name].kind is Kind.ELEMENTWISE:
        like = [v for v in op.operands if v.type.dims == result.type.dims and not _constant(graph, v)]
        return (like[-1] if op.name == "select" else like[0], at) if like else None
    first = op.operands[0] if op.operands else None
    if first is None:
        return None
    if op.name == "transpose":
        moved: list[int | None] = [None] * len(at)
        for i, axis in enumerate(attrs.perm):
            moved[axis] = at[i]
        return first, tuple(moved)
    if op.name == "reshape":
        return first, _reshaped(first.type.dims, result.type.dims, at)
    if op.name == "reduce":
        if attrs.keepdims:
            return first, at
        rest = iter(at)
        return first, tuple(None if i in attrs.axes else next(rest) for i in range(first.type.rank))
    if op.name == "gather" and op.operands[1].type.rank == 1:
        return first, at
    return (first, at) if op.name in _KEEPING and first.type.rank == len(at) else None


def _reshaped(before: Sequence[int], after: Sequence[int], at: Axes) -> Axes:
    """Axes of the operand of a reshape: an axis that is split becomes its innermost factor, as anchors and classes that
    share the channels of a convolution are split."""
    inner = [math.prod(after[j + 1 :]) for j in range(len(after))]
    found: list[int | None] = []
    for i, size in enumerate(before):
        within = math.prod(before[i + 1 :])
        fits = [j for j, own in enumerate(after) if inner[j] == within and own and size % own == 0]
        best = max(fits, key=lambda j: (after[j], -j), default=None)
        found.append(at[best] if best is not None else None)
    return tuple(found)


def _constant(graph: Graph, value: Value) -> bool:
    producer = graph.producer(value)
    return producer is not None and all(_constant(graph, operand) for operand in producer.operands)


def _named(op: Op) -> str:
    return f" '{op.loc[0]}'" if op.loc else ""

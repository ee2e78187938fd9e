"""The semantics of graphs: runs the ops' reference functions in order on numpy arrays.

Invariant: every array has exactly the dtype and shape of its value; a mismatch is an InternalError at the op.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ppuc.ir.errors import Diagnostic, InputError, InternalError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.types import DType, TensorType

_INDEXED = ("gather", "gather_elements", "gather_nd", "scatter_nd", "scatter_elements")
"""Ops that take indices, as their second operand."""


class OutOfRangeError(InputError):
    """An index lies outside of the tensor that it indexes. `indices` is the value that holds it."""

    def __init__(self, op: Op, reason: str) -> None:
        node = ", ".join(op.loc) or op.name
        super().__init__(Diagnostic(f"node {node}", "an index is out of range", reason, str(op.operands[0].type)))
        self.indices = op.operands[1]


OnOp = Callable[[Op, Sequence[np.ndarray]], Sequence[np.ndarray] | None]


def run_graph(graph: Graph, feeds: Mapping[str, np.ndarray], on_op: OnOp | None = None) -> dict[str, np.ndarray]:
    """Results of `graph` by value name, for `feeds` by parameter name (arrays of the parameters' exact dtype and
    shape).

    `on_op(op, results)` is called after every op, those of group bodies included, and may return other results to go
    on with. Arrays are dropped after their last use. Raises InputError unless the feeds match the parameters exactly,
    and OutOfRangeError for indices outside of a tensor.
    """
    _check_feeds(graph, feeds)
    arrays = _run(graph, [np.asarray(feeds[p.name]) for p in graph.params], on_op)
    return {value.name: array for value, array in zip(graph.results, arrays, strict=True)}


def _check_feeds(graph: Graph, feeds: Mapping[str, np.ndarray]) -> None:
    names = [p.name for p in graph.params]
    if unknown := sorted(set(feeds) - set(names)):
        raise InputError.of(
            f"graph @{graph.name}", "no such parameter", got=", ".join(unknown), expected=", ".join(names)
        )
    for param in graph.params:
        if param.name not in feeds:
            raise InputError.of(f"graph @{graph.name}", f"no value given for %{param.name}", expected=param.type)
        got = _described(feeds[param.name])
        if got != str(param.type):
            raise InputError.of(f"graph @{graph.name}", f"%{param.name} has another type", got=got, expected=param.type)


def _run(graph: Graph, arguments: Sequence[np.ndarray], on_op: OnOp | None) -> list[np.ndarray]:
    env = {p.name: a for p, a in zip(graph.params, arguments, strict=True)}
    uses = Counter(v.name for op in graph.ops for v in op.operands)
    uses.update(v.name for v in graph.results)
    for op in graph.ops:
        results = _run_op(op, [env[v.name] for v in op.operands], on_op)
        if on_op is not None:
            results = on_op(op, results) or results
        for value, array in zip(op.results, results, strict=True):
            if uses[value.name]:
                env[value.name] = array
        for value in op.operands:
            uses[value.name] -= 1
            if not uses[value.name]:
                env.pop(value.name, None)
    return [env[v.name] for v in graph.results]


def _run_op(op: Op, operands: Sequence[np.ndarray], on_op: OnOp | None) -> Sequence[np.ndarray]:
    if op.body is not None:
        return _run(op.body, operands, on_op)
    record = OPS[op.name]
    if record.reference is None:
        raise InternalError(f"op {op.name} ({', '.join(op.loc)}) has no reference function")
    try:
        results = record.reference(op.attrs, *operands)
    except IndexError as error:
        if op.name not in _INDEXED:
            raise
        raise OutOfRangeError(op, str(error)) from error
    for value, array in zip(op.results, results, strict=True):
        _check_result(op, value, array)
    return results


def _check_result(op: Op, value: Value, array: np.ndarray) -> None:
    if array.shape != value.type.shape or array.dtype != value.type.dtype.numpy:
        raise InternalError(
            f"op {op.name} ({', '.join(op.loc)}): {value} is {value.type}, computed {_described(array)}"
        )


def _described(array: np.ndarray) -> str:
    array = np.asarray(array)
    try:
        return str(TensorType(DType.of(array.dtype), array.shape))
    except KeyError:
        return f"{array.dtype}[{', '.join(map(str, array.shape))}]"

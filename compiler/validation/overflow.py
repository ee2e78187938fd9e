"""Values of a model if numbers beyond its 16-bit formats overflow only where they are stored.

A kernel computes in f32 regardless of its values' formats, and rounds on storing. So an f16 square above 65504
overflows in a program that stores it, but not in one that keeps it inside a kernel. The file specifies the former, ONNX
Runtime on a CPU computes the latter, and both are correct.

Invariant: the values follow from the graph, its inputs, and which values are stored; never from what was computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph
from ppuc.ir.interpret import OnOp
from ppuc.ir.ops import OPS
from ppuc.ir.ops.elementwise import convert
from ppuc.ir.types import DType

WIDENED = (DType.F16, DType.BF16)
"""Formats whose values a kernel keeps in f32."""


def overflows(dtype: DType, array: np.ndarray) -> bool:
    """Whether a value of this format may have overflowed."""
    return dtype in WIDENED and not bool(np.isfinite(array.astype(np.float32)).all())


def run_wide(
    graph: Graph, feeds: Mapping[str, np.ndarray], on_op: OnOp | None = None, stored: Collection[str] = ()
) -> None:
    """Run `graph` (an imported one, without fused groups) on `feeds` by parameter name. Of 16-bit values those that are
    `stored`, by name, round to their own format for all that reads them, the others only for `on_op`, which is called
    after every op as `ppuc.ir.interpret.run_graph` does, but changes no results."""
    held = {name: _wide(DType.of(array.dtype), array) for name, array in feeds.items()}
    for op in graph.ops:
        reference = OPS[op.name].reference
        if reference is None or op.body is not None:
            raise InternalError(f"op {op.name} ({', '.join(op.loc)}) is none of an imported graph")
        with np.errstate(all="ignore"):
            arrays = reference(op.attrs, *(held[v.name] for v in op.operands))
        dtypes = [value.type.dtype for value in op.results]
        narrow = [convert(a, d) if d in WIDENED else a for a, d in zip(arrays, dtypes, strict=True)]
        for value, own, array in zip(op.results, narrow, arrays, strict=True):
            held[value.name] = _wide(value.type.dtype, own if value.name in stored else array)
        if on_op is not None:
            on_op(op, narrow)


def nearest(got: np.ndarray, *references: np.ndarray) -> np.ndarray:
    """Element by element, that of `references` (all of one shape) which `got` is closest to."""
    closest = references[0]
    for other in references[1:]:
        closest = np.where(_distance(got, other) < _distance(got, closest), other, closest)
    return closest


def _wide(dtype: DType, array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if dtype in WIDENED else array


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """0 for the same NaN or infinity, infinite where only one is finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = np.abs(x - y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))

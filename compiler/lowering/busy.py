"""Busy cycles of each queue of a unit in a kernel, by the formulas of the cost model.

A statement costs its tile's time in each of its iterations on the busiest unit, with all tiles taken as whole. Waits
between queues are not included: the largest figure is a lower bound on the kernel's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ppuc.compiler.lowering import cost
from ppuc.ir.kernel import Buffer, Kernel, Load, Mma, Param, Store, Vec, View
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target
from ppuc.targets.vector_cost import vec_cost

LATENCY = "latency"
"""The bound of a kernel that takes more than MOSTLY_WAITING times the work of its busiest queue."""

MOSTLY_WAITING = 2.0


def busy_clk(kernel: Kernel, vectors: Sequence[VectorProgram], target: Target) -> dict[str, float]:
    """Busy cycles of the load, tensor, vector and store queues of the busiest unit, by name."""
    return {queue: float(clk[0]) for queue, clk in _busy(kernel, {v.name: v for v in vectors}, target).items()}


def unit_clk(kernel: Kernel, vectors: Mapping[str, VectorProgram], target: Target) -> np.ndarray:
    """f64[kernel.units]: busy cycles of the busiest queue of each unit of the grid, in its order."""
    busiest: np.ndarray = np.stack(list(_busy(kernel, vectors, target).values())).max(axis=0)
    return busiest


def _busy(kernel: Kernel, vectors: Mapping[str, VectorProgram], target: Target) -> dict[str, np.ndarray]:
    """Busy cycles of each queue, by unit of the grid; the first unit has the most iterations of every loop."""
    buffers = {b.name: b for b in kernel.buffers}
    params = {p.name: p for p in kernel.params}
    grid = dict(kernel.grid)
    coordinates = np.unravel_index(np.arange(kernel.units), tuple(grid.values())) if grid else ()
    at = dict(zip(grid, coordinates, strict=True))
    total = {queue: np.zeros(kernel.units) for queue in ("load", "tensor", "vector", "store")}
    for loops, statement in kernel.statements():
        times: np.ndarray | int = 1
        for loop in loops:
            mine = loop.trips if loop.over is None else -((at[loop.over] - loop.trips) // grid[loop.over])
            times = times * np.maximum(mine, 0)
        queue, clk = _statement_clk(statement, kernel, buffers, params, vectors, target)
        total[queue] += times * clk
    return total


def _statement_clk(
    statement: Load | Store | Mma | Vec,
    kernel: Kernel,
    buffers: Mapping[str, Buffer],
    params: Mapping[str, Param],
    vectors: Mapping[str, VectorProgram],
    target: Target,
) -> tuple[str, float]:
    """The queue of a statement, and its cycles there for one whole tile."""
    if isinstance(statement, Load):
        traffic = _traffic(statement, params[statement.src], buffers[statement.dst], target)
        clk = cost.load_clk(traffic, target, kernel.units, params[statement.src].space)
        return "load", clk + cost.overhead_clk(target)
    if isinstance(statement, Store):
        traffic = _traffic(statement, params[statement.dst], buffers[statement.src], target)
        return "store", cost.store_clk(traffic, target, kernel.units, params[statement.dst].space)
    if isinstance(statement, Mma):
        return "tensor", _mma_clk(statement, buffers, target)
    ins, outs = ([buffers[name] for name in names] for names in (statement.ins, statement.outs))
    shapes, spaces = ([[getattr(b, a) for b in part] for part in (ins, outs)] for a in ("shape", "space"))
    extents = [max(sizes) for sizes in zip(*shapes[0], *shapes[1], strict=True)]
    work = vec_cost(vectors[statement.program], *shapes, *spaces)
    return "vector", work.cycles(extents, target) + cost.overhead_clk(target)


def bound_by(busy: Mapping[str, float], expected_clk: float | None) -> str:
    """The busiest queue; "latency" if the kernel is expected to take far longer than that queue's work."""
    queue = max(busy, key=busy.__getitem__)
    waits = expected_clk is not None and expected_clk > MOSTLY_WAITING * busy[queue]
    return LATENCY if waits else queue


def _traffic(statement: Load | Store, param: Param, buffer: Buffer, target: Target) -> cost.Traffic:
    """The bytes and rows of one tile: the view's dimensions in the order of the tile's axes that move along them."""
    dims = []
    for affine, size, stride in zip(statement.index, param.view.shape, param.view.strides, strict=True):
        axes = [int(name[1:]) for name, _ in affine.terms if name.startswith("$")]
        dims.append((max(axes, default=-1), size, stride, math.prod(buffer.shape[axis] for axis in axes)))
    dims.sort(key=lambda dim: dim[0])
    view = View(tuple(size for _, size, _, _ in dims), tuple(stride for _, _, stride, _ in dims))
    return cost.box_traffic(view, [extent for *_, extent in dims], param.dtype, target)


def _mma_clk(statement: Mma, buffers: Mapping[str, Buffer], target: Target) -> float:
    """Cycles of a product [m, k] x [k, n], whatever axes each consists of."""
    a, b = buffers[statement.a.buffer], statement.b.shape or buffers[statement.b.buffer].shape
    left, points = statement.a.shape or a.shape, math.prod(buffers[statement.dst].shape)
    # k^2 = (m k) (k n) / (m n)
    k = math.isqrt(math.prod(left) * math.prod(b) // points)
    m, n = math.prod(left) // k, math.prod(b) // k
    return cost.mma_clk(m, n, k, cost.tensor_dtype(a.dtype, target), target)

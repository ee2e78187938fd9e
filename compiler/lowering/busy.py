"""Busy cycles of each queue of a unit in a kernel, by the formulas of the cost model.

A statement costs its tile's time in each of its iterations on the busiest unit, with all tiles taken as whole. Waits
between queues are not included: the largest figure is a lower bound on the kernel's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
    buffers = {b.name: b for b in kernel.buffers}
    params = {p.name: p for p in kernel.params}
    programs = {v.name: v for v in vectors}
    units = dict(kernel.grid)
    total = {"load": 0.0, "tensor": 0.0, "vector": 0.0, "store": 0.0}
    for loops, statement in kernel.statements():
        times = math.prod(-(-loop.trips // units.get(loop.over or "", 1)) for loop in loops)
        if isinstance(statement, Load):
            traffic = _traffic(statement, params[statement.src], buffers[statement.dst])
            clk = cost.load_clk(traffic, target, kernel.units, params[statement.src].space)
            total["load"] += times * (clk + cost.overhead_clk(target))
        elif isinstance(statement, Store):
            traffic = _traffic(statement, params[statement.dst], buffers[statement.src])
            total["store"] += times * cost.store_clk(traffic, target, kernel.units, params[statement.dst].space)
        elif isinstance(statement, Mma):
            total["tensor"] += times * _mma_clk(statement, buffers, target)
        else:
            assert isinstance(statement, Vec)
            ins, outs = ([buffers[name] for name in names] for names in (statement.ins, statement.outs))
            shapes, spaces = ([[getattr(b, a) for b in part] for part in (ins, outs)] for a in ("shape", "space"))
            extents = [max(sizes) for sizes in zip(*shapes[0], *shapes[1], strict=True)]
            work = vec_cost(programs[statement.program], *shapes, *spaces)
            total["vector"] += times * (work.cycles(extents, target) + cost.overhead_clk(target))
    return total


def bound_by(busy: Mapping[str, float], expected_clk: float | None) -> str:
    """The busiest queue; "latency" if the kernel is expected to take far longer than that queue's work."""
    queue = max(busy, key=busy.__getitem__)
    waits = expected_clk is not None and expected_clk > MOSTLY_WAITING * busy[queue]
    return LATENCY if waits else queue


def _traffic(statement: Load | Store, param: Param, buffer: Buffer) -> cost.Traffic:
    """The bytes and rows of one tile: the view's dimensions in the order of the tile's axes that move along them."""
    dims = []
    for affine, size, stride in zip(statement.index, param.view.shape, param.view.strides, strict=True):
        axes = [int(name[1:]) for name, _ in affine.terms if name.startswith("$")]
        dims.append((max(axes, default=-1), size, stride, math.prod(buffer.shape[axis] for axis in axes)))
    dims.sort(key=lambda dim: dim[0])
    view = View(tuple(size for _, size, _, _ in dims), tuple(stride for _, _, stride, _ in dims))
    return cost.box_traffic(view, [extent for *_, extent in dims], param.dtype)


def _mma_clk(statement: Mma, buffers: Mapping[str, Buffer], target: Target) -> float:
    """Cycles of a product [m, k] x [k, n], whatever axes each consists of."""
    a, b = buffers[statement.a.buffer], statement.b.shape or buffers[statement.b.buffer].shape
    left, points = statement.a.shape or a.shape, math.prod(buffers[statement.dst].shape)
    # k^2 = (m k) (k n) / (m n)
    k = math.isqrt(math.prod(left) * math.prod(b) // points)
    m, n = math.prod(left) // k, math.prod(b) // k
    return cost.mma_clk(m, n, k, cost.tensor_dtype(a.dtype, target), target)

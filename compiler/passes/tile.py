"""Builds the kernel of every group.

Invariant: kernel parameters name top-level values in their memories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from ppuc.compiler.lowering.busy import bound_by, busy_clk
from ppuc.compiler.lowering.kernel_cache import GroupKernel, KernelCache
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.autotune import cycles_alone
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, TILED, Contract
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.ir.errors import CapacityError, Diagnostic
from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import Kernel, Param
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Tile(Pass):
    """Tile every group for the compute units: tile sizes by search under the cost model.

    `tries` is the number of best candidates of a matmul or convolution to measure on the simulator; with 1, the cost
    model decides.

    %y = group(%x, %w) {kind = "matmul"}  ->  %y = group(...) {kernel = "gemm"}; kernel @gemm { for ... }
    """

    tries: int = 1
    name: ClassVar[str] = "tile"
    required: ClassVar[str] = "it builds the kernels"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED, TILED)

    def run(self, module: Module, target: Target) -> Module:
        """The module with kernels and vector programs."""
        kernels: list[Kernel] = []
        vectors: list[VectorProgram] = []
        taken: set[str] = set()
        lowered = KernelCache(target, partial(cycles_alone, target=target), self.tries)
        ops: list[Op] = []
        tilings = Tilings(target)
        for op in module.graph.ops:
            if op.name != "group":
                ops.append(op)
                continue
            name = _fresh(op, taken)
            made = _lower(op, name, lowered)
            kernels.append(_in_spaces(made.kernel, op))
            vectors += made.vectors
            taken |= {v.name for v in made.vectors}
            if (remarks := listener()) is not None:
                tilings.remark(made, op, remarks)
            assert isinstance(op.attrs, GroupAttrs)
            ops.append(replace(op, attrs=replace(op.attrs, kernel=name)))
        graph = module.graph.with_ops(ops)
        return replace(module, graph=graph, kernels=tuple(kernels), vectors=tuple(vectors))


class Tilings:
    """Remarks on kernels; kernels of the same form share loops and cycles."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._known: dict[int, tuple[str, Mapping[str, float]]] = {}

    def remark(self, made: GroupKernel, op: Op, remarks: Collector) -> None:
        """A remark on a kernel: its loops and tiles, units, price, and the busy cycles of each queue."""
        if id(made.pattern) not in self._known:
            loops = {loop.var: loop for around, _ in made.kernel.statements() for loop in around}
            shown = " ".join(f"{loop.var} {loop.stop - loop.start}/{loop.step}" for loop in loops.values())
            work = busy_clk(_in_spaces(made.kernel, op), made.vectors, self.target)
            self._known[id(made.pattern)] = shown or "whole", work
        tiles, busy = self._known[id(made.pattern)]
        remarks.applied(
            "tiled",
            made.kernel.name,
            op.loc,
            after=made.price_clk,
            tiles=tiles,
            units=made.kernel.units,
            bound=bound_by(busy, made.price_clk),
            load_clk=busy["load"],
            tensor_clk=busy["tensor"],
            vector_clk=busy["vector"],
            store_clk=busy["store"],
        )


def _fresh(op: Op, taken: set[str]) -> str:
    hint = op.loc[0] if op.loc else op.results[0].name
    base = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in hint).strip("_") or "kernel"
    name, n = base, 1
    while name in taken:
        name, n = f"{base}.{n}", n + 1
    taken.add(name)
    return name


def without_tiling(graph: Graph, target: Target) -> tuple[Diagnostic, ...]:
    """What the pass would stop at: a diagnostic for each group that no tiling fits. Groups that differ in numbers only
    are searched once, and what was found is in the store of searches."""
    lowered = KernelCache(target)
    found: list[Diagnostic] = []
    for op in graph.ops:
        if op.name == "group":
            assert op.body is not None
            why_not = lowered.obstacle(op.attrs.kind, op.body)  # type: ignore[attr-defined]
            found += [_no_tiling(op, why_not, target)] if why_not else []
    return tuple(found)


def _no_tiling(op: Op, why_not: str, target: Target) -> Diagnostic:
    return Diagnostic(
        f"node {', '.join(op.loc[:3]) or op.results[0].name}",
        f"no tiling fits {target.name}",
        why_not,
        f"tiles within l1 of {target.l1.bytes:,} and acc of {target.acc.bytes:,} bytes, "
        f"in {target.sync.rings_per_cu} rings",
        "choose a larger target, or report the model: every op should be divisible",
        op.entities,
    )


def _lower(op: Op, name: str, lowered: KernelCache) -> GroupKernel:
    body = op.body
    assert body is not None
    tensors = {inner.name: outer.name for inner, outer in zip(body.params, op.operands, strict=True)}
    tensors |= {inner.name: outer.name for inner, outer in zip(body.results, op.results, strict=True)}
    try:
        return lowered.kernel(op.attrs.kind, name, body, tensors, op.loc)  # type: ignore[attr-defined]
    except NotFusable as error:
        raise CapacityError(_no_tiling(op, str(error), lowered.target)) from error


def _in_spaces(kernel: Kernel, op: Op) -> Kernel:
    spaces = {v.name: v.space or Space.HBM for v in (*op.operands, *op.results)}
    params: list[Param] = [replace(p, space=spaces[p.tensor]) for p in kernel.params]
    return replace(kernel, params=tuple(params))

"""Checks a kernel against target limits other than memory: rings and descriptor dimensions.

A kernel has one ring per buffer, so the exact number is known only once the kernel is built. Each tensor that a group
reads, and each that it computes and stores, needs a ring: this lower bound is known earlier and limits group growth.
Tensors read and stored also give an upper bound, so that most kernels need not be built to check that they fit.

Invariant: no kernel has more rings than `sync.rings_per_cu`, or a view with more dimensions than a descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import MAX_VIEW_RANK, Kernel
from ppuc.ir.ops.base import OPS, Kind
from ppuc.targets.schema import Target

_SPARE = 16
"""Maximum buffers of one kernel that hold neither operands nor results: accumulators, running sums, parts."""

_PER_HEAD = 6
"""Maximum buffers of a head of attention that begins a kernel: mask, scores, weights, totals, product, result."""

_STORES_LOADED = ("concat", "gather", "scatter_nd")
"""Ops whose result is stored from the tiles that their operands are loaded into."""

_WRITES_INTO = ("insert", "scatter_nd")
"""Ops that write into the memory of their first operand and never load it."""


def require_limits(kernel: Kernel, target: Target) -> None:
    """Raise NotFusable if the kernel has more buffers than a unit has rings, or a view has too many dimensions."""
    _require(len(kernel.buffers), "", target)
    rank = max((len(p.view.shape) for p in kernel.params), default=0)
    if rank > MAX_VIEW_RANK:
        raise NotFusable(f"the kernel walks a tensor along {rank} axes, a descriptor has {MAX_VIEW_RANK}")


def require_tensors(body: Graph, target: Target) -> None:
    """Raise NotFusable if the body reads and computes more tensors of memory than a unit has rings."""
    if len(body.params) + len(body.results) > target.sync.rings_per_cu:
        _require(_moved(body), "at least ", target)


def may_lack_rings(body: Graph, target: Target) -> bool:
    """Whether a kernel of the body, other than a copy, could need more rings than a unit has; False is definite."""
    moved = sum(len(op.operands) for op in body.ops) + len(body.results)
    # a reduction may add a walk over all operands
    walks = 1 + sum(OPS[op.name].kind is Kind.REDUCTION for op in body.ops)
    heads = sum(op.operands[0].type.dims[1] for op in body.ops if op.name == "attention")
    return walks * moved + _PER_HEAD * heads + _SPARE > target.sync.rings_per_cu


def may_lack_axes(body: Graph) -> bool:
    """Whether a kernel of the body could walk a tensor along more axes than a descriptor has, as each reshape may split
    one; False is definite."""
    values = (*body.params, *(r for op in body.ops for r in op.results))
    splits = sum(op.name == "reshape" for op in body.ops)
    return max((v.type.rank for v in values), default=0) + splits > MAX_VIEW_RANK


def _moved(body: Graph) -> int:
    """Number of parameters with elements that the body reads, through views or not, and of the values that it stores
    from tiles of their own."""
    through = {op.results[0].name: op.operands[0].name for op in body.ops if OPS[op.name].kind is Kind.VIEW}
    through |= {op.results[0].name: op.operands[1].name for op in body.ops if op.name == "insert"}
    read = [v for op in body.ops if op.results[0].name not in through for v in op.operands[op.name in _WRITES_INTO :]]
    params = {p.name: p for p in body.params}
    moved = {r.name for op in body.ops if op.name in _STORES_LOADED for r in op.results}
    found, stored = ({_source(v.name, through) for v in values} for values in (read, body.results))
    loaded = [name for name in found | stored if name in params and params[name].type.elements]
    return len(loaded) + sum(name not in params and name not in moved for name in stored)


def _source(name: str, through: Mapping[str, str]) -> str:
    while name in through:
        name = through[name]
    return name


def _require(rings: int, quantifier: str, target: Target) -> None:
    limit = target.sync.rings_per_cu
    if rings > limit:
        raise NotFusable(f"the kernel needs {quantifier}{rings} rings, a unit has {limit} (sync.rings_per_cu)")

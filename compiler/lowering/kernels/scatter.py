"""Scatters: rows of a tensor overwritten or combined by index.

The canonical form is data [R, C], indices [N, 1], updates [N, C]. The result shares operand 0's memory, so the kernel
only stores the updates, in order. Where an index may repeat, one unit handles all rows of a column, so the order in
which units run has no effect.

Invariant: each element of the result is written by one unit, in the order of the updates. Combining in a float type
narrower than f32 rounds after every update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.gather import INDEX_DEPTH, load_list
from ppuc.compiler.lowering.kernels.move_bodies import flat_list, only_anchor, stored_view, unpadded
from ppuc.compiler.lowering.kernels.move_tiles import COPY_DEPTH, cuts, ladder, slot_bytes
from ppuc.compiler.lowering.tiling.body import External, NotFusable, Resolver
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling, distribute, tile_index
from ppuc.ir import views
from ppuc.ir.affine import Affine
from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import Gather, Load, Store, View
from ppuc.ir.ops.movement import ScatterNdAttrs
from ppuc.ir.types import DType
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class ScatterOperands:
    """Views of a scatter's index list, updates [N, C] and result [R, C], and how updates combine."""

    indices: External
    updates: External
    result: View
    reduction: str


@dataclass(frozen=True, slots=True)
class ScatterTiling:
    """Tile extents along columns and updates, and the units of each of the two loops."""

    columns: int
    updates: int
    column_units: int
    update_units: int


def is_canonical(op: Op) -> bool:
    """Whether a `scatter_nd` has the row form that the kernel supports."""
    data, indices, updates = (v.type for v in op.operands)
    return (data.rank, indices.rank, updates.rank) == (2, 2, 2) and indices.dims[1] == 1


def all_distinct(indices: np.ndarray, rows: int) -> bool:
    """Whether all rows are distinct (an index may count from the end)."""
    flat = indices.reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + rows, flat)
    return int(np.unique(flat).size) == flat.size


def lower_scatter(
    name: str,
    body: Graph,
    tensors: Mapping[str, str],
    loc: tuple[str, ...],
    target: Target,
    indices: np.ndarray | None = None,
) -> KernelBuilder:
    """Lower a group around one canonical `scatter_nd` whose result shares the memory of its operand 0.

    `indices` are the values of a constant index operand: updates of distinct rows are distributed over the units.
    Raises NotFusable.
    """
    kernel, found = KernelBuilder(name, loc), scatter_operands(body)
    if not found.updates.view.elements:
        return kernel
    distinct = indices is not None and all_distinct(indices, found.result.shape[0])
    _build(kernel, body, found, _choose(found, distinct, target), tensors)
    return kernel


def scatter_operands(body: Graph) -> ScatterOperands:
    """The operands of the body's one `scatter_nd`. Raises NotFusable."""
    anchor, resolver = only_anchor(body, "scatter_nd"), Resolver(body)
    if not is_canonical(anchor):
        raise NotFusable(f"scatter_nd of {', '.join(str(v.type) for v in anchor.operands)} is not in row form")
    assert isinstance(anchor.attrs, ScatterNdAttrs)
    result = _result_view(body, anchor, resolver)
    listed, updates = flat_list(resolver, anchor.operands[1]), unpadded(resolver, anchor.operands[2])
    _check_end(listed.value.type.dtype, result.shape[0])
    return ScatterOperands(listed, updates, result, anchor.attrs.reduction)


def _result_view(body: Graph, anchor: Op, resolver: Resolver) -> View:
    """The result's memory as rows. Raises NotFusable unless operand 0 has the same elements at the same addresses."""
    stored, data = stored_view(body, anchor), unpadded(resolver, anchor.operands[0])
    whole = data.value.type.elements == body.results[0].type.elements
    if not whole or views.coalesced(data.view) != views.coalesced(stored):
        raise NotFusable("the result does not share operand 0's memory")
    return stored


def _check_end(dtype: DType, rows: int) -> None:
    """Raise NotFusable unless `dtype` holds `rows`, the out-of-range index that pads the list."""
    if not dtype.is_integer or rows > np.iinfo(dtype.numpy).max:
        raise NotFusable(f"indices in {dtype} cannot represent the padding index {rows}")


def _choose(found: ScatterOperands, distinct: bool, target: Target) -> ScatterTiling:
    """The cheapest tiling that fits l1."""
    count, columns = found.updates.view.shape
    dtype, index_dtype = found.updates.value.type.dtype, found.indices.value.type.dtype
    for limit in (cost.l1_budget(target), target.l1.bytes):
        best: tuple[float, ScatterTiling] | None = None
        for width in ladder(columns, target.cu):
            for height in ladder(count, target.cu):
                rows = slot_bytes(height, index_dtype) * INDEX_DEPTH
                if slot_bytes(width * height, dtype) * COPY_DEPTH + rows > limit:
                    continue
                trips = (cuts(columns, width), cuts(count, height) if distinct else 1)
                tiling = ScatterTiling(width, height, *distribute(trips, target.cu))
                price = _price(found, tiling, target)
                if best is None or price < best[0]:
                    best = price, tiling
        if best is not None:
            return best[1]
    raise NotFusable(f"no tile of {count} updates of {columns} columns fits l1 of {target.l1.bytes} bytes")


def _price(found: ScatterOperands, tiling: ScatterTiling, target: Target) -> float:
    """Cycles of the busiest unit."""
    updates, view = found.updates, found.result
    count, columns = updates.view.shape
    tile = [tiling.updates, tiling.columns]
    shares = cuts(cuts(columns, tile[1]), tiling.column_units) * cuts(cuts(count, tile[0]), tiling.update_units)
    active, dtype = tiling.column_units * tiling.update_units, updates.value.type.dtype
    read = cost.box_traffic(updates.view, tile, dtype, target)
    row = cost.box_traffic(View((view.shape[1],), (view.strides[1],)), [tile[1]], dtype, target)
    load = cost.load_clk(read, target, active) + 2 * cost.overhead_clk(target)
    store = cost.store_clk(row * tile[0], target, active) + cost.overhead_clk(target)
    latency = cost.latency_clk(target)
    return shares * max(load, store, (2 * latency + load + store) / COPY_DEPTH) + 2 * latency + load + store


def _build(
    kernel: KernelBuilder, body: Graph, found: ScatterOperands, tiling: ScatterTiling, tensors: Mapping[str, str]
) -> None:
    """The nest: columns outside, updates in order inside."""
    updates, view, dtype = found.updates, found.result, found.updates.value.type.dtype
    count, columns = updates.view.shape
    across = Tiling("c", columns, tiling.columns, tiling.column_units)
    down = Tiling("n", count, tiling.updates, tiling.update_units)
    nest = Nest([across, down])
    rows = load_list(kernel, nest, tensors[found.indices.value.name], found.indices, down, pad=view.shape[0])
    tile = kernel.buffer("t", dtype, (down.tile, across.tile), depth=COPY_DEPTH)
    source = kernel.param(tensors[updates.value.name], dtype, updates.view)
    nest.add(2, Load(tile, source, tile_index([down.offset, across.offset], [0, 1])))
    result = kernel.param(tensors[body.results[0].name], dtype, view, written=True)
    index = tile_index([Affine(), across.offset], [None, 1])
    combine = "" if found.reduction == "none" else found.reduction
    nest.add(2, Store(result, tile, index, scatter=Gather(0, rows, 0), combine=combine))
    kernel.nests.append(nest)

"""Gathers: rows of a tensor selected by an index list in l1.

The data is viewed as [outer..., S, inner...] with outer and inner axes merged where memory allows, the result likewise
with J indices in place of S. The loop over indices is outermost, so that one load of an index list serves all tiles
that use it: a gather waits for its list, a full memory latency each time.

Invariant: elements are moved unchanged; an index outside the data reads zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.move_bodies import flat_list, only_anchor, stored_view, unpadded
from ppuc.compiler.lowering.kernels.move_tiles import COPY_DEPTH, cuts, fill, ladder, slot_bytes
from ppuc.compiler.lowering.tiling.body import External, NotFusable, Resolver
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK, KernelBuilder, Nest, Tiling, distribute, tile_index
from ppuc.compiler.lowering.tiling.space import merge
from ppuc.ir import views
from ppuc.ir.affine import Affine
from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import MAX_VIEW_RANK, Gather, Load, Store, View
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.types import DType
from ppuc.targets.schema import Target

INDEX_DEPTH = 2
"""Slots of an index list: double buffering."""
_APART = 1 << 48
"""A stride that prevents merging with neighbouring axes: indexed rows are not contiguous."""


@dataclass(frozen=True, slots=True)
class GatherGeometry:
    """`sizes` are the axes of the result, with the indices at axis `axis`; the data has `rows` there."""

    sizes: tuple[int, ...]
    axis: int
    data: View
    result: View
    indices: View
    dtype: DType
    index_dtype: DType

    @property
    def order(self) -> tuple[int, ...]:
        """Axes in loop order: the indices, then the others."""
        return (self.axis, *(i for i in range(len(self.sizes)) if i != self.axis))

    def tile_axes(self, tiles: Sequence[int]) -> list[int]:
        """Axes of a tile: the indices always, others with more than one element."""
        return [i for i, t in enumerate(tiles) if t > 1 or i == self.axis]


def gather_geometry(anchor: Op, data: External, indices: External, stored: View) -> GatherGeometry:
    """The merged shape of one gather. Raises NotFusable if the index dimensions of the result do not merge."""
    assert isinstance(anchor.attrs, GatherAttrs)
    axis, rank, x = anchor.attrs.axis, anchor.operands[1].type.rank, data.view
    count = indices.view.elements
    listed = View(stored.shape[axis : axis + rank], stored.strides[axis : axis + rank])
    merged = views.reshape(listed, (count,))
    if merged is None:
        raise NotFusable("the result's index dimensions are not one strided axis")
    outer = _merged_part(x, stored, slice(0, axis), slice(0, axis))
    inner = _merged_part(x, stored, slice(axis + 1, None), slice(axis + rank, None))
    gathered = (count, x.shape[axis], x.strides[axis], merged.strides[0])
    sizes, shape, data_strides, strides = zip(*outer, gathered, *inner, strict=True)
    if len(sizes) > MAX_VIEW_RANK:
        raise NotFusable(f"the gather has {len(sizes)} axes, a descriptor {MAX_VIEW_RANK}")
    return GatherGeometry(
        sizes,
        len(outer),
        View(shape, data_strides, x.offset),
        View(sizes, strides, stored.offset),
        indices.view,
        data.value.type.dtype,
        indices.value.type.dtype,
    )


def _merged_part(x: View, stored: View, of_x: slice, of_result: slice) -> list[tuple[int, int, int, int]]:
    """Merged axes on one side of the gathered one: size, the data's size (1 if broadcast) and stride, the result's
    stride."""
    source = View(x.shape[of_x], x.strides[of_x])
    result = View(stored.shape[of_result], stored.strides[of_result])
    space = merge(result.shape, (), {"data": source, "result": result})
    parts = []
    for i, found in enumerate(space.axes):
        if found.size > 1:
            data, stride = space.accesses["data"].view, space.accesses["result"].view.strides[i]
            parts.append((found.size, data.shape[i], data.strides[i], stride))
    return parts


# -- tile search -----------------------------------------------------------------------------------------------------


def _bytes(geometry: GatherGeometry, tiles: Sequence[int]) -> int:
    rows = slot_bytes(tiles[geometry.axis], geometry.index_dtype) * INDEX_DEPTH
    return slot_bytes(math.prod(tiles), geometry.dtype) * COPY_DEPTH + rows


def _candidates(geometry: GatherGeometry, target: Target) -> Iterator[tuple[int, ...]]:
    count, axis = geometry.sizes[geometry.axis], geometry.axis
    for volume in ladder(math.prod(geometry.sizes), target.cu):
        widths = {count, *(1 << e for e in range(count.bit_length())), *ladder(count, target.cu)}
        for width in sorted(w for w in widths if w <= volume):
            tiles = fill(geometry.sizes, volume, {axis: width})
            if len(geometry.tile_axes(tiles)) <= MAX_TILE_RANK:
                yield tiles


def _units(geometry: GatherGeometry, tiles: Sequence[int], target: Target) -> tuple[int, ...]:
    """Units per loop, in loop order."""
    return distribute(tuple(cuts(geometry.sizes[i], tiles[i]) for i in geometry.order), target.cu)


def _price(geometry: GatherGeometry, tiles: Sequence[int], target: Target) -> float:
    """Cycles of the busiest unit."""
    units = _units(geometry, tiles, target)
    shares = [cuts(cuts(geometry.sizes[i], tiles[i]), n) for i, n in zip(geometry.order, units, strict=True)]
    active = math.prod(units)
    strides = tuple(_APART if i == geometry.axis else s for i, s in enumerate(geometry.data.strides))
    extents = [t if i == geometry.axis or geometry.data.shape[i] > 1 else 1 for i, t in enumerate(tiles)]
    rows = cost.box_traffic(View(geometry.sizes, strides), extents, geometry.dtype, target).rows
    read = cost.Traffic(math.prod(tiles) * geometry.dtype.bytes, rows)
    listed = cost.box_traffic(geometry.indices, [tiles[geometry.axis]], geometry.index_dtype, target)
    load = cost.load_clk(read, target, active) + cost.overhead_clk(target)
    fetch = cost.load_clk(listed, target, active) + cost.overhead_clk(target)
    written = cost.box_traffic(geometry.result, tiles, geometry.dtype, target)
    store = cost.store_clk(written, target, active) + cost.overhead_clk(target)
    latency = cost.latency_clk(target)
    beat = max(load, store, (2 * latency + load + store) / COPY_DEPTH)
    return shares[0] * (latency + fetch + math.prod(shares[1:]) * beat) + latency + load + store


def _choose(geometry: GatherGeometry, target: Target) -> tuple[int, ...]:
    for limit in (cost.l1_budget(target), target.l1.bytes):
        fitting = [t for t in dict.fromkeys(_candidates(geometry, target)) if _bytes(geometry, t) <= limit]
        if fitting:
            return min(fitting, key=lambda tiles: _price(geometry, tiles, target))
    raise NotFusable(f"no tile of {list(geometry.sizes)} fits l1 of {target.l1.bytes} bytes")


# -- building --------------------------------------------------------------------------------------------------------


def gather_operands(body: Graph) -> tuple[External, External, GatherGeometry] | None:
    """Data, indices and shape of the body's one `gather`; None if its result is empty. Raises NotFusable."""
    anchor, resolver = only_anchor(body, "gather"), Resolver(body)
    stored = stored_view(body, anchor)
    if not anchor.result.type.elements:
        return None
    data, indices = unpadded(resolver, anchor.operands[0]), flat_list(resolver, anchor.operands[1])
    return data, indices, gather_geometry(anchor, data, indices, stored)


def lower_gather(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one `gather`. Raises NotFusable."""
    kernel, found = KernelBuilder(name, loc), gather_operands(body)
    if found is None:
        return kernel
    data, indices, geometry = found
    tiles = _choose(geometry, target)
    units = _units(geometry, tiles, target)
    loops = [Tiling(f"d{i}", geometry.sizes[i], tiles[i], n) for i, n in zip(geometry.order, units, strict=True)]
    nest = Nest(loops)
    rows = load_list(kernel, nest, tensors[indices.value.name], indices, loops[0])
    source = kernel.param(tensors[data.value.name], geometry.dtype, geometry.data)
    result = kernel.param(tensors[body.results[0].name], geometry.dtype, geometry.result, written=True)
    _add_tile(kernel, nest, geometry, tiles, rows, source, result)
    kernel.nests.append(nest)
    return kernel


def _add_tile(
    kernel: KernelBuilder,
    nest: Nest,
    geometry: GatherGeometry,
    tiles: Sequence[int],
    rows: str,
    source: str,
    result: str,
) -> None:
    """The load and the store of one tile, inside all loops."""
    kept, offsets = geometry.tile_axes(tiles), {loop.name: loop.offset for loop in nest.loops}
    at = [offsets[f"d{i}"] for i in range(len(tiles))]
    along = [kept.index(i) if i in kept else None for i in range(len(tiles))]
    varies = [i != geometry.axis and size > 1 for i, size in enumerate(geometry.data.shape)]
    read = tile_index(
        [a if v else Affine() for a, v in zip(at, varies, strict=True)],
        [a if v else None for a, v in zip(along, varies, strict=True)],
    )
    tile = kernel.buffer("t", geometry.dtype, [tiles[i] for i in kept], depth=COPY_DEPTH)
    gather = Gather(geometry.axis, rows, kept.index(geometry.axis))
    nest.add(len(nest.loops), Load(tile, source, read, gather=gather))
    nest.add(len(nest.loops), Store(result, tile, tile_index(at, along)))


def load_list(kernel: KernelBuilder, nest: Nest, tensor: str, indices: External, loop: Tiling, pad: float = 0.0) -> str:
    """Add the load of the index list of one iteration of `loop`, padded with `pad` beyond its end."""
    dtype = indices.value.type.dtype
    rows = kernel.buffer("rows", dtype, (loop.tile,), depth=INDEX_DEPTH)
    param = kernel.param(tensor, dtype, indices.view)
    nest.add(nest.depth_of([loop.name]), Load(rows, param, tile_index([loop.offset], [0]), pad))
    return rows

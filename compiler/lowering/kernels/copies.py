"""Strided copies: the kernels of transposes, slices, pads and concatenations.

A Copy reads one strided view and writes another over a common iteration space whose axes are merged as far as both
memories allow. Its tile passes through l1 once. If the two views are contiguous along different axes and the cost model
favours it, the tile is loaded in the source's order and transposed by the vector engine.

Invariants: elements are unchanged (a transpose may replace one NaN by another). Several copies in one kernel write
disjoint parts of the result, and each loops over every axis of their shared grid, so no part is written twice.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.move_tiles import COPY_DEPTH, cuts, fill, ladder, slot_bytes, tile_axes
from ppuc.compiler.lowering.tiling.body import External, NotFusable
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK, KernelBuilder, Nest, Tiling, distribute, tile_index
from ppuc.compiler.lowering.tiling.space import Access, merge
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine
from ppuc.ir.kernel import MAX_VIEW_RANK, Load, Loop, Stmt, Store, Vec, View
from ppuc.ir.types import DType
from ppuc.targets.schema import Target

TRANSPOSED_DEPTH = 2
"""Slots of a transposed tile."""
_TRANSPOSABLE = (DType.F32, DType.F16, DType.BF16, DType.F8E4M3, DType.BOOL)
"""Floats (and bool) that the vector engine passes through unchanged; infinities of f8e5m2 would saturate."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The geometry of a copy: axis sizes, and the views of source and result, which has all axes."""

    sizes: tuple[int, ...]
    source: Access
    result: View
    dtype: DType

    def offset(self, axis: int, at: Affine) -> Affine:
        """Index of the source along `axis` when the iteration is `at`."""
        return (at if self.source.present(axis) else Affine()) - self.source.low[axis]


@dataclass(frozen=True, slots=True)
class Copy:
    """One strided copy between two graph values."""

    geometry: Geometry
    source: str
    result: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiling of a copy. `transposed` tiles are loaded with their axes in the order of the source's memory. A tile
    takes `work_clk` cycles, and in the long run `beat_clk`, as its slots are not free before it is stored."""

    tiles: tuple[int, ...]
    transposed: bool
    beat_clk: float
    work_clk: float


@dataclass(slots=True)
class SharedNest(Nest):
    """A nest with loops over grid axes that it shares with other nests of its kernel. `over` maps a loop to its axis
    and units; such a loop is kept even with one iteration, which the first unit runs."""

    over: dict[str, tuple[str, int]] = field(default_factory=dict)

    def build(self, depth: int = 0) -> tuple[Stmt, ...]:
        """The statements from `depth` inwards."""
        inner: tuple[Stmt, ...] = ()
        if depth < len(self.loops):
            loop, inner = self.loops[depth], self.build(depth + 1)
            distributed = self.over.get(loop.name)
            if inner and (loop.exists or distributed is not None):
                inner = (Loop(loop.name, loop.size, loop.tile, inner, None if distributed is None else distributed[0]),)
        return (*self.before.get(depth, ()), *inner, *self.after.get(depth, ()))

    @property
    def grid(self) -> tuple[tuple[str, int], ...]:
        """The grid axes that the loops run over."""
        return tuple(self.over.values())


def strided_copy(external: External, result: View, source_tensor: str, result_tensor: str) -> Copy:
    """The copy of `external` to `result`, both over the same domain. Raises NotFusable."""
    if external.padded and external.view.elements == 0:
        raise NotFusable("a padded operand has no elements")
    space = merge(result.shape, (), {"source": external, "result": result})
    if len(space.axes) > MAX_VIEW_RANK:
        raise NotFusable(f"the copy has {len(space.axes)} axes, a descriptor {MAX_VIEW_RANK}")
    sizes = tuple(a.size for a in space.axes)
    source, target = space.accesses["source"], space.accesses["result"].view
    return Copy(Geometry(sizes, source, target, external.value.type.dtype), source_tensor, result_tensor)


# -- tile search -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def plan(geometry: Geometry, target: Target, copies: int = 1) -> Plan:
    """The cheapest tiling of one of `copies` copies that share l1. Raises NotFusable if no tile fits."""
    best: tuple[float, Plan] | None = None
    for limit in (cost.l1_budget(target) // copies, target.l1.bytes // copies):
        for tiles in _candidates(geometry, target):
            for transposed in (False, True):
                if (transposed and not _can_transpose(geometry, tiles)) or _bytes(geometry, tiles, transposed) > limit:
                    continue
                price, beat, work = _price(geometry, tiles, transposed, target)
                if best is None or price < best[0]:
                    best = price, Plan(tiles, transposed, beat, work)
        if best is not None:
            return best[1]
    among = f", shared by {copies} copies" if copies > 1 else ""
    raise NotFusable(f"no tile of {list(geometry.sizes)} fits l1 of {target.l1.bytes} bytes{among}")


def _plans(geometries: Sequence[Geometry], target: Target) -> list[Plan]:
    """The cheapest tilings whose tiles fit l1 together. Raises NotFusable."""
    plans = [plan(geometry, target) for geometry in geometries]
    taken = sum(_bytes(g, p.tiles, p.transposed) for g, p in zip(geometries, plans, strict=True))
    return plans if taken <= target.l1.bytes else [plan(geometry, target, len(geometries)) for geometry in geometries]


def _candidates(geometry: Geometry, target: Target) -> Iterator[tuple[int, ...]]:
    """Tiles that are long along the result's rows, and blocks that are also long along the source's rows."""
    sizes, strides = geometry.sizes, geometry.source.view.strides
    present = [i for i in range(len(sizes)) if geometry.source.present(i)]
    lead = min(present, key=lambda i: (abs(strides[i]), -i), default=len(sizes) - 1)
    widths, seen = [0], set()
    if lead != len(sizes) - 1:
        widths += [sizes[lead], *(1 << e for e in range(2, sizes[lead].bit_length()))]
    for volume in ladder(math.prod(sizes), target.cu):
        for width in widths:
            if width > volume:
                continue
            tiles = fill(sizes, volume, {lead: width} if width else {})
            if tiles not in seen and sum(1 for t in tiles if t > 1) <= MAX_TILE_RANK:
                seen.add(tiles)
                yield tiles


def _source_order(geometry: Geometry, tiles: Sequence[int]) -> list[int]:
    """The tile's axes from the longest to the shortest step in the source's memory."""
    return sorted(tile_axes(tiles), key=lambda i: -abs(geometry.source.view.strides[i]))


def _can_transpose(geometry: Geometry, tiles: Sequence[int]) -> bool:
    kept = tile_axes(tiles)
    if geometry.dtype not in _TRANSPOSABLE and not geometry.dtype.is_integer:
        return False
    return all(geometry.source.present(i) for i in kept) and _source_order(geometry, tiles) != kept


def _bytes(geometry: Geometry, tiles: Sequence[int], transposed: bool) -> int:
    return slot_bytes(math.prod(tiles), geometry.dtype) * (COPY_DEPTH + (TRANSPOSED_DEPTH if transposed else 0))


def _price(geometry: Geometry, tiles: tuple[int, ...], transposed: bool, target: Target) -> tuple[float, float, float]:
    """Cycles of the busiest unit, cycles between two of its tiles, and what they would be with unlimited slots."""
    trips = _trips(geometry.sizes, tiles)
    iterations, active = _alone(trips, target.cu)
    order = _source_order(geometry, tiles) if transposed else list(range(len(tiles)))
    source = geometry.source.view
    seen = View(tuple(source.shape[i] for i in order), tuple(source.strides[i] for i in order))
    extents = [tiles[i] if geometry.source.present(i) else 1 for i in order]
    rows = cost.box_traffic(seen, extents, geometry.dtype, target).rows
    traffic = cost.Traffic(math.prod(tiles) * geometry.dtype.bytes, rows)
    load = cost.load_clk(traffic, target, active) + cost.overhead_clk(target)
    written = cost.box_traffic(geometry.result, tiles, geometry.dtype, target)
    store = cost.store_clk(written, target, active) + cost.overhead_clk(target)
    vec = cost.vec_clk(math.prod(tiles), 1, target) if transposed else 0.0
    latency = cost.latency_clk(target)
    work = max(load, vec, store)
    beat = max(work, (2 * latency + load + store) / COPY_DEPTH)
    return iterations * beat + latency + load + vec + store, beat, work


def _trips(sizes: Sequence[int], tiles: Sequence[int]) -> tuple[int, ...]:
    return tuple(cuts(size, tile) for size, tile in zip(sizes, tiles, strict=True))


def _alone(trips: Sequence[int], units: int) -> tuple[int, int]:
    """Iterations of the busiest unit and the number of active units, if one copy has the target to itself."""
    grid = _own_grid(trips, units)
    return _assign(trips, grid)[0], math.prod(grid)


def _own_grid(trips: Sequence[int], units: int) -> tuple[int, int]:
    longest = (*sorted(trips, reverse=True), 1, 1)[:2]
    first, second = distribute(longest, units)
    return first, second


def _assign(trips: Sequence[int], grid: tuple[int, int]) -> tuple[int, tuple[int | None, int | None]]:
    """Iterations of the busiest unit, and the loop distributed along each axis of `grid` (None: none, so only the first
    unit along it works)."""
    longest = sorted(range(len(trips)), key=lambda i: (-trips[i], i))[:2]
    best: tuple[int, tuple[int | None, int | None]] | None = None
    for pair in itertools.permutations((*longest, None, None), 2):
        iterations = math.prod(trips)
        for loop, units in zip(pair, grid, strict=True):
            if loop is not None:
                iterations = iterations // trips[loop] * cuts(trips[loop], units)
        if best is None or iterations < best[0]:
            best = iterations, (pair[0], pair[1])
    assert best is not None
    return best


def _shared_grid(geometries: Sequence[Geometry], plans: Sequence[Plan], target: Target) -> tuple[int, int]:
    """The grid on which all copies together, run in sequence, take the fewest cycles."""
    trips = [_trips(g.sizes, p.tiles) for g, p in zip(geometries, plans, strict=True)]
    grids = sorted({_own_grid(t, target.cu) for t in trips}, reverse=True)

    def price(grid: tuple[int, int]) -> float:
        return sum(_assign(t, grid)[0] * p.beat_clk for t, p in zip(trips, plans, strict=True))

    return min(grids, key=price)


def copies_clk(copies: Sequence[Copy], target: Target) -> float:
    """Expected cycles of a kernel of these copies: one after another, but each has slots of its own, so that only one
    latency is exposed. Raises NotFusable."""
    if not copies:
        return 0.0
    geometries = [copy.geometry for copy in copies]
    plans = _plans(geometries, target)
    grid, busy, exposed = _shared_grid(geometries, plans, target), 0.0, 0.0
    for geometry, chosen in zip(geometries, plans, strict=True):
        trips = _trips(geometry.sizes, chosen.tiles)
        price, beat, work = _price(geometry, chosen.tiles, chosen.transposed, target)
        iterations = _assign(trips, grid)[0]
        work = max(work, cost.store_place_clk(target))
        busy += iterations * work + max(0.0, (iterations - COPY_DEPTH) * (beat - work))
        exposed = max(exposed, price - _alone(trips, target.cu)[0] * beat)
    return busy + exposed


# -- building --------------------------------------------------------------------------------------------------------


def add_copies(kernel: KernelBuilder, copies: Sequence[Copy], target: Target) -> None:
    """Append one nest per copy. Copies without elements must have been left out."""
    if not copies:
        return
    plans = _plans([copy.geometry for copy in copies], target)
    grid = _shared_grid([copy.geometry for copy in copies], plans, target)
    for number, (copy, chosen) in enumerate(zip(copies, plans, strict=True)):
        nest = _distributed_nest(copy.geometry, chosen, grid, f".{number}" if len(copies) > 1 else "")
        _add_tile(kernel, nest, copy, chosen)
        kernel.nests.append(nest)


def _distributed_nest(geometry: Geometry, chosen: Plan, grid: tuple[int, int], suffix: str) -> SharedNest:
    cut = zip(geometry.sizes, chosen.tiles, strict=True)
    loops = [Tiling(f"d{i}{suffix}", size, tile) for i, (size, tile) in enumerate(cut)]
    _, distributed = _assign(_trips(geometry.sizes, chosen.tiles), grid)
    over: dict[str, tuple[str, int]] = {}
    for axis, (units, loop) in enumerate(zip(grid, distributed, strict=True)):
        if units == 1:
            continue
        if loop is None:
            idle = Tiling(f"idle{axis}{suffix}", 1, 1)
            loops.insert(0, idle)
            over[idle.name] = f"c{axis}", units
        else:
            over[f"d{loop}{suffix}"] = f"c{axis}", units
    return SharedNest(loops, over=over)


def _add_tile(kernel: KernelBuilder, nest: SharedNest, copy: Copy, chosen: Plan) -> None:
    """The statements that move one tile, inside all loops."""
    geometry, depth = copy.geometry, len(nest.loops)
    kept = tile_axes(chosen.tiles)
    order = _source_order(geometry, chosen.tiles) if chosen.transposed else kept
    at = [loop.offset for loop in nest.loops[depth - len(geometry.sizes) :]]
    moving = [order.index(i) if i in order and geometry.source.present(i) else None for i in range(len(at))]
    index = tile_index([geometry.offset(i, a) for i, a in enumerate(at)], moving)
    tile = kernel.buffer("t", geometry.dtype, [chosen.tiles[i] for i in order], depth=COPY_DEPTH)
    source = kernel.param(copy.source, geometry.dtype, geometry.source.view)
    nest.add(depth, Load(tile, source, index, geometry.source.pad))
    if chosen.transposed:
        shape, perm = [chosen.tiles[i] for i in kept], [order.index(i) for i in kept]
        tile = _turn(kernel, nest, tile, geometry.dtype, shape, perm)
    result = kernel.param(copy.result, geometry.dtype, geometry.result, written=True)
    placed = tile_index(at, [kept.index(i) if i in kept else None for i in range(len(at))])
    nest.add(depth, Store(result, tile, placed))


def _turn(kernel: KernelBuilder, nest: Nest, tile: str, dtype: DType, shape: Sequence[int], perm: Sequence[int]) -> str:
    """Add a vec that transposes `tile`, including padding that was loaded outside the source."""
    builder = ProgramBuilder()
    transposed = builder.step("transpose", builder.param(dtype), ints=perm)
    name = f"{kernel.name}.turn" + (f"{len(kernel.vectors)}" if kernel.vectors else "")
    program = kernel.vector(builder.finish(name, [(transposed, dtype)]))
    out = kernel.buffer("u", dtype, shape, depth=TRANSPOSED_DEPTH)
    nest.add(len(nest.loops), Vec(program, (out,), (tile,)))
    return out

"""Several products over the same rows in one kernel: an MLP, or a projection, a norm and the product that reads it.

A unit takes a tile of rows and computes one stage after another (see `tiling.row_stages`); what is between them stays
in l1. Weights are loaded once where all of them fit l1, else in parts for every tile of rows. A product whose results
only feed the next one, element by element, is computed in chunks of columns, each of which the next product adds to
its sum (back-to-back products); one whose results are only stored is computed in chunks, too. The tensor engine then
computes a chunk while the vector engine is at the one before.

Invariant: chunks divide the columns exactly; a stage with reductions has all features of a row in its tile.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.attention_head import AttentionHead
from ppuc.compiler.lowering.kernels.back_to_back_kernel import SLOTS, Building
from ppuc.compiler.lowering.kernels.row_products import Choice, Plan, Product, RowProducts
from ppuc.compiler.lowering.kernels.row_stage import Matrix, StageLowering
from ppuc.compiler.lowering.kernels.window import even_tiles
from ppuc.compiler.lowering.kernels.window_steps import work
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK, KernelBuilder, distribute
from ppuc.compiler.lowering.tiling.tiled import Operand
from ppuc.compiler.lowering.tiling.unmerged import slot_bytes
from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import View
from ppuc.ir.types import Space
from ppuc.targets.schema import Target

PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Candidate numbers of chunks of a product's columns, and of parts of its sum."""

TOGETHER = (4, 3, 2, 1)
"""Candidate numbers of chunks in one iteration. All their products are issued first: queues are in order, so the next
product would otherwise wait until the vector engine is through with the chunk before it."""

WEIGHT_TILES = (65536, 32768, 16384, 8192, 0)
"""Candidate limits of a tile of weights that are loaded again for each tile of rows, in bytes; the last, for the
smallest tiles there are, whatever the memory that operands are in."""

OVERLAP = 1.15
"""What kernels of one product gain, relative to their prices, where engines work on different tiles; stages of one
tile follow one another. Measured on transformers in batches of 1 and 8."""

TALLEST = 256
"""Maximum rows of a tile."""


class BackToBackLowering(RowProducts):
    """Lowers a group of several products over the same rows."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        super().__init__(name, body, tensors, loc, target)
        self._clk: dict[tuple[object, ...], float] = {}  # what `_stage_clk` found
        self._chunked: dict[tuple[int, bool], list[Plan]] = {}  # what `_in_chunks` found
        self.choice = self._choose()

    # the search

    def _choose(self) -> Choice:
        tiles = self._row_tiles()
        if self.attention is not None:
            tiles = [rows for rows in tiles if self.attention.takes(rows)]
        found = [c for rows in tiles for c in self._with_rows(rows)]
        if not found:
            raise NotFusable("no tile of rows fits l1 and acc with what is between the products")
        return min(found, key=lambda c: c.price)

    def _row_tiles(self) -> list[tuple[int, ...]]:
        """Candidate row tiles, in nearly equal parts of the inner axes."""
        sizes = [axis.size for axis in self.stages[0].space.axes[: self.stages[0].outer]]
        if self.window is not None:
            return self._image_tiles(sizes, self.window.spatial)
        total = math.prod(sizes)
        wanted = {min(total, t) for t in (16, 32, 48, 64, 96, 128, 192, TALLEST)}
        wanted |= {min(-(-total // (self.target.cu * i)), TALLEST) for i in range(1, 9)}
        found = set()
        for want in wanted:
            tiles, left = [1] * len(sizes), want
            for i in reversed(range(len(sizes))):
                parts = -(-sizes[i] // min(sizes[i], max(left, 1)))
                tiles[i] = -(-sizes[i] // parts)
                left //= tiles[i]
                if parts > 1:
                    break
            found.add(tuple(tiles))
        return sorted(found)

    def _image_tiles(self, sizes: Sequence[int], spatial: int) -> list[tuple[int, ...]]:
        """Candidate tiles of an image: not much longer than wide, as a window also reads what is around them, and not
        so small that units have more than two of them where larger ones would give each one."""
        outer = (1,) * (len(sizes) - spatial)
        least = min(math.prod(sizes) // self.target.cu, TALLEST) // 2
        found = []
        for points in itertools.product(*(even_tiles(n, 64) for n in sizes[len(outer) :])):
            if math.prod(points) <= TALLEST and max(points) <= 4 * max(min(points), 4):
                found.append((*outer, *points))
        large = [tile for tile in found if math.prod(tile) >= least]
        return large if any(self._room_for(tile) for tile in large) else found

    def _room_for(self, rows: tuple[int, ...]) -> bool:
        """Whether l1 and acc have room for these row tiles and the smallest tiles of weights."""
        return self._fits(self._bytes(rows, self._plans(rows, WEIGHT_TILES[-1]), False), True)

    def _window_clk(self, rows: Sequence[int], active: int) -> tuple[float, float, int]:
        """Cycles of the vector engine and of loads for a tile of the window's results, and the bytes of its rings."""
        window, target = self.window, self.target
        assert window is not None
        points, channels = self.tile_window(rows)
        vec = work(window.window, points, [channels]) / target.vector.lanes + window.work.clk(window.tiles)
        halo = window.halo_of(window.tiles)
        extents = [min(e, n) for e, n in zip(halo, window.x.shape[1:], strict=True)]
        traffic = cost.box_traffic(View(window.x.shape[1:], window.x.strides[1:]), extents, window.dtype, target)
        load = cost.load_clk(traffic, target, active, window.x_space) + cost.overhead_clk(target)
        size = 2 * slot_bytes(math.prod(halo), window.dtype.bytes)
        size += 2 * sum(window.slot_bytes(o, window.tiles) for o in window.operands if not o.written)
        if window.w is not None:
            size += 2 * slot_bytes(window.window.taps * channels, window.w_dtype.bytes)
        return vec + cost.overhead_clk(target), load, size

    def _with_rows(self, rows: tuple[int, ...]) -> Iterator[Choice]:
        """Choices with these row tiles: weights that stay, and several sizes of the tiles of those that do not."""
        trips = tuple(-(-axis.size // t) for axis, t in zip(self.stages[0].space.axes, rows, strict=False))
        units = distribute(trips, self.target.cu) if trips else ()
        iterations = math.prod(-(-n // u) for n, u in zip(trips, units, strict=True))
        busy = math.prod(units)
        seen: set[tuple[Plan, ...]] = set()
        self._clk.clear()
        for limit in (None, *WEIGHT_TILES):
            plans = self._plans(rows, limit)
            if limit is not None and plans in seen:
                continue
            if limit is not None:
                seen.add(plans)
            columns, size = self._column_units(plans, busy), self._bytes(rows, plans, limit is None)
            for whole in (False, True):
                if self._fits(size, whole):
                    price = self._price(rows, plans, limit is None, iterations, busy * columns, columns)
                    if whole:
                        price += cost.latency_clk(self.target)
                    yield Choice(rows, units, plans, limit is None, columns, price)
                    if limit is None and not whole:
                        return  # weights that have room are not loaded again
                    break

    def _column_units(self, plans: Sequence[Plan], busy: int) -> int:
        """Units along the chunks of the last product: what precedes them is computed by each."""
        stage, plan = self.stages[-1], plans[-1]
        chunks = math.prod(-(-n // t) for n, t in zip(stage.features, plan.features, strict=True))
        if chunks == 1 or plan.features[1:] != tuple(stage.features[1:]):
            return 1
        if not all(operand.access.present(stage.outer) for _, operand in stage.stores):
            return 1
        return max(1, min(chunks, self.target.cu // busy))

    def _plans(self, rows: tuple[int, ...], limit: int | None) -> tuple[Plan, ...]:
        """A plan for each product (see `_plan`)."""
        plans: tuple[Plan, ...] = ()
        for j in range(len(self.products)):
            plans += (self._plan(j, rows, limit, fed=bool(plans) and plans[-1].feeds),)
        return plans

    def _plan(self, j: int, rows: tuple[int, ...], limit: int | None, *, fed: bool) -> Plan:
        """How product `j` is computed with tiles of weights of at most `limit` bytes (None: they stay in l1). `fed`:
        the product before hands on its chunks, which are the parts of this one's sum."""
        product, stage = self.products[j], self.stages[j + 1]
        n, k, size = math.prod(stage.features), product.k, product.right.dtype.bytes
        feeds = self.feeders[j] and not fed
        if feeds or (self.apart[j] and not fed):
            plans = self._in_chunks(j, feeds)
            narrow = [p for p in plans if limit is None or p.together * k * math.prod(p.features) * size <= limit]
            if not narrow:
                return min(plans, key=lambda p: p.together * math.prod(p.features))
            return min(narrow, key=lambda p: self._stage_clk(j, rows, p, limit is None, 1))
        whole = len(product.sum) > 1 or (j == 0 and self.attention is not None)
        parts = [k] if whole else [k // p for p in PARTS if k % p == 0 and (p == 1 or k // p % 16 == 0)]
        fitting = [part for part in parts if limit is None or part * n * size <= limit]
        return Plan(tuple(stage.features), k if limit is None or fed else (fitting or parts[-1:])[0])

    def _in_chunks(self, j: int, feeds: bool) -> list[Plan]:
        """The plans that compute product `j` a chunk of columns at a time, or several of them together."""
        if (j, feeds) not in self._chunked:
            features = tuple(self.stages[j + 1].features)
            self._chunked[j, feeds] = [
                Plan(chunk, self.products[j].k, feeds, together)
                for chunk in _chunks(features)
                for together in (TOGETHER if feeds else (1,))
                if math.prod(features) // math.prod(chunk) % together == 0
            ]
        return self._chunked[j, feeds]

    def _stage_clk(self, j: int, rows: tuple[int, ...], plan: Plan, resident: bool, active: int) -> float:
        """What `_stage_cost` finds, which is found once for each tile of rows."""
        key = (j, rows, plan, resident, active)
        if key not in self._clk:
            self._clk[key] = self._stage_cost(j, rows, plan, resident, active)
        return self._clk[key]

    def _stage_cost(self, j: int, rows: tuple[int, ...], plan: Plan, resident: bool, active: int) -> float:
        """Cycles of product `j` and its stage for one tile of rows, the fed product's included."""
        product, stage, target = self.products[j], self.stages[j + 1].at(rows, plan.features), self.target
        m, n, k = math.prod(rows), math.prod(plan.features), product.k
        chunks = math.prod(-(-a // b) for a, b in zip(stage.features, plan.features, strict=True))
        mma, steps = self._mma_clk(j, m, n, plan.k), k // plan.k
        vec, load = stage.work.clk(stage.tiles), 0.0
        if not resident:
            load += self._weight_clk(product, plan.k, n, active)
        if chunks > 1:
            load += sum(self._operand_clk(stage, o, active) for o in stage.operands)
        store = self._store_clk(stage, active)
        step = cost.overhead_clk(target) + target.tensor.fill_clk
        latency = cost.latency_clk(target, product.right.space) if load else 0.0
        if not plan.feeds:
            if chunks == 1:
                return steps * cost.beat_clk(mma, load, latency, SLOTS) + vec + 2 * step
            return chunks * cost.beat_clk(max(mma, vec, store), load, latency, SLOTS) + mma + vec + 2 * step
        following = self.products[j + 1]
        width = math.prod(self.stages[j + 2].features)
        both = mma + self._mma_clk(j + 1, m, width, n)
        if not resident:
            load += self._weight_clk(following, n, width, active)
        after = self.stages[j + 2].at(rows)
        # an iteration issues its products first; the last vector program and product follow one another
        first = max(plan.together * (vec + step) + mma, plan.together * both)
        one = max(first + both - mma + 3 * step, plan.together * load)
        return chunks // plan.together * one + after.work.clk(after.tiles)

    def _mma_clk(self, j: int, m: int, n: int, k: int) -> float:
        """Cycles of product `j` of these extents; of the results of heads, one by one."""
        dtype = cost.tensor_dtype(self.products[j].dtype, self.target)
        if j == 0 and self.attention is not None:
            return self.attention.heads * cost.mma_clk(m, n, self.attention.e, dtype, self.target)
        return cost.mma_clk(m, n, k, dtype, self.target)

    def _weight_clk(self, product: Product, k: int, n: int, active: int) -> float:
        """Cycles of the load queue for `k` x `n` weights, while `active` units load."""
        traffic = cost.Traffic(k * n * product.right.dtype.bytes, min(k, n))
        return cost.load_clk(traffic, self.target, active, product.right.space) + cost.overhead_clk(self.target)

    def _traffic(self, stage: StageLowering, operand: Operand) -> cost.Traffic:
        """Traffic of the stage's current tile of an operand or result."""
        extents = [t if operand.access.present(i) else 1 for i, t in enumerate(stage.tiles)]
        return cost.box_traffic(operand.access.view, extents, operand.dtype, self.target)

    def _operand_clk(self, stage: StageLowering, operand: Operand, active: int) -> float:
        """Cycles of the load queue for a tile of an operand of the stage's ops, while `active` units load."""
        clk = cost.load_clk(self._traffic(stage, operand), self.target, active, operand.space)
        return clk + cost.overhead_clk(self.target)

    def _store_clk(self, stage: StageLowering, active: int) -> float:
        """Cycles of the store queue for a tile of all results of a stage, while `active` units store."""
        results = [operand for _, operand in stage.stores]
        return sum(stage.stored_clk(o, self._traffic(stage, o), active) for o in results)

    def _price(
        self, rows: tuple[int, ...], plans: Sequence[Plan], resident: bool, iterations: int, active: int, columns: int
    ) -> float:
        """Expected cycles."""
        target = self.target
        tile = load = store = weights = once = attention = 0.0
        spaces: list[Space | None] = []
        if self.window is not None:
            vec, load, _ = self._window_clk(rows, active)
            tile += vec
            spaces.append(self.window.x_space)
        elif self.attention is not None:
            attention = self._attention_clk(self.attention, rows)
            load, once = self.attention.load_clk(rows, active)
            spaces += [operand.space for operand in self.attention.operands.values()]
        elif self.stages[0].kept:
            first = self.stages[0].at(rows)
            tile += first.work.clk(first.tiles) + cost.overhead_clk(target)
        for j, (product, plan) in enumerate(zip(self.products, plans, strict=True)):
            if j == 0 or not plans[j - 1].feeds:
                clk = self._stage_clk(j, rows, plan, resident, active)
                tile += clk / columns if j == len(plans) - 1 else clk
            if resident:
                weights += self._weight_clk(product, product.k, math.prod(self.stages[j + 1].features), active)
            if isinstance(product.left, Matrix):
                traffic = cost.box_traffic(product.left.view, [*rows, *product.sum], product.dtype, target)
                load += cost.load_clk(traffic, target, active, product.left.space) + cost.overhead_clk(target)
                spaces.append(product.left.space)
        for stage, features in zip(self.stages, (None, *(p.features for p in plans)), strict=True):
            stage.at(rows, features)
            chunked = math.prod(stage.features) > math.prod(stage.tiles[stage.outer :])
            load += 0.0 if chunked else sum(self._operand_clk(stage, o, active) for o in stage.operands)
            spaces += [o.space for o in stage.operands]
            store += self._store_clk(stage, active)
        latency = cost.latency_clk(target, *spaces)
        if iterations > 1:  # kernels apart start on their first tiles while the one before stores its last
            latency += (sum(bool(stage.kept) for stage in self.stages) - 1) * cost.handover_clk(target)
        ahead = cost.handover_latency_clk(target) + 2 * latency  # weights do not wait for another kernel
        # the heads of a tile overlap here as in kernels of attention alone, which gain only across tiles
        work = (OVERLAP if iterations > 1 else 1.0) * attention + OVERLAP * tile
        return latency + load + once + iterations * max(work, load) + store + max(0.0, weights - ahead)

    def _attention_clk(self, attention: AttentionHead, rows: Sequence[int]) -> float:
        """Cycles of attention's heads for a tile of rows."""
        first = self.stages[0].at(rows, (attention.e,))
        return attention.clk(rows, first.work.clk(first.tiles))

    def _fits(self, size: tuple[float, float], whole: bool) -> bool:
        """Whether these bytes of l1 and acc are there: all of them, or what the next kernel leaves."""
        target = self.target
        l1 = target.l1.bytes if whole else cost.l1_budget(target)
        acc = target.acc.bytes if whole else cost.acc_budget(target)
        return size[0] <= l1 and size[1] <= acc

    def _bytes(self, rows: tuple[int, ...], plans: Sequence[Plan], resident: bool) -> tuple[float, float]:
        """Bytes of l1 and acc; infinitely many if a tile would have too many axes."""
        held, used = 0, self._window_clk(rows, 1)[2] if self.window is not None else 0
        if self.attention is not None:
            used, held = self.attention.bytes(rows)
        for j, plan in enumerate(plans):
            stage, product = self.stages[j + 1].at(rows, plan.features), self.products[j]
            n = math.prod(plan.features)
            chunks = math.prod(stage.features) // n
            ranks = len(stage.tile_axes()), self._left_rank(j, rows), len(product.sum) + len(plan.features)
            if max(ranks) > MAX_TILE_RANK:
                return math.inf, math.inf
            held += (plan.together if plan.feeds else 2 if chunks > 1 else 1) * slot_bytes(math.prod(rows) * n, 4)
            if resident:
                used += slot_bytes(product.k * math.prod(stage.features), product.right.dtype.bytes)
            else:
                before = plans[j - 1] if j and plans[j - 1].feeds else None
                k = plan.k if before is None else math.prod(before.features)
                tiles = plan.together if before is None else before.together
                loaded = math.prod(stage.features) // n * (product.k // k)
                slots = 2 * tiles if plan.feeds or before is not None else min(SLOTS, loaded + 1)
                used += slots * slot_bytes(k * n, product.right.dtype.bytes)
            if isinstance(product.left, Matrix):
                used += 2 * slot_bytes(math.prod(rows) * product.k, product.dtype.bytes)
        for number, stage in enumerate(self.stages):
            stage.at(rows, None if number == 0 else plans[number - 1].features)
            slots = 2 * (plans[number - 1].together if number else 1)
            if number == 0 and self.attention is not None:
                stage.at(rows, (self.attention.e,))
                slots *= self.attention.heads
            used += sum(slots * stage.slot_bytes(o, stage.tiles) for o in stage.operands)
            used += sum(slots * stage.bytes_of(v.dtype, v.present) for v in stage.kept)
        return used, held

    def _left_rank(self, j: int, rows: tuple[int, ...]) -> int:
        """Axes of the tile of the left operand of product `j`."""
        return sum(n > 1 or i in self.stages[j + 1].always for i, n in enumerate(rows)) + len(self.products[j].sum)

    @property
    def price(self) -> float:
        """Expected cycles with the chosen tiles."""
        return self.choice.price

    # building

    def lower(self) -> KernelBuilder:
        """Build the kernel."""
        self.kernel.price_clk = self.choice.price
        return Building(self, self.choice).build()


@functools.lru_cache(maxsize=4096)
def _chunks(features: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Equal parts of the features, along the outer axes first; 16 columns at the least."""
    found: list[tuple[int, ...]] = []
    for i, size in enumerate(features):
        inner = math.prod(features[i + 1 :])
        for parts in PARTS:
            columns = size // parts * inner
            if size % parts == 0 and columns >= 16 and (parts == 1 or columns % 16 == 0 or i):
                tile = (*(1 for _ in features[:i]), size // parts, *features[i + 1 :])
                if tile not in found:
                    found.append(tile)
    return found or [features]


def least_clk(groups: Sequence[Op], target: Target) -> float:
    """Cycles in which a unit loads the weights of all products of consecutive groups but the last, whose columns may be
    divided among units."""
    products = [op for group in groups if group.body is not None for op in group.body.ops if op.name == "matmul"]
    size = sum(math.prod(op.operands[1].type.dims) * op.operands[1].type.dtype.bytes for op in products[:-1])
    return size / min(target.load.bytes_per_clk, target.l2.bytes_per_clk_per_cu)


def lower_back_to_back(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group of several products over the same rows. Raises NotFusable."""
    return BackToBackLowering(name, body, tensors, loc, target).lower()

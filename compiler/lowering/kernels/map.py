"""Kernels without an anchor: elementwise groups, row-wise chains with reductions (softmax, norms), copies through
views.

The domain is tiled; each operand is loaded at the depth where its axes are bound, one vector program computes the tile,
and results are stored. Reduction axes stay whole if a tile with all of them fits l1. Otherwise they are walked in
chunks, once per level of dependent reductions, with partial results in state tiles, and once more for results that need
both the elements and the reduced values. Long rows of a softmax are walked like this, too, where the machine's library
does so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.chunked import ChunkedReduction
from ppuc.compiler.lowering.tiling.body import Chain, NotFusable, analyse, op_axes, stored_part, widens
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK, KernelBuilder, Nest, Tiling, distribute
from ppuc.compiler.lowering.tiling.tiled import TiledLowering
from ppuc.ir.graph import Graph, Value
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.types import Space, broadcast_shapes
from ppuc.targets.schema import Target

DEPTHS = (3, 6, 2)
"""Candidate slots of a streamed input: with three, one tile is in use, one is ready and one is being loaded; six hide a
long latency."""


SUBLANES = 8
"""Rows of a vector register where compilers load operators whole (TPUs: registers of 8 x 128 elements)."""

BLOCK = 64
"""Points along one operand's rows in a tile that also has rows of another operand."""


def map_domain(body: Graph) -> tuple[int, ...]:
    """The iteration domain of a group without an anchor: the shape of its widest elementwise or reduced operand."""
    shapes = [op.operands[0].type.dims for op in body.ops if OPS[op.name].kind in (Kind.REDUCTION, Kind.SCAN)]
    pulled = _before_views(body)
    shapes += [v.type.dims for v in pulled]
    if not shapes:
        shapes = [stored_part(body, v)[0].type.dims for v in body.results]
    try:
        return broadcast_shapes(*shapes)
    except ValueError as error:
        raise NotFusable(str(error)) from None


def _before_views(body: Graph) -> list[Value]:
    """Results of the group's leading elementwise ops: those not preceded by a reshape of a computed value."""
    computed: set[str] = set()
    after: set[str] = set()
    found = []
    for op in body.ops:
        kind = OPS[op.name].kind
        name = op.results[0].name
        inner = [v.name for v in op.operands if v.name in computed]
        if op.name == "cast" and not inner and widens(op):  # a load, in the shape that its reader needs
            continue
        if kind is Kind.VIEW:
            if inner:
                computed.add(name)
                after.add(name)
        elif kind in (Kind.ELEMENTWISE, Kind.REDUCTION, Kind.SCAN):
            computed.add(name)
            if any(v in after for v in inner):
                after.add(name)
            elif kind is Kind.ELEMENTWISE:
                found.append(op.results[0])
    return found


def check_map(body: Graph) -> Chain:
    """The chain of a group without an anchor. Raises NotFusable."""
    return analyse(body, None, map_domain(body))


class MapLowering(TiledLowering):
    """Lowers one group without an anchor."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        super().__init__(name, body, tensors, loc, target, check_map(body))
        self.walked = self._is_long_softmax()
        """Whether rows are walked once per reduction, as the blocks of a library's softmax do."""
        self.tiles = self._walked_rows() if self.walked else self._choose()
        self.transposed = frozenset() if self.chain.direct else self.worth_transposing(self.tiles)
        self.price = self._price(self.tiles)
        self.units = self._deal(self.tiles)

    def _bytes(self, tiles: Sequence[int], chunked: bool) -> int:
        """l1 bytes of all rings. Each walk over chunks reloads an operand into a ring of its own, or into the one slot
        of a library's block."""
        total, walks = 0, self._walks()
        for operand in self.operands:
            slots = self.load_depth
            if operand.written:
                slots = 2
            elif self.walked:
                slots = 1 if any(operand.access.present(i) for i in self.reduced) else 2
            elif chunked:
                slots = 2 * walks
            total += slots * self.slot_bytes(operand, tiles)
        return total

    def _walks(self) -> int:
        """Walks over the chunks of reduced axes: one per reduction, and one if results have these axes."""
        spans = any(o.written and o.access.present(i) for o in self.operands for i in self.reduced)
        return spans + sum(1 for op in self.chain.ops if op_axes(op))

    def _state_bytes(self, tiles: Sequence[int]) -> int:
        points = math.prod(tiles[i] for i in self.parallel)
        reductions = sum(1 for op in self.chain.ops if op_axes(op))
        return reductions * 2 * (-(-points * 8 // 32) * 32)

    def _fits(self, tiles: Sequence[int], budget: int) -> bool:
        chunked = self.walked or any(tiles[i] < self.space.axes[i].size for i in self.reduced)
        rank = sum(1 for t in tiles if t > 1)
        states = self._state_bytes(tiles) if chunked else 0
        return rank <= MAX_TILE_RANK and self._bytes(tiles, chunked) + states <= budget

    def _choose(self) -> list[int]:
        """Tile sizes per axis: the cheapest of several tile volumes, filled from the innermost axis outwards. Compilers
        that load operators whole take as many rows to reduce at a time as a register holds, and load the next ones when
        these are through."""
        axes = self.space.axes
        if axes and axes[-1].reduced and self.target.launch.tile_sides == "whole columns":
            self.load_depth = 1
            rows = SUBLANES * math.prod(axes[i].size for i in self.reduced)
            if (tiles := self._fill(rows, self.target.l1.bytes, self.parallel, 1 << 62)) is not None:
                return tiles
        budget = cost.l1_budget(self.target)
        for limit in (budget, self.target.l1.bytes):
            best: tuple[float, list[int], int] | None = None
            for self.load_depth in DEPTHS:
                for volume, (order, most) in itertools.product((1 << e for e in range(4, 20)), self._orders()):
                    tiles = self._fill(volume, limit, order, most)
                    if tiles is None:
                        break
                    price = self._price(tiles)
                    if best is None or price < best[0]:
                        best = (price, tiles, self.load_depth)
            if best is not None:
                self.load_depth = best[2]
                return best[1]
        return self._chunk(self.target.l1.bytes)

    def _is_long_softmax(self) -> bool:
        """Whether rows to reduce are longer than what the machine's library keeps in registers, and a reduction needs
        their maximum."""
        held = self.target.softmax.held
        axes = self.space.axes
        if held == 0 or not axes or not axes[-1].reduced or math.prod(axes[i].size for i in self.reduced) <= held:
            return False
        maxima: set[str] = set()
        for op in self.chain.ops:
            after = any(self.chain.alias.get(v.name, v.name) in maxima for v in op.operands)
            if after and op_axes(op):
                return True
            if after or (op.name == "reduce" and op.attrs.kind == "max"):  # type: ignore[attr-defined]
                maxima.add(op.results[0].name)
        return False

    def _walked_rows(self) -> list[int]:
        """Tiles of the rows whose blocks share a unit: of fewer rows, or of parts of a row, if these do not fit l1."""
        rows = self.target.softmax.rows * math.prod(self.space.axes[i].size for i in self.reduced)
        tiles = self._fill(rows, self.target.l1.bytes, self.parallel, 1 << 62)
        return tiles if tiles is not None else self._chunk(self.target.l1.bytes)

    def _orders(self) -> list[tuple[list[int], int]]:
        """Orders in which parallel axes are filled, last axis first, and the limit of the last axis: the domain's order
        and, for operands with another memory order, blocks with rows of both."""
        orders = [(self.parallel, 1 << 62)]
        if len(self.parallel) < 2:
            return orders
        for operand in self.operands:
            strides = operand.access.view.strides
            if all(operand.access.present(i) for i in self.parallel):
                other = sorted(self.parallel, key=lambda i: -abs(strides[i]))
                for rows in (other, [*(i for i in other if i != self.parallel[-1]), self.parallel[-1]]):
                    for most in (1 << 62, BLOCK):
                        if other != self.parallel and (rows, most) not in orders:
                            orders.append((rows, most))
        return orders

    def _fill(self, volume: int, limit: int, order: Sequence[int], most: int) -> list[int] | None:
        """Tiles of about `volume` points with whole reduction axes; the last axes in `order` are filled first, the very
        last up to `most`. None if not even one row fits."""
        axes = self.space.axes
        tiles = [a.size if a.reduced else 1 for a in axes]
        if not self._fits(tiles, limit):
            return None
        for i in reversed(order):
            rest = max(1, volume // math.prod(tiles))
            if i == order[-1]:
                rest = min(rest, most)
            want = axes[i].size if rest >= axes[i].size else 1 << (rest.bit_length() - 1)
            while want > 1 and not self._fits([*tiles[:i], want, *tiles[i + 1 :]], limit):
                want = want // 2 if want & (want - 1) == 0 else 1 << (want.bit_length() - 1)
            tiles[i] = max(want, 1)
            if tiles[i] < axes[i].size and most > BLOCK:
                break
        return tiles

    def _chunk(self, limit: int) -> list[int]:
        """Tiles with chunked reduction axes: as much of the innermost axes as fits. Raises NotFusable."""
        axes = self.space.axes
        best = None
        for volume in (1 << e for e in range(18)):
            tiles = [1] * len(axes)
            rest = volume
            for i in reversed(range(len(axes))):
                tiles[i] = axes[i].size if rest >= axes[i].size else 1 << (max(rest, 1).bit_length() - 1)
                rest //= tiles[i]
            if self._fits(tiles, limit):
                best = tiles
        if best is None or any(op.name == "cumsum" for op in self.chain.ops):
            raise NotFusable(f"no tile of {[a.size for a in axes]} fits l1 of {limit} bytes")
        return best

    def _deal(self, tiles: Sequence[int]) -> list[int]:
        trips = tuple(-(-self.space.axes[i].size // tiles[i]) for i in self.parallel)
        distribution = distribute(trips, self.target.cu)
        units = [1] * len(self.space.axes)
        for i, n in zip(self.parallel, distribution, strict=True):
            units[i] = n
        return units

    def _price(self, tiles: Sequence[int]) -> float:
        units = self._deal(tiles)
        active = math.prod(units)
        iterations = 1
        for axis, tile, n in zip(self.space.axes, tiles, units, strict=True):
            trips = -(-axis.size // tile)
            iterations *= -(-trips // n)
        load_time = store_time = 0.0
        moved: dict[Space | None, float] = {}
        transposed = self.worth_transposing(tiles)
        for operand in self.operands:
            traffic = self.traffic(operand, tiles, operand.key in transposed)
            moved[operand.space] = moved.get(operand.space, 0.0) + traffic.bytes
            if operand.written:
                store_time += self.stored_clk(operand, traffic, active)
            else:
                load_time += cost.load_clk(traffic, self.target, active, operand.space)
                load_time += cost.overhead_clk(self.target)
        vec = self.work.clk(tiles) + len(transposed) * math.prod(tiles) / self.target.vector.lanes
        latency = cost.latency_clk(self.target, *(o.space for o in self.operands if not o.written))
        shared = max(n / cost.shared_rate(space, self.target, active) for space, n in moved.items())
        beat = max(load_time, vec, store_time, shared, (latency + load_time) / self.load_depth)
        if self.walked:
            beat = max(beat, latency + load_time + vec / self._walks())
        if self.walked or any(tiles[i] < self.space.axes[i].size for i in self.reduced):
            iterations *= self._walks()
        return iterations * beat + latency + load_time + vec + store_time

    # -- building ------------------------------------------------------------------------------------------------

    def lower(self) -> KernelBuilder:
        """Build the kernel."""
        axes = self.space.axes
        self.kernel.price_clk = self.price
        chunked = [i for i in self.reduced if self.walked or self.tiles[i] < axes[i].size]
        order = self.parallel + chunked
        loops = [Tiling(axes[i].name, axes[i].size, self.tiles[i], self.units[i]) for i in order]
        if not chunked:
            nest = Nest(loops)
            self.epilogue(nest, len(loops), None, after=False)
            self.kernel.nests.append(nest)
        else:
            ChunkedReduction(self, loops, len(self.parallel), self.walked).build()
        return self.kernel


def lower_map(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group without an anchor. Raises NotFusable if its ops do not form one chain."""
    return MapLowering(name, body, tensors, loc, target).lower()

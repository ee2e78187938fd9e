"""Matrix products with an epilogue.

Result axes of A alone are m axes, those of B alone n axes, the others batch axes; neighbours are merged where memory
allows, so `[batch, rows, k] x [k, n]` runs as one long m axis. Loops: batch, m, n, then k innermost; operands stream
through rings, the accumulator's ring lets the next tile start during the current one's epilogue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import (
    Rings,
    active_units,
    analyse_anchor,
    anchor_of,
    cuts,
    in_domain,
    operand_view,
    ranked,
    searched,
    sides,
    sizes,
    steps_along,
)
from ppuc.compiler.lowering.kernels.folds import array_clk, fewest_cycles, parts, serial_array
from ppuc.compiler.lowering.kernels.product import ProductLowering, TileChoice
from ppuc.compiler.lowering.tiling.body import NotFusable, unpacks
from ppuc.compiler.lowering.tiling.nest import Nest, Tiling
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir import views
from ppuc.ir.affine import Affine, axis
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Load, Mma, TileRef, Vec, View
from ppuc.ir.types import DType
from ppuc.targets.cost import hbm_bytes_per_clk, mma_shape
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Choice(TileChoice):
    """A tiling of a matmul with `k` summands per step. `resident`: the right operand is loaded whole before the first
    tile. `late`: cycles that a last wave of tiles takes beyond its share of the price, by which tilings are ranked."""

    k: int
    resident: bool = False
    late: float = 0.0


class MatmulLowering(ProductLowering):
    """Lowers a group around one matmul; `rank` selects a tiling by price, 0 being the cheapest."""

    choice: Choice

    def __init__(
        self,
        name: str,
        body: Graph,
        tensors: Mapping[str, str],
        loc: tuple[str, ...],
        target: Target,
        rank: int = 0,
    ) -> None:
        anchor = anchor_of(body, "matmul")
        chain = analyse_anchor(body, anchor)
        attrs = anchor.attrs
        (a_value, a), (b_value, b) = operand_view(body, anchor.operands[0]), self._right(body, anchor)
        if attrs.transpose_a:  # type: ignore[attr-defined]
            a = _swap_last(a)
        if attrs.transpose_b:  # type: ignore[attr-defined]
            b = _swap_last(b)
        shape = anchor.results[0].type.dims
        batch = shape[:-2]
        self.k, self.a_k, self.b_k = a.shape[-1], a.strides[-1], b.strides[-2]
        a_view = views.expand(View((*a.shape[:-1], 1), (*a.strides[:-1], 0), a.offset), (*batch, *a.shape[-2:-1], 1))
        b_view = views.expand(
            View((*b.shape[:-2], 1, b.shape[-1]), (*b.strides[:-2], 0, b.strides[-1]), b.offset),
            (*batch, 1, b.shape[-1]),
        )
        extra = {
            "a": in_domain(views.expand(a_view, shape), shape, chain.domain),
            "b": in_domain(views.expand(b_view, shape), shape, chain.domain),
        }
        super().__init__(name, body, tensors, loc, target, chain, extra)
        self.a, self.b = self.space.accesses["a"], self.space.accesses["b"]
        self.a_tensor, self.b_tensor = tensors[a_value.name], tensors[b_value.name]
        self.a_space, self.b_space = a_value.space, b_value.space
        self.dtype, self.b_dtype = a_value.type.dtype, b_value.type.dtype
        self.unpacked = self._widens(body, anchor)
        self.multiply(self.dtype if self.unpacked else self.b_dtype, "matmul")
        count = range(len(self.space.axes))
        self.m_axes = [i for i in count if self.a.present(i) and not self.b.present(i)]
        self.n_axes = [i for i in count if self.b.present(i) and not self.a.present(i)]
        # a batch axis that only B has comes before the rows, where an accumulator has no columns
        self.n_axes = [i for i in self.n_axes if not self.m_axes or i > self.m_axes[-1]]
        self.batch_axes = [i for i in count if i not in self.m_axes and i not in self.n_axes]
        if any(i in self.m_axes or i in self.batch_axes for i in self.reduced):
            raise NotFusable("the epilogue reduces over rows")
        self.choice = self._choose(rank)
        self.tiles = list(self.choice.tiles)

    @property
    def price(self) -> float:
        """Expected cycles with the chosen tiles."""
        return self.choice.price + self.choice.late

    def _right(self, body: Graph, anchor: Op) -> tuple[Value, View]:
        """The right operand's view in memory."""
        return operand_view(body, anchor.operands[1])

    def _widens(self, body: Graph, anchor: Op) -> bool:
        """Whether the right operand is widened after its load."""
        return unpacked(body, anchor)

    def _choose(self, rank: int) -> Choice:
        if self.target.launch.tile_sides == "whole columns" and (resident := self._resident()):
            return ranked(resident, min(rank, len(resident) - 1), "matmul", self.target)
        m = math.prod(self.space.axes[i].size for i in self.m_axes)
        n = math.prod(self.space.axes[i].size for i in self.n_axes)
        rows, columns = (fragment * lanes for fragment, lanes in zip(self._fragment(), self._lanes(), strict=True))
        wide = sizes(n, 16, 1 << 14) if self.reduced else sides(n, self.target, 512)
        tall = sides(m, self.target, 256)
        if not self.reduced:
            wide = sorted({*wide, *cuts([self.space.axes[i].size for i in self.n_axes], self.target, 512, columns)})
        tall = sorted({*tall, *cuts([self.space.axes[i].size for i in self.m_axes], self.target, 256, rows)})
        if serial_array(self.target):
            wide, tall = sorted({*wide, *sizes(n, columns, n)}), sorted({*tall, *sizes(m, max(rows, 16), m)})
        shapes: dict[tuple[int, ...], float] = {}
        for tn in wide:
            for tm in tall:
                tiles = [1] * len(self.space.axes)
                if self.fill(self.m_axes, tm, tiles) and self.fill(self.n_axes, tn, tiles):
                    shapes.setdefault(tuple(tiles), self._least(tiles))
        if serial_array(self.target):
            tilings = [(self._array_clk(shape, tk), (shape, tk)) for shape in shapes for tk in self._depths()]
            return ranked(fewest_cycles(tilings, self._at), rank, "matmul", self.target)
        bounded = ((least, shape) for shape, least in shapes.items())
        found = searched(bounded, lambda shape: self._best_k(list(shape), self._depths()), rank)
        return ranked(found, rank, "matmul", self.target)

    def _resident(self) -> list[Choice]:
        """Choices with the whole right operand in l1: the whole product, where its operands and its result fit a
        quarter of l1 together, else tiles of rows that stream past the weights. None where the weights do not fit three
        quarters or differ from batch to batch."""
        m, n = (math.prod(self.space.axes[i].size for i in axes) for axes in (self.m_axes, self.n_axes))
        weights, quarter = self._right_slots(n, self.k), self.target.l1.bytes // 4
        if self.unpacked or not self.m_axes or weights > 3 * quarter:
            return []
        if any(self.space.axes[i].size > 1 for i in self.batch_axes):
            return []
        tiles = [1] * len(self.space.axes)
        if not self.fill(self.n_axes, n, tiles):
            return []
        narrow = list(tiles)
        if not self.fill(self.m_axes, m, tiles):
            return []
        whole = slot(m * self.k, self.dtype) + weights
        if (
            whole + self.epilogue_bytes(tiles, 1) <= quarter
            and (rings := self.rings(self.room(tiles), 0, whole)) is not None
        ):
            return [self._streamed(tiles, m, n, replace(rings, operands=1))]
        found = []
        for tm in sizes(m, 16, 1 << 14):
            tiles = list(narrow)
            if self.fill(self.m_axes, tm, tiles):
                rings = self.rings(self.room(tiles), slot(tm * self.k, self.dtype), weights)
                found += [self._streamed(tiles, tm, n, rings)] if rings is not None else []
        return found

    def _streamed(self, tiles: Sequence[int], tm: int, n: int, rings: Rings) -> Choice:
        """The choice of tiles of `tm` rows past `n` columns of weights that stay in l1."""
        units, iterations = self.distribution(tiles)
        active = active_units(units, iterations, self.target)
        vec, store, extra = self.chain_price(tiles, active)
        load = cost.load_clk(self._traffic("a", tiles, self.k), self.target, active, self.a_space)
        mma = cost.mma_clk(tm, n, self.k, cost.tensor_dtype(self.dtype, self.target), self.target)
        latency = cost.latency_clk(self.target, self.a_space)
        beat = cost.beat_clk(mma, load, latency, rings.operands, self.target.load.in_flight)
        tile = max(self.tile_clk(rings, beat, vec, store, extra), self.handed_on_clk(rings, mma, vec, n, self.k))
        ends = load + vec + store + cost.latency_clk(self.target, self.b_space)
        price = iterations * tile + ends + self._right_load_clk(list(tiles), self.k, active, 1)
        return Choice(tuple(tiles), rings, units, price, self.k, resident=True)

    def _fragment(self) -> tuple[int, int]:
        """Rows and columns of a fragment."""
        shape = mma_shape(cost.tensor_dtype(self.dtype, self.target), self.target)
        return shape.m, shape.n

    def _lanes(self) -> tuple[int, int]:
        """Fragments along rows and columns that the engine multiplies at a time."""
        return self.target.tensor.lane_grid

    def _least(self, tiles: Sequence[int]) -> float:
        """Lower bound on the cost of any choice with these tiles: tensor-engine cycles of the busiest unit."""
        tm = math.prod(tiles[i] for i in self.m_axes)
        tn = math.prod(tiles[i] for i in self.n_axes)
        dtype = cost.tensor_dtype(self.dtype, self.target)
        return self.iterations(tiles) * cost.mma_clk(tm, tn, self.k, dtype, self.target)

    def _array_clk(self, tiles: Sequence[int], tk: int) -> float:
        """Cycles of the whole product on a serial array, in tiles with sums in steps of `tk`."""
        axes = [(axis.size, t) for axis, t in zip(self.space.axes, tiles, strict=True)]
        rows, cols, batch = (parts(axes[i] for i in mine) for mine in (self.m_axes, self.n_axes, self.batch_axes))
        steps = [tk] * (self.k // tk) + ([self.k % tk] if self.k % tk else [])
        dtype = cost.tensor_dtype(self.dtype, self.target)
        return sum(count for _, count in batch) * array_clk(rows, cols, steps, dtype, self.target)

    def _at(self, tiling: tuple[tuple[int, ...], int]) -> Choice | None:
        """The choice of these tiles and this step along k."""
        return self._best_k(list(tiling[0]), [tiling[1]])

    def _best_k(self, tiles: list[int], depths: Sequence[int]) -> Choice | None:
        tm = math.prod(tiles[i] for i in self.m_axes)
        tn = math.prod(tiles[i] for i in self.n_axes)
        units, iterations = self.distribution(tiles)
        active = active_units(units, iterations, self.target)
        vec, store, extra = self.chain_price(tiles, active)
        dtype = cost.tensor_dtype(self.dtype, self.target)
        latency = cost.latency_clk(self.target, self.a_space, self.b_space)
        trips = [-(-axis.size // t) for axis, t in zip(self.space.axes, tiles, strict=True)]
        grid = math.prod(trips[i] for i in self.m_axes), math.prod(trips[i] for i in self.n_axes)
        left, right = cost.sharers(*grid, tm, tn, self.target)
        memory = self._memory_clk(tiles, tm, tn)
        best: Choice | None = None
        room = self.room(tiles)
        for tk in depths:
            wide = 2 * slot(tk * tn, self.dtype) if self.unpacked else 0
            slots = slot(tm * tk, self.dtype) + self._right_slots(tn, tk)
            rings = self.rings(room, slots, wide)
            if rings is None:
                continue
            steps = -(-self.k // tk)
            mma = cost.mma_clk(tm, tn, tk, dtype, self.target)
            mma = max(mma, cost.l1_clk(tm, tn, tk, slots, dtype, self.target))
            a = self._traffic("a", tiles, tk)
            step_load = cost.load_clk(a, self.target, active, self.a_space, left) + cost.overhead_clk(self.target)
            step_load += self._right_load_clk(tiles, tk, active, right)
            widen = cost.vec_clk(tk * tn, self._widening_steps(), self.target) if self.unpacked else 0.0
            ahead = self.target.load.in_flight / 2
            beat = cost.beat_clk(max(mma, widen), step_load, latency, rings.operands, ahead)
            tile = self.tile_clk(rings, steps * beat, vec, store, extra)
            price = max(iterations * tile, memory)
            late = max(math.ceil(iterations) * tile, memory) - price
            if self.target.launch.tiles == "streaming":
                price += (iterations - 1) * self.delayed_clk(rings, max(mma, widen), step_load, latency, store)
                price += latency + step_load + vec + store + self.alone_clk(rings, step_load)
            if best is None or price < best.price:
                best = Choice(tuple(tiles), rings, units, price, tk, late=late)
        return best

    def _memory_clk(self, tiles: Sequence[int], tm: int, tn: int) -> float:
        """Cycles of device memory for all tiles of a machine whose l2 is a cache."""
        if self.target.l2.managed != "cache":
            return 0.0
        trips = [-(-axis.size // t) for axis, t in zip(self.space.axes, tiles, strict=True)]
        count = [math.prod(trips[i] for i in axes) for axes in (self.batch_axes, self.m_axes, self.n_axes)]
        sizes_of = self.dtype.bytes, self._right_slots(tn, self.k) / (tn * self.k)
        read = count[0] * cost.contraction_traffic(
            (tm, count[1], tm * self.k * sizes_of[0]), (tn, count[2], tn * self.k * sizes_of[1]), self.target
        )
        written = sum(math.prod(o.access.view.shape) * o.dtype.bytes for o in self.operands if o.written)
        return (read + written) / hbm_bytes_per_clk(self.target)

    def _depths(self) -> list[int]:
        """Candidate tile sizes along k."""
        dtype = cost.tensor_dtype(self.dtype, self.target)
        if serial_array(self.target):
            return sizes(self.k, max(mma_shape(dtype, self.target).k, 16), self.k)
        return steps_along(self.k, dtype, self.target)

    def _right_slots(self, tn: int, tk: int) -> int:
        """l1 bytes of one tile of the right operand as loaded."""
        return slot(tk * tn, self.b_dtype)

    def _right_load_clk(self, tiles: list[int], tk: int, active: int, sharers: int) -> float:
        """Cycles of loading one tile of the right operand, of which `sharers` units share a read."""
        traffic = cost.load_clk(self._traffic("b", tiles, tk), self.target, active, self.b_space, sharers)
        return traffic + cost.overhead_clk(self.target)

    def _widening_steps(self) -> int:
        """Lane operations to widen one weight."""
        return 1

    def _k_first(self, side: str) -> bool:
        """Whether a tile of that operand has k before its own axes, so that its rows are contiguous in memory."""
        access, k_stride = (self.a, self.a_k) if side == "a" else (self.b, self.b_k)
        mine = self.m_axes if side == "a" else self.n_axes
        inner = next((access.view.strides[i] for i in reversed(mine)), 0)
        return (inner == 1 and k_stride != 1) if side == "a" else not (k_stride == 1 and inner != 1)

    def _traffic(self, side: str, tiles: Sequence[int], tk: int) -> cost.Traffic:
        """Traffic of one operand tile, its axes in the order they have in l1."""
        access, k_stride = (self.a, self.a_k) if side == "a" else (self.b, self.b_k)
        view = access.view
        extents = [t if access.present(i) else 1 for i, t in enumerate(tiles)]
        at = 0 if self._k_first(side) else len(extents)
        strides = (*view.strides[:at], k_stride, *view.strides[at:])
        shape = (*view.shape[:at], self.k, *view.shape[at:])
        dtype = self.dtype if side == "a" else self.b_dtype
        return cost.box_traffic(
            View(shape, strides, view.offset), [*extents[:at], tk, *extents[at:]], dtype, self.target
        )

    def _load(self, nest: Nest, side: str, tk: int, k_loop: Tiling) -> tuple[str, bool, list[int]]:
        """Add the load of one operand; returns (buffer, k is the tile's first axis, tile axes of the merged space)."""
        access, tensor, k_stride = (
            (self.a, self.a_tensor, self.a_k) if side == "a" else (self.b, self.b_tensor, self.b_k)
        )
        mine = [i for i in (self.m_axes if side == "a" else self.n_axes) if i in self.tile_axes()]
        k_first = self._k_first(side)
        shape = [self.tiles[i] for i in mine]
        shape = [tk, *shape] if k_first else [*shape, tk]
        dtype = self.dtype if side == "a" else self.b_dtype
        once = self.choice.resident and (side == "b" or self.choice.rings.operands == 1)
        buffer = self.kernel.buffer(f"{side}t", dtype, shape, depth=1 if once else self.choice.rings.operands)
        view = _with_k(access.view, self.k, k_stride)
        param = self.kernel.param(tensor, dtype, view)
        loops = {loop.name: loop for loop in nest.loops}
        index: list[Affine] = []
        for i, merged in enumerate(self.space.axes):
            offset = loops[merged.name].offset if access.present(i) else Affine()
            index.append(offset + axis(mine.index(i) + k_first) if i in mine else offset)
        index.append(k_loop.offset + axis(0 if k_first else len(mine)))
        nest.add(0 if once else len(nest.loops), Load(buffer, param, tuple(index)))
        if side == "b" and self.unpacked:
            buffer = self._widened(nest, buffer, shape)
        return buffer, k_first, mine

    def _widened(self, nest: Nest, tile: str, shape: Sequence[int]) -> str:
        """Add a vec that widens a tile of weights to the tensor engine's operand type; returns its buffer."""
        builder = ProgramBuilder()
        program = builder.finish(f"{self.name}.unpack", [(builder.param(self.b_dtype), self.dtype)])
        wide = self.kernel.buffer("bw", self.dtype, shape)
        nest.add(len(nest.loops), Vec(self.kernel.vector(program), (wide,), (tile,)))
        return wide

    def accumulate(self, loops: Sequence[Tiling]) -> tuple[Nest, str]:
        """The loop over k, with the loads of both operands and the mma."""
        choice = self.choice
        k_loop = Tiling("k", self.k, choice.k)
        nest = Nest([*loops, k_loop])
        # weights first: they never wait for another kernel
        b, b_k_first, n_tile = self._load(nest, "b", choice.k, k_loop)
        a, a_k_first, m_tile = self._load(nest, "a", choice.k, k_loop)
        acc = self.accumulator()
        valid = (*(loops[i].bound for i in (*m_tile, *n_tile)), k_loop.bound)
        mma = Mma(
            acc,
            TileRef(a),
            TileRef(b),
            ("k",) if k_loop.exists else (),
            transpose_a=a_k_first,
            transpose_b=not b_k_first,
            valid=valid if any(v is not None for v in valid) else (),
        )
        nest.add(len(nest.loops), mma)
        return nest, acc


def unpacked(body: Graph, anchor: Op) -> bool:
    """Whether the anchor's right operand is widened from an 8-bit float after its load."""
    b = anchor.operands[1]
    while (op := body.producer(b)) is not None and op.operands:
        if unpacks(op):
            return True
        b = op.operands[0]
    return False


def _swap_last(view: View) -> View:
    rank = len(view.shape)
    return views.transpose(view, (*range(rank - 2), rank - 1, rank - 2))


def _with_k(view: View, k: int, stride: int) -> View:
    return View((*view.shape, k), (*view.strides, stride), view.offset)


def slot(elements: int, dtype: DType) -> int:
    """Bytes of a slot of l1."""
    return -(-elements * dtype.bytes // 32) * 32

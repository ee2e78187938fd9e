"""Common parts of matmul and convolution kernels: the anchor's domain, the l1 and acc budget, and the choice of tiles.

Invariant: the accumulator's tile axes are those of the epilogue's tiles, m axes before n axes, so the chain computes on
the accumulator as it is.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.folds import serial_array
from ppuc.compiler.lowering.tiling.body import Chain, NotFusable, Resolver, analyse
from ppuc.compiler.lowering.tiling.nest import distribute
from ppuc.compiler.lowering.tiling.tiled import TiledLowering
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.types import DType
from ppuc.ir.views import reshape
from ppuc.targets.cost import drain_clk, in_order, mma_shape
from ppuc.targets.schema import Target

MAX_DEPTH = 8
"""Maximum slots of an operand ring: deeper rings hide no more latency."""

RINGS = ((False, 2, 2), (True, 2, 2), (True, 2, 1), (True, 1, 1))
"""Candidates for (all of l1 and acc, accumulator slots, result slots), most overlap first."""


@dataclass(frozen=True, slots=True)
class Rings:
    """Slots of the operands', the accumulator's and the results' rings; `whole` if they use more than half of l1 or
    acc, which delays the next kernel's first loads."""

    operands: int
    acc: int
    out: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of l1 for the rings of operands beside these slots of the accumulator's and the results' rings; `whole` as
    in Rings."""

    l1: int
    acc: int
    out: int
    whole: bool


def anchor_of(body: Graph, *names: str) -> Op:
    """The single op of `body` with a name in `names`. Raises NotFusable unless there is exactly one."""
    found = [op for op in body.ops if op.name in names]
    if len(found) != 1:
        raise NotFusable(f"a kernel has one {' or '.join(names)} (got {len(found)})")
    return found[0]


def refinements(body: Graph, anchor: Value) -> Iterator[tuple[int, ...]]:
    """Shapes of the body's reshapes that split the anchor's axes: domains in which a result stored through a reshape
    and a transpose (attention heads) is a strided view."""
    dims = anchor.type.dims
    seen = set()
    for op in body.ops:
        shape = op.results[0].type.dims
        if op.name == "reshape" and shape not in seen and splits(dims, shape):
            seen.add(shape)
            yield shape


def splits(coarse: Sequence[int], fine: Sequence[int]) -> bool:
    """Whether every axis of `coarse` is a product of consecutive axes of `fine`."""
    if coarse == fine or math.prod(coarse) != math.prod(fine):
        return False
    i = 0
    for size in coarse:
        left = size
        while left > 1:
            if i == len(fine) or left % fine[i]:
                return False
            left //= fine[i]
            i += 1
    return all(n == 1 for n in fine[i:])


def analyse_anchor(body: Graph, anchor: Op) -> Chain:
    """The chain after `anchor`, in the anchor's own shape or a refinement of it. Raises NotFusable."""
    value = anchor.results[0]
    before = operand_ops(body, anchor)
    skip = frozenset({value.name}) | before
    try:
        return analyse(body, value, value.type.dims, skip)
    except NotFusable:
        for shape in refinements(body, value):
            try:
                return analyse(body, value, shape, skip)
            except NotFusable:
                continue
        raise


def operand_ops(body: Graph, anchor: Op) -> frozenset[str]:
    """Names of the ops that feed only the anchor's operands: views and block-quantized weights."""
    users: dict[str, list[str]] = {}
    for op in body.ops:
        for v in op.operands:
            users.setdefault(v.name, []).append(op.results[0].name)
    found = {anchor.results[0].name}
    for op in reversed(body.ops):
        name = op.results[0].name
        leads = OPS[op.name].kind is Kind.VIEW or op.name == "unblock"
        if leads and users.get(name) and all(u in found for u in users[name]):
            found.add(name)
    return frozenset(found)


def operand_view(body: Graph, value: Value) -> tuple[Value, View]:
    """The view in memory of an anchor's operand. Raises NotFusable if it is not a view of a parameter."""
    external = Resolver(body).external(value)
    if external is None or external.padded:
        raise NotFusable(f"operand {value} is not a strided view of memory")
    return external.value, external.view


def in_domain(view: View, shape: tuple[int, ...], domain: tuple[int, ...]) -> View:
    """A view of the anchor's `shape` (stride 0 where broadcast) in domain coordinates."""
    if shape == domain:
        return view
    refined = reshape(view, domain)
    if refined is None:
        raise NotFusable("an operand of the anchor cannot be split like its result")
    return refined


class ContractionLowering(TiledLowering):
    """Base of the lowerings that accumulate on the tensor engine."""

    dtype: DType
    acc_dtype: DType
    transposes: ClassVar[bool] = False
    """Whether the kernel transposes tiles of the epilogue whose rows are longer in memory order."""

    def multiply(self, right: DType, what: str) -> None:
        """Choose `acc_dtype` for products of `dtype` and `right`. Raises NotFusable if the tensor engine does not
        multiply them."""
        if not cost.multiply(self.dtype, right):
            raise NotFusable(f"operands of the {what} differ in dtype ({self.dtype} and {right})")
        if not self.target.tensor.supports(cost.tensor_dtype(self.dtype, self.target)):
            raise NotFusable(f"the tensor engine does not support {self.dtype}")
        self.acc_dtype = DType.F32 if self.dtype.is_float else DType.I32

    def room(self, tiles: Sequence[int]) -> tuple[Room, ...]:
        """What each of RINGS leaves of l1 to the operands' rings with these tiles, of those whose accumulator fits."""
        points, (read, written), found = math.prod(tiles) * 4, self._epilogue_bytes(tiles), []
        for whole, acc_depth, out_depth in RINGS:
            l1 = self.target.l1.bytes if whole else cost.l1_budget(self.target)
            acc = self.target.acc.bytes if whole else cost.acc_budget(self.target)
            if points * acc_depth <= acc:
                found.append(Room(l1 - read - out_depth * written, acc_depth, out_depth, whole))
        return tuple(found)

    def rings(self, room: Sequence[Room], step_bytes: int, fixed_bytes: int = 0) -> Rings | None:
        """Ring depths with `step_bytes` per operand slot in total and `fixed_bytes` for other rings: the first of
        `room` that fits, with operand rings as deep as the rest of l1 allows: at least two slots, which a serial array
        gives up for taller tiles. None if nothing fits."""
        least = 1 if serial_array(self.target) else 2
        for place in room:
            depth = min(MAX_DEPTH, (place.l1 - fixed_bytes) // max(step_bytes, 1))
            if depth >= least:
                return Rings(depth, place.acc, place.out, place.whole)
        return None

    def delayed_clk(self, rings: Rings, work: float, load: float, latency: float, store: float) -> float:
        """Cycles that the tensor engine waits because of the store of a tile: loads and stores share a port, so that a
        step's load is late by the time of the store, as far as the slots that are loaded ahead do not hide it. A step
        takes `work` cycles of the engine; its load arrives `latency` and `load` later."""
        return max(0.0, latency + load + work + store - rings.operands * max(work, load))

    def alone_clk(self, rings: Rings, step_load: float) -> float:
        """Cycles lost by delaying the next kernel's loads, if this kernel leaves them no room in l1."""
        return cost.latency_clk(self.target) + 2 * step_load if rings.whole else 0.0

    def tile_clk(self, rings: Rings, steps: float, vec: float, store: float, extra: float) -> float:
        """Cycles from one tile of a unit to the next: `steps` of loads and products, epilogue, operand loads of the
        epilogue. Phases without a ring to overlap in are added. As thread blocks, tiles do not overlap, and those that
        share a unit's accumulator slots wait for memory together."""
        drain = vec if rings.out > 1 else vec + store
        tile = max(steps + extra, drain, store)
        if rings.acc == 1:
            tile += vec
        if self.target.launch.tiles == "blocks":
            tile = cost.latency_clk(self.target) / rings.acc + steps + extra + vec + store
        return tile

    def handed_on_clk(self, rings: Rings, mma: float, vec: float, n: int, k: int) -> float:
        """Cycles from one tile to the next if only the accumulator's slots bind: a slot is free again when its product
        of `mma` cycles, n columns and k summands has drained and the vector engine has read it."""
        dtype = cost.tensor_dtype(self.dtype, self.target)
        drain = drain_clk(self.target, mma_shape(dtype, self.target), n, k)
        return (mma + drain + vec + 2 * cost.overhead_clk(self.target)) / rings.acc

    def epilogue_bytes(self, tiles: Sequence[int], out_depth: int = 2) -> int:
        """l1 bytes of the rings of the chain's operands and results."""
        read, written = self._epilogue_bytes(tiles)
        return read + out_depth * written

    def _epilogue_bytes(self, tiles: Sequence[int]) -> tuple[int, int]:
        """l1 bytes of the rings of the chain's operands, and of a slot of every result."""
        read = written = 0
        for operand in self.operands:
            if operand.written:
                written += self.slot_bytes(operand, tiles)
            else:
                read += self.operand_slots(operand, tiles) * self.slot_bytes(operand, tiles)
        return read, written

    def fill(self, axes: Sequence[int], points: int, tiles: list[int]) -> bool:
        """Give `axes` (outermost first) tiles of about `points` points, innermost axes first. Axes that the chain
        reduces are taken whole. Returns whether `points` suffices for these."""
        left = points
        for i in reversed(axes):
            axis = self.space.axes[i]
            if axis.reduced:
                if left < axis.size and axis.size > points:
                    return False
                tiles[i] = axis.size
            else:
                tiles[i] = min(axis.size, max(left, 1))
            if tiles[i] < axis.size:
                return not any(self.space.axes[j].reduced for j in axes if j < i)
            left //= max(tiles[i], 1)
        return True

    def chain_price(self, tiles: Sequence[int], active: int) -> tuple[float, float, float]:
        """Cycles of the epilogue of one tile: (vector, store, load)."""
        load = store = 0.0
        transposed = self.worth_transposing(tiles) if self.transposes else frozenset()
        vec = beat = self.work.clk(tiles) + len(transposed) * math.prod(tiles) / self.target.vector.lanes
        inner = max((i for i, axis in enumerate(self.space.axes) if tiles[i] < axis.size), default=-1)
        for operand in self.operands:
            traffic = self.traffic(operand, tiles, operand.key in transposed)
            if operand.written:
                store += self.stored_clk(operand, traffic, active)
                continue
            clk = cost.load_clk(traffic, self.target, active, operand.space)
            load += clk
            if inner >= 0 and operand.access.present(inner):  # loaded anew for each tile
                latency = cost.latency_clk(self.target, operand.space)
                beat = max(beat, cost.beat_clk(vec, clk, latency, self.operand_slots(operand, tiles)))
        return beat, store, load

    def iterations(self, tiles: Sequence[int]) -> float:
        """The number of tiles of the busiest unit."""
        if not in_order(self.target):
            return self.distribution(tiles)[1]
        return self._in_order(math.prod(-(-axis.size // t) for axis, t in zip(self.space.axes, tiles, strict=True)))

    def _in_order(self, count: int) -> float:
        """Tiles of the busiest unit if `count` tiles are taken in order."""
        if self.target.launch.tiles == "blocks":
            return max(1.0, count / self.target.cu)
        return -(-count // self.target.cu)

    def distribution(self, tiles: Sequence[int]) -> tuple[tuple[int, ...], float]:
        """Units per axis and the iterations of the busiest unit. On targets that run tiles as thread blocks, kernel
        libraries rank tilings by throughput: they account for too few tiles, but not for a partial last wave (whether
        to split k, they decide with it)."""
        trips = tuple(-(-axis.size // t) for axis, t in zip(self.space.axes, tiles, strict=True))
        units = distribute(trips, self.target.cu)
        if in_order(self.target):
            return units, self._in_order(math.prod(trips))
        return units, math.prod(-(-n // u) for n, u in zip(trips, units, strict=True))


def steps_along(k: int, dtype: DType, target: Target) -> list[int]:
    """Candidate tile sizes along k. Kernels on a cached l2 step by one row of a burst: what others use at the same time
    is in l2 then."""
    run = cost.run_elements(dtype, target)
    return sizes(k, run, 2 * run if target.l2.managed == "cache" else 1024)


def active_units(units: Sequence[int], iterations: float, target: Target) -> int:
    """Units active at the same time: all of them if there is more than one tile for each."""
    return target.cu if target.launch.tiles != "streaming" and iterations > 1 else math.prod(units)


LIBRARY_SIDES = (64, 128, 256)
"""Tile sides in kernel libraries: those of the vendors' and of CUTLASS's Ampere kernels begin at 64."""


Candidate = TypeVar("Candidate", bound=cost.Priced)


def ranked(found: Sequence[Candidate], rank: int, what: str, target: Target) -> Candidate:
    """The candidate with the `rank`-th lowest price (ties in the order found). Raises NotFusable if there is none."""
    if rank >= len(found):
        raise NotFusable(f"no tile of the {what} fits l1 ({target.l1.bytes} B) and acc ({target.acc.bytes} B)")
    return sorted(found, key=lambda c: c.price)[rank]


T = TypeVar("T")


def searched(tilings: Iterable[tuple[float, T]], best: Callable[[T], Candidate | None], rank: int) -> list[Candidate]:
    """The candidates of `tilings` (lower bounds of their prices, and what `best` makes one of), from the lowest bound
    on, until the `rank`-th lowest price is below all other bounds."""
    found: list[Candidate] = []
    prices: list[float] = []
    for least, tiling in sorted(tilings, key=lambda bounded: bounded[0]):
        if len(prices) > rank and least > prices[rank]:
            break
        if (candidate := best(tiling)) is not None:
            found.append(candidate)
            bisect.insort(prices, candidate.price)
    return found


def sides(limit: int, target: Target, most: int) -> list[int]:
    """Tile sides for the target's tensor engine: those of `sizes`, or the powers of two of a kernel library. Long ones
    are worthwhile where weights stay in a systolic array."""
    if target.launch.tile_sides == "powers of two":
        return [s for s in LIBRARY_SIDES if s <= min(limit, most)] or [LIBRARY_SIDES[0]]
    return sizes(limit, 16, 16 * most if target.tensor.organisation == "systolic" else most)


def cuts(extents: Sequence[int], target: Target, most: int, step: int) -> list[int]:
    """Tile sides for axes of these extents (outermost first) in addition to `sides`: multiples, up to `most`, of `step`
    (the rows or columns that the engine multiplies at a time), and whole inner axes or nearly equal parts of one."""
    if target.launch.tile_sides == "powers of two" or target.tensor.organisation == "systolic":
        return []
    limit = min(math.prod(extents), most)
    step = max(step, 16)
    found = set(range(step, limit + 1, step))
    inner = 1
    for extent in reversed(extents):
        if inner > most:
            break
        for n in range(2, 33):
            found.add(inner * min(-(-extent // (n * 16)) * 16, extent))
        inner *= extent
        found.add(inner)
    return sorted(s for s in found if 16 <= s <= limit)


def sizes(limit: int, step: int, most: int) -> list[int]:
    """Candidate tile sizes up to `limit`: `step` times powers of two and midpoints between them, and `limit` itself."""
    found = {min(limit, most)}
    size = step
    while size < min(limit, most):
        found |= {size, size + size // 2} if size > step else {size}
        size *= 2
    return sorted(s for s in found if s <= most)

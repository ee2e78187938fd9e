"""Translates a segment's instructions to the tables of the value loop.

Boxes, operands and numbers are those of the statement plans of ppuc.ir.tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ppuc.ir.errors import InternalError
from ppuc.ir.jit.pointers import address_of
from ppuc.ir.kernel import Gather, Param, View
from ppuc.ir.tile import AffinePlan, BoxPlan, LoadPlan, MmaPlan, StorePlan
from ppuc.ir.vector_steps import VecPlan
from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator import value_tables as t
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.memory import ChipMemory, UnitMemory
from ppuc.targets.simulator.shapes import restart_mask
from ppuc.targets.simulator.tables import LOAD, MMA, STORE, VEC
from ppuc.targets.simulator.value_loop import CALL

_ANY = (-(1 << 62), 1 << 62)
"""Bounds of a number that is not clamped."""

KeyRow = tuple[int, int, int, list[int]]
"""Constant, bounds, and factors of the loops."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Where operands of a product or vector program lie in its lane: offset in bytes, shape of one, dtype of bits."""

    offset: int
    shape: tuple[int, ...]
    bits: np.dtype


@dataclass(frozen=True, slots=True)
class Batched:
    """A product or vector program: how many instances its lane holds, the stacks of their operands, the offset of their
    keys (i64, `keys` of each), and the bytes of its lane."""

    plan: MmaPlan | VecPlan
    lane: int
    capacity: int
    stacks: tuple[Stack, ...]
    keys_at: int
    keys: int
    lane_bytes: int


@dataclass
class Plans:
    """Collects the rows; `of` returns them as arrays."""

    flat: FlatSegment
    chip: ChipMemory
    units: UnitMemory
    batched: dict[int, Batched] = field(default_factory=dict)
    results: int = 1

    def __post_init__(self) -> None:
        self._depth = self.flat.code.depth
        self._steps: list[dict[str, int]] = []
        self._tiles: list[tuple[int, ...]] = []
        self._patches: list[tuple[int, ...]] = []
        self._sides: list[list[tuple[int, ...]]] = []
        self._coefs: list[np.ndarray] = []
        self._axes: list[list[tuple[int, int]]] = []
        self._factors: list[np.ndarray] = []
        self._runs: list[list[tuple[int, int]]] = []
        self._keys: list[tuple[int, int, int]] = []
        self._key_coefs: list[list[int]] = []

    # Instructions, in their order.

    def call(self, writes: np.ndarray) -> None:
        """An instruction that a function executes; it writes at most these bytes."""
        low = address_of(writes)
        self._steps.append({"kind": CALL, "low": low, "high": low + writes.size})

    def load(self, plan: LoadPlan, param: Param, rings: Sequence[int]) -> None:
        """A load; `rings` are its operands."""
        more = {"pad": _signed(plan.pad), "late": int(plan.stmt.gather is None)}
        self._move(LOAD, plan, param, plan.stmt.gather, rings, more)

    def store(self, plan: StorePlan, param: Param, rings: Sequence[int]) -> None:
        """A store that does not combine."""
        self._move(STORE, plan, param, plan.stmt.scatter, rings, {})

    def mma(self, plan: MmaPlan, rings: Sequence[int]) -> None:
        """A product."""
        stacks = [(ref.shape, self._bits(r)) for ref, r in zip((plan.a, plan.b), rings[1:], strict=True)]
        step = {
            "kind": MMA,
            "restart": restart_mask(plan.stmt, plan.slots),
            "floats": int(not plan.integer),
            "acc": 1,
        }
        boxes = [-1 if ref.box is None else self._box(ref.box, None) for ref in (plan.a, plan.b)]
        self._batched(step, plan, rings, (1, 3), stacks, [], boxes, 4 * plan.m * plan.n)

    def vec(self, plan: VecPlan, rings: Sequence[int]) -> None:
        """A vector program."""
        n = len(plan.params)
        keys = [self._extent(plan, axis) for axis, bound in enumerate(plan.bounds) if bound is not None]
        keys += [(s.const, *_ANY, self._coefficients(s)) for s in plan.scalars]
        stacks = [(self.flat.rings[r].shape, self._bits(r)) for r in rings[:n]]
        acc = any(self.units.in_acc(r) for r in rings)
        size = sum(self.units.tile_bytes(r) for r in rings[n:])
        self._batched({"kind": VEC, "acc": int(acc)}, plan, rings, (0, n), stacks, keys, [-1] * n, size)

    # Parts of instructions.

    def _move(
        self,
        kind: int,
        plan: LoadPlan | StorePlan,
        param: Param,
        gather: Gather | None,
        rings: Sequence[int],
        more: dict[str, int],
    ) -> None:
        memory = self.chip.bytes_of(param.tensor)
        first, last = _reach(param.view, memory.size // param.dtype.bytes, param.name)
        box = self._box(plan.box, gather)
        at = address_of(memory)
        low, high = at + first * param.dtype.bytes, at + (last + 1) * param.dtype.bytes
        step = {"kind": kind, "box": box, "memory": at, "low": low, "high": high, **more}
        size = self.units.tile_bytes(rings[0])
        if gather is not None:
            index = self.flat.rings[rings[1]]
            count = math.prod(index.shape)
            dtype = index.dtype.numpy
            step |= {"indices": count, "index_size": dtype.itemsize, "index_signed": int(dtype.kind == "i")}
            size += 8 * count
        tile = self._tile(rings[0], box if kind == LOAD else -1, self.units.tile_bytes(rings[0]))
        self._step(step, size, [tile, *map(self._tile, rings[1:])], (0, 1))

    def _batched(
        self,
        step: dict[str, int],
        plan: MmaPlan | VecPlan,
        rings: Sequence[int],
        read: tuple[int, int],
        stacks: Sequence[tuple[tuple[int, ...], np.dtype]],
        keys: Sequence[KeyRow],
        boxes: Sequence[int],
        size: int,
    ) -> None:
        """Lay out the lane: `stacks` are the operands' shapes and dtypes, `size` the bytes of the results."""
        self.results = max(self.results, len(rings) - read[1])
        parts = [math.prod(shape) * bits.itemsize for shape, bits in stacks]
        together = sum(parts) + 8 * len(keys)
        capacity = max(1, min(t.MOST_TOGETHER, t.LANE_BYTES // max(together, 1)))
        at, offsets = 0, []
        for part in [*parts, 8 * len(keys)]:
            offsets.append(at)
            at += -(-part * capacity // 64) * 64
        lane = len(self.batched) % t.LANES
        places = tuple(Stack(o, *stack) for o, stack in zip(offsets, stacks, strict=False))
        self.batched[len(self._steps)] = Batched(plan, lane, capacity, places, offsets[-1], len(keys), at)
        tiles = [self._tile(ring) for ring in rings]
        for j, (box, part, offset) in enumerate(zip(boxes, parts, offsets, strict=False), read[0]):
            tiles[j] = self._tile(rings[j], box, part, offset)
        first = len(self._keys)
        self._keys += [key[:3] for key in keys]
        self._key_coefs += [key[3] for key in keys]
        step |= {"lane": lane, "capacity": capacity, "keys": offsets[-1], "key_lo": first, "key_hi": len(self._keys)}
        self._step(step, size, tiles, read)

    def _step(self, step: dict[str, int], size: int, tiles: list[tuple[int, ...]], read: tuple[int, int]) -> None:
        order = max(0, math.ceil(math.log2(max(size, 1) / t.SMALLEST_BLOCK)))
        lo = len(self._tiles)
        self._tiles += tiles
        where = {"tile_lo": lo, "tile_hi": lo + len(tiles), "read_lo": lo + read[0], "read_hi": lo + read[1]}
        self._steps.append({"size": size, "order": order, **where, **step})

    def _tile(self, ring: int, box: int = -1, part: int = 0, stack: int = 0) -> tuple[int, ...]:
        return *self.units.addresses(ring), self.units.tile_bytes(ring), box, part, stack

    def _bits(self, ring: int) -> np.dtype:
        return self.units.bits(ring)

    def _extent(self, plan: VecPlan, axis: int) -> KeyRow:
        """The valid extent along a bounded axis, at most that of the longest tile."""
        bound = plan.bounds[axis]
        assert bound is not None
        offset, limit = bound
        shapes = [shape for _, _, whole, shape in plan.params if not whole] + [shape for _, _, shape in plan.outs]
        longest = max(shape[axis] for shape in shapes)
        return limit - offset.const, 0, longest, [-factor for factor in self._coefficients(offset)]

    def _coefficients(self, affine: AffinePlan) -> list[int]:
        row = [0] * self._depth
        for slot, factor in affine.terms:
            row[slot] += factor
        return row

    def _box(self, box: BoxPlan, gather: Gather | None) -> int:
        """The row of a box, in bytes."""
        width, dims = box.dtype.bytes, len(box.offsets)
        factors = np.zeros((dims, len(box.shape)), np.int64)
        coefs = np.zeros((dims, self._depth), np.int64)
        sides: list[tuple[int, ...]] = []
        for d, offset in enumerate(box.offsets):
            stride, gathered = box.view.strides[d] * width, gather is not None and d == gather.dim
            coefs[d] = self._coefficients(offset)
            for a, factor in box.axes[d]:
                factors[d, a] += factor
            reach = (offset.const, box.low[d], box.high[d])
            sides.append((*reach, box.view.shape[d], 0 if gathered else stride, stride))
        axes = list(zip(box.shape, box.byte_strides, strict=True))
        runs = _runs(axes, width)
        times = math.prod(n for n, _ in runs[:-1])
        gathered_dim, gathered_axis = (gather.dim, gather.axis) if gather else (-1, -1)
        self._patches.append(
            (dims, len(axes), width, box.view.offset * width, len(runs), times, gathered_dim, gathered_axis)
        )
        self._sides.append(sides)
        self._coefs.append(coefs)
        self._axes.append(axes)
        self._factors.append(factors)
        self._runs.append(runs)
        return len(self._patches) - 1

    def arrays(self) -> t.Plans:
        """All rows."""
        names = list(t.Step.__annotations__)
        dims = max([1, *map(len, self._sides)])
        axes = max([1, *map(len, self._axes)])
        boxes = len(self._patches)
        coef = np.zeros((boxes, dims, self._depth), np.int64)
        factor = np.zeros((boxes, dims, axes), np.int64)
        for b, (coefs, factors) in enumerate(zip(self._coefs, self._factors, strict=True)):
            coef[b, : len(coefs)] = coefs
            factor[b, : factors.shape[0], : factors.shape[1]] = factors
        return t.Plans(
            step=rec.table(t.Step, [tuple(step.get(name, 0) for name in names) for step in self._steps]),
            tile=rec.table(t.Tile, list(self._tiles)),
            patch=rec.table(t.Patch, list(self._patches)),
            side=_padded(t.Side, self._sides, dims),
            coef=coef,
            axis=_padded(t.Run, self._axes, axes),
            factor=factor,
            run=_padded(t.Run, self._runs, axes),
            key=rec.table(t.Key, list(self._keys)),
            key_coef=np.array(self._key_coefs, np.int64).reshape(len(self._keys), self._depth),
        )


def _padded(row: type, lists: Sequence[Sequence[tuple[int, ...]]], width: int) -> np.ndarray:
    """A table [lists, width]; rows that a list lacks are zero."""
    found = rec.rows(row, len(lists), width)
    for i, values in enumerate(lists):
        found[i, : len(values)] = rec.table(row, list(values))
    return found


def _runs(axes: Sequence[tuple[int, int]], width: int) -> list[tuple[int, int]]:
    """Axes (size, stride in bytes) of a tile with those joined that lie in memory as one; at least one."""
    runs: list[tuple[int, int]] = []
    for size, stride in axes:
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    return runs or [(1, width)]


def _signed(bits: int) -> int:
    """The i64 with these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


def _reach(view: View, elements: int, name: str) -> tuple[int, int]:
    """The first and last element of a view. Refuses one that leaves its tensor: the value loop checks positions against
    the view alone."""
    if not all(view.shape):
        return 0, -1
    reach = [(n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)]
    first = view.offset + sum(min(0, r) for r in reach)
    last = view.offset + sum(max(0, r) for r in reach)
    if not 0 <= first <= last < elements:
        raise InternalError(f"the view of %{name} covers elements {first} to {last} of a tensor of {elements}")
    return first, last

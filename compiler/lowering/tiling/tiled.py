"""Base of tiled kernels: operands in merged space, tile shapes, box indices, valid extents, loads and stores.

Invariant: a tile of an operand has one axis per entry of `tile_axes` (the merged axes with a tile larger than one), of
size 1 where the operand is broadcast; so the tiles of one vec all have the same rank and broadcast as the graph's
values do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.tiling.body import Chain, External, op_axes
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling, tile_index
from ppuc.compiler.lowering.tiling.space import Access, IterationSpace, merge
from ppuc.compiler.lowering.tiling.vector_work import NO_WORK, VectorWork, vector_work
from ppuc.compiler.lowering.tiling.vectorise import ChainEmitter, ProgramBuilder
from ppuc.ir.affine import Affine
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Bound, Load, Store, Vec, View
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import compute_dtype
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand of a chain: its access in merged space, and its tensor. A result that is stored in parts has further
    accesses, of which each writes the points in its part."""

    key: str
    access: Access
    tensor: str
    dtype: DType
    written: bool
    space: Space | None = None
    further: tuple[Access, ...] = ()


class TiledLowering:
    """Base of the lowerings of one group. `tensors` maps the body's parameters and results to graph values; `extra` are
    further views (an anchor's operands in domain coordinates) that constrain how axes merge."""

    def __init__(
        self,
        name: str,
        body: Graph,
        tensors: Mapping[str, str],
        loc: tuple[str, ...],
        target: Target,
        chain: Chain,
        extra: Mapping[str, View] | None = None,
        separate: Sequence[int] = (),
    ) -> None:
        self.name, self.body, self.tensors, self.target, self.chain = name, body, tensors, target, chain
        self.kernel = KernelBuilder(name, loc)
        operands: dict[str, External | View] = dict(chain.externals)
        operands |= stored_parts(chain)
        operands |= extra or {}
        scans = [a for op in chain.ops if op.name in ("argreduce", "cumsum") for a in op_axes(op)]
        self.space: IterationSpace = merge(chain.domain, chain.reduce_axes, operands, [*scans, *separate])
        self.operands = self._operands()
        self.tiles: list[int] = [1] * len(self.space.axes)
        self.load_depth = 2
        self.transposed: frozenset[str] = frozenset()
        """Keys of operands whose tiles are loaded in memory order and transposed by the vector engine."""

    def _operands(self) -> list[Operand]:
        found = []
        for key, external in self.chain.externals.items():
            value = external.value
            access = self.space.accesses[key]
            found.append(Operand(key, access, self.tensors[value.name], value.type.dtype, False, value.space))
        for value in self.body.results:
            name = f"out:{value.name}"
            access, *further = (self.space.accesses[key] for key in _part_keys(self.chain, value.name))
            tensor, dtype = self.tensors[value.name], value.type.dtype
            found.append(Operand(name, access, tensor, dtype, True, value.space, tuple(further)))
        return found

    @property
    def reduced(self) -> list[int]:
        """Merged axes that reductions run along."""
        return [i for i, a in enumerate(self.space.axes) if a.reduced]

    @property
    def parallel(self) -> list[int]:
        """The other merged axes."""
        return [i for i, a in enumerate(self.space.axes) if not a.reduced]

    @functools.cached_property
    def work(self) -> VectorWork:
        """The work of the chain's ops, as a function of the tile's extents along the merged axes."""
        if self.chain.direct and all(o.dtype is self.operands[0].dtype for o in self.operands):
            return NO_WORK
        builder, spaces = ProgramBuilder(), list[Space]()
        names, in_shapes, out_shapes = dict[str, str](), list[tuple[int, ...]](), list[tuple[int, ...]]()
        if self.chain.anchor is not None:
            names[self.chain.anchor.name] = builder.param(compute_dtype(self.chain.anchor.type.dtype))
            in_shapes.append(tuple(axis.size for axis in self.space.axes))
            spaces.append(Space.ACC)
        for operand in self.operands:
            shape = tuple(a.size if operand.access.present(i) else 1 for i, a in enumerate(self.space.axes))
            if operand.written:
                out_shapes.append(shape)
            else:
                names[operand.key] = builder.param(operand.dtype)
                in_shapes.append(shape)
                spaces.append(Space.L1)
        emitter = ChainEmitter(self.chain, builder, names, self.merged_axis_of())
        for op in self.chain.ops:
            emitter.emit(op)
        results = [(emitter.value(o.key[4:]), o.dtype) for o in self.operands if o.written]
        return vector_work(builder.finish("work", results), in_shapes, out_shapes, spaces, self.target)

    def tile_axes(self) -> list[int]:
        """Merged axes of tiles."""
        kept = [i for i, t in enumerate(self.tiles) if t > 1]
        return kept or [len(self.tiles) - 1]

    def tile_shape(self, access: Access) -> tuple[int, ...]:
        """Tile of an operand."""
        return tuple(self.tiles[i] if access.present(i) else 1 for i in self.tile_axes())

    def memory_order(self, access: Access) -> list[int]:
        """The tile's axes by decreasing stride in the operand's memory."""
        return sorted(self.tile_axes(), key=lambda i: -abs(access.view.strides[i]))

    def index(
        self, access: Access, loops: Mapping[str, Tiling], order: Sequence[int] | None = None
    ) -> tuple[Affine, ...]:
        """Index of an operand's current tile per view dimension; `order` are the tile's axes in l1, by default
        `tile_axes`."""
        kept = {a: k for k, a in enumerate(order or self.tile_axes())}
        offsets, tile_axes = [], []
        for i, axis in enumerate(self.space.axes):
            loop = loops.get(axis.name)
            present = access.present(i)
            offsets.append((loop.offset if loop is not None and present else Affine()) - access.low[i])
            tile_axes.append(kept.get(i) if present else None)
        return tile_index(offsets, tile_axes)

    def valid(self, loops: Mapping[str, Tiling]) -> tuple[Bound | None, ...]:
        """Valid extents of a tile; () if every tile is whole."""
        bounds = []
        for i in self.tile_axes():
            loop = loops.get(self.space.axes[i].name)
            bounds.append(loop.bound if loop is not None else None)
        return tuple(bounds) if any(b is not None for b in bounds) else ()

    def merged_axis_of(self) -> dict[int, int]:
        """Domain axis -> merged axis."""
        return {axis: i for i, group in enumerate(groups(self.chain.domain, self.space)) for axis in group}

    def axis_of(self) -> dict[int, int]:
        """Domain axis -> tile axis."""
        kept = {a: k for k, a in enumerate(self.tile_axes())}
        found: dict[int, int] = {}
        for position, group in enumerate(groups(self.chain.domain, self.space)):
            if position in kept:
                found |= dict.fromkeys(group, kept[position])
        return found

    def slot_bytes(self, operand: Operand, tiles: Sequence[int]) -> int:
        """l1 bytes of one tile of an operand."""
        elements = math.prod(t for i, t in enumerate(tiles) if operand.access.present(i))
        return -(-elements * operand.dtype.bytes // self.target.alignment_bytes) * self.target.alignment_bytes

    def operand_slots(self, operand: Operand, tiles: Sequence[int]) -> int:
        """Ring slots of an operand of an anchor's chain: small tiles are loaded far ahead."""
        return 4 if 4 * self.slot_bytes(operand, tiles) <= self.target.l1.bytes // 32 else 2

    def stored_clk(self, operand: Operand, traffic: cost.Traffic, active: int) -> float:
        """Cycles of the store queue for a tile of a result while `active` units store."""
        clk = cost.store_clk(traffic, self.target, active, operand.space)
        return clk + cost.further_stores_clk(len(operand.further), self.target)

    def load(self, nest: Nest, operand: Operand, depth: int, limit: int | None = None, *, after: bool = False) -> str:
        """Add the load of `operand` at the depth where its axes are bound (among the first `limit` loops). With
        `after`, a load for each tile follows the inner loops: loads are in order, so waiting for another kernel's
        result would stall theirs. Returns the buffer."""
        loops = {loop.name: loop for loop in nest.loops}
        names = [a.name for i, a in enumerate(self.space.axes) if operand.access.present(i)]
        where = nest.depth_of(names)
        innermost = nest.depth_of([loop.name for loop in nest.loops[:limit]])
        order = self.order_of(operand)
        shape = tuple(self.tiles[i] if operand.access.present(i) else 1 for i in order)
        buffer = self.kernel.buffer("t", operand.dtype, shape, depth=depth if where == innermost else 2)
        param = self.kernel.param(operand.tensor, operand.dtype, operand.access.view)
        load = Load(buffer, param, self.index(operand.access, loops, order), operand.access.pad)
        late = after and limit is not None and where == innermost
        nest.add(limit if late and limit is not None else where, load, after=late)
        return buffer

    def _param(self, builder: ProgramBuilder, operand: Operand) -> str:
        """The vector program's name for a loaded operand, with its axes in domain order. If any operand is transposed,
        all are read whole, because axes differ between tiles."""
        name = builder.param(operand.dtype, whole=bool(self.transposed))
        if operand.key not in self.transposed:
            return name
        order = self.memory_order(operand.access)
        return builder.step("transpose", name, ints=[order.index(i) for i in self.tile_axes()])

    def _result(self, builder: ProgramBuilder, emitter: ChainEmitter, operand: Operand) -> str:
        """The vector program's name for a result, with its axes in the order of its tile."""
        name = emitter.value(operand.key[4:])
        if operand.key not in self.transposed:
            return name
        axes = self.tile_axes()
        return builder.step("transpose", name, ints=[axes.index(i) for i in self.memory_order(operand.access)])

    @functools.cached_property
    def _in_another_order(self) -> list[Operand]:
        """Operands whose axes lie in memory in another order than in the domain."""
        axes = range(len(self.space.axes))
        found = []
        for operand in self.operands:
            strides = [abs(operand.access.view.strides[i]) for i in axes if operand.access.present(i)]
            if strides != sorted(strides, reverse=True):
                found.append(operand)
        return found

    def traffic(self, operand: Operand, tiles: Sequence[int], transposed: bool) -> cost.Traffic:
        """Traffic of one tile of an operand, its axes in the order of the domain or, `transposed`, of its memory."""
        view, access = operand.access.view, operand.access
        order = list(range(len(tiles)))
        if transposed:
            order.sort(key=lambda i: -abs(view.strides[i]))
        seen = View(tuple(view.shape[i] for i in order), tuple(view.strides[i] for i in order))
        return cost.box_traffic(seen, [tiles[i] if access.present(i) else 1 for i in order], operand.dtype, self.target)

    def worth_transposing(self, tiles: Sequence[int]) -> frozenset[str]:
        """Operands and results that are cheaper to move in memory order and transpose than to move in domain order: a
        transpose takes the vector engine one step, while short rows cost a transfer one address each. Chunked tiles are
        excluded: their walks combine by valid extents."""
        if any(tiles[i] < self.space.axes[i].size for i in self.reduced):
            return frozenset()
        extra = math.prod(tiles) / self.target.vector.lanes
        found = set()
        for operand in self._in_another_order:
            access = operand.access
            if not all(access.present(i) for i, t in enumerate(tiles) if t > 1):
                continue
            plain, rows = (self.traffic(operand, tiles, transposed) for transposed in (False, True))
            if rows.rows < plain.rows:
                moved = [cost.load_clk(t, self.target, self.target.cu, operand.space) for t in (rows, plain)]
                if moved[0] + extra < moved[1]:
                    found.add(operand.key)
        return frozenset(found)

    def order_of(self, operand: Operand) -> list[int]:
        """The merged axes of the operand's tile in l1."""
        return self.memory_order(operand.access) if operand.key in self.transposed else self.tile_axes()

    def epilogue(self, nest: Nest, depth: int, anchor: str | None, *, after: bool, out_depth: int = 2) -> None:
        """Add, at `depth`, the loads of the chain's operands, one vec for all its ops (from the accumulator `anchor`,
        if any) and the stores of its results."""
        if self.chain.direct:
            self._copy(nest, depth)
            return
        builder = ProgramBuilder()
        names: dict[str, str] = {}
        ins = []
        if anchor is not None:
            assert self.chain.anchor is not None
            names[self.chain.anchor.name] = builder.param(compute_dtype(self.chain.anchor.type.dtype))
            ins.append(anchor)
        for operand in self.operands:
            if not operand.written:
                names[operand.key] = self._param(builder, operand)
                slots = self.load_depth if anchor is None else self.operand_slots(operand, self.tiles)
                ins.append(self.load(nest, operand, slots, depth, after=after))
        emitter = ChainEmitter(self.chain, builder, names, self.axis_of())
        for op in self.chain.ops:
            emitter.emit(op)
        written = [o for o in self.operands if o.written]
        orders = [self.order_of(o) for o in written]
        shapes = [
            tuple(self.tiles[i] if o.access.present(i) else 1 for i in order)
            for o, order in zip(written, orders, strict=True)
        ]
        outs = [
            self.kernel.buffer("o", o.dtype, shape, depth=out_depth) for o, shape in zip(written, shapes, strict=True)
        ]
        results = [(self._result(builder, emitter, o), o.dtype) for o in written]
        program = self.kernel.vector(builder.finish(self.name, results))
        loops = {loop.name: loop for loop in nest.loops}
        valid = (
            () if self.transposed else self.valid(loops)
        )  # extents of transposed tiles have another order: stores clip
        nest.add(depth, Vec(program, tuple(outs), tuple(ins), valid), after=after)
        stores = sorted(zip(written, orders, outs, strict=True), key=lambda s: len(s[0].further))
        for operand, order, buffer in stores:  # those of many parts last: other results do not wait for them
            self.store(self.kernel, nest, depth, operand, buffer, loops, order, after=after)

    def store(
        self,
        kernel: KernelBuilder,
        nest: Nest,
        depth: int,
        operand: Operand,
        buffer: str,
        loops: Mapping[str, Tiling],
        order: Sequence[int] | None = None,
        *,
        after: bool = False,
        beyond: Affine | None = None,
    ) -> None:
        """Add the stores of a result's tile to `kernel`, one for each of its parts. `beyond` is added to the index
        along the first axis: a multiple of the axis' size is outside of every part."""
        for access in (operand.access, *operand.further):
            param = kernel.param(operand.tensor, operand.dtype, access.view, written=True)
            first, *rest = self.index(access, loops, order)
            index = (first if beyond is None else first + beyond, *rest)
            nest.add(depth, Store(param, buffer, index), after=after)

    def _copy(self, nest: Nest, depth: int) -> None:
        """Add the load and store of a group that only moves or widens elements."""
        loops = {loop.name: loop for loop in nest.loops}
        loaded = {o.key: (o, self.load(nest, o, self.load_depth)) for o in self.operands if not o.written}
        for operand in self.operands:
            if operand.written:
                source, buffer = loaded[self.chain.direct[operand.key[4:]]]
                if source.dtype is not operand.dtype:
                    buffer = self._widen(nest, depth, source, buffer, operand, loops)
                self.store(self.kernel, nest, depth, operand, buffer, loops)

    def _widen(
        self, nest: Nest, depth: int, source: Operand, tile: str, result: Operand, loops: Mapping[str, Tiling]
    ) -> str:
        """Add a vec that converts a tile to another dtype; returns its buffer."""
        builder = ProgramBuilder()
        program = builder.finish(f"{self.name}.{result.dtype}", [(builder.param(source.dtype), result.dtype)])
        if program.name not in {v.name for v in self.kernel.vectors}:
            self.kernel.vector(program)
        buffer = self.kernel.buffer("o", result.dtype, self.tile_shape(result.access))
        nest.add(depth, Vec(program.name, (buffer,), (tile,), self.valid(loops)))
        return buffer


def _part_keys(chain: Chain, result: str) -> list[str]:
    return [f"out:{result}" + (f"|{i}" if i else "") for i in range(len(chain.outputs[result]))]


def stored_parts(chain: Chain) -> dict[str, External]:
    """The parts of all results, by key."""
    return {key: part for name, parts in chain.outputs.items()
            for key, part in zip(_part_keys(chain, name), parts, strict=True)}  # fmt: skip


def groups(domain: Sequence[int], space: IterationSpace) -> list[list[int]]:
    """Domain axes of every merged axis (axes of size 1 belong to none)."""
    found: list[list[int]] = []
    left = 1
    for axis, size in enumerate(domain):
        if size == 1:
            continue
        if left == 1:
            found.append([])
            left = space.axes[len(found) - 1].size
        found[-1].append(axis)
        left //= size
    return found

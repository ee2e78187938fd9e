"""One stage of a kernel of products over shared rows: its axes, operands, vector program, and tiles.

Invariant: the tiles of all stages have the same row axes, outermost; a value that a later stage reads is a tile of
whole features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ppuc.compiler.lowering.tiling.body import Chain, External, NotFusable, op_axes
from ppuc.compiler.lowering.tiling.nest import Tiling
from ppuc.compiler.lowering.tiling.row_layout import Layout, spread
from ppuc.compiler.lowering.tiling.row_stages import RowStages, StoredResult
from ppuc.compiler.lowering.tiling.space import Access, Axis, IterationSpace, merge
from ppuc.compiler.lowering.tiling.tiled import Operand, TiledLowering
from ppuc.compiler.lowering.tiling.vector_work import VectorWork, vector_work
from ppuc.compiler.lowering.tiling.vectorise import ChainEmitter, ProgramBuilder
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Bound, View
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram, compute_dtype
from ppuc.targets.schema import Target

Domain = tuple[int, ...]
"""Leaves of rows, or of features."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """An operand of a product in memory: its view has row axes and summed ones, or summed ones and columns; the first
    `first` of them are of the former kind."""

    tensor: str
    dtype: DType
    space: Space | None
    view: View
    first: int


@dataclass(frozen=True, slots=True)
class Local:
    """A computed value in l1: its dtype, and the axes of its stage along which it varies."""

    name: str
    dtype: DType
    present: tuple[bool, ...]


@dataclass(slots=True)
class Merger:
    """Merges leaves of rows, and of each list of features, where the accesses of all stages allow it."""

    rows: RowStages
    separate: bool = False
    """Keep every part of the rows an axis of its own."""
    _noted: dict[Domain, dict[str, External | View]] = field(default_factory=dict)
    _merged: dict[Domain, list[list[int]]] = field(default_factory=dict)

    def note(self, view: View, *domains: Domain) -> View:
        """Record an access with the axes of `domains`, one after another; returns it."""
        for domain, part in zip(domains, _parts(view, domains), strict=True):
            self._add(domain, part)
        return view

    def note_part(self, part: External, *domains: Domain) -> None:
        """Record a part of a result with the axes of `domains`."""
        at = 0
        for domain, view in zip(domains, _parts(part.view, domains), strict=True):
            low, extent = part.low[at : at + len(domain)], part.extent[at : at + len(domain)]
            self._add(domain, External(part.value, view, low, extent) if low else view)
            at += len(domain)

    def _add(self, domain: Domain, access: External | View) -> None:
        known = self._noted.setdefault(domain, {})
        known[str(len(known))] = access

    def sizes(self, domain: Domain) -> tuple[int, ...]:
        """The sizes of the merged axes."""
        return tuple(math.prod(self.rows.atoms.sizes[a] for a in group) for group in self._groups(domain))

    def _groups(self, domain: Domain) -> list[list[int]]:
        """The leaves of each merged axis, once all accesses are recorded."""
        if domain not in self._merged:
            self._merged[domain] = self._merge(domain)
        return self._merged[domain]

    def _merge(self, domain: Domain) -> list[list[int]]:
        if not domain:
            return []
        if self.separate and domain == self.rows.rows:
            return [[a] for a in domain]
        sizes = [self.rows.atoms.sizes[a] for a in domain]
        left, found = list(domain), []
        for axis in merge(sizes, (), self._noted.get(domain, {})).axes:
            group = [left.pop(0)]
            while math.prod(self.rows.atoms.sizes[a] for a in group) < axis.size:
                group.append(left.pop(0))
            found.append(group)
        return found

    def view(self, view: View, *domains: Domain) -> View:
        """A recorded view with merged axes."""
        shape: list[int] = []
        strides: list[int] = []
        for domain, part in zip(domains, _parts(view, domains), strict=True):
            at = 0
            for group in self._groups(domain):
                shape.append(math.prod(part.shape[at : at + len(group)]))
                at += len(group)
                strides.append(part.strides[at - 1])
        return View(tuple(shape), tuple(strides), view.offset)

    def part(self, part: External, *domains: Domain) -> Access:
        """A recorded part of a result with merged axes."""
        view = self.view(part.view, *domains)
        if not part.padded:
            return Access(view, (0,) * len(view.shape))
        ends, at = [], -1
        for group in (group for domain in domains for group in self._groups(domain)):
            at += len(group)
            ends.append(at)
        return Access(view, tuple(part.low[i] for i in ends), padded=True)

    def present(self, name: str, *domains: Domain) -> tuple[bool, ...]:
        """Whether a computed value varies along each merged axis of `domains`."""
        atoms = self.rows.atoms
        held = {a for axis in self.rows.layouts[name] for a in atoms.leaves(axis)}
        return tuple(not held.isdisjoint(group) for domain in domains for group in self._groups(domain))


def _parts(view: View, domains: Sequence[Domain]) -> list[View]:
    found, at = [], 0
    for domain in domains:
        end = at + len(domain)
        found.append(View(view.shape[at:end], view.strides[at:end]))
        at = end
    return found


class StageAccesses:
    """The accesses of one stage before axes are merged. `head` is what a stage without a product begins with, if
    anything computes it."""

    def __init__(self, rows: RowStages, number: int, merger: Merger, head: Value | None = None) -> None:
        stage = rows.stages[number]
        self.rows, self.stage, self.number = rows, stage, number
        self.domains = (rows.rows, stage.features)
        anchor = stage.product.results[0] if stage.product is not None else head
        domain = tuple(rows.atoms.sizes[a] for a in (*rows.rows, *stage.features))
        self.chain = Chain(domain, anchor, ops=stage.ops, constants=rows.constants, alias=rows.alias)
        self.reads: dict[str, tuple[str, DType, Space | None, View]] = {}
        """Operand key -> parameter, dtype, memory, view."""
        self.locals: list[str] = []
        """Values of earlier stages that the stage's ops read."""
        self.writes: list[tuple[StoredResult, list[External]]] = []
        """Results of the group, and their parts in the axes of `domains`."""
        for op in stage.ops:
            for i in range(len(op.operands)):
                self._operand(op, i)
        for result in rows.results():
            if rows.stage_of[result.source] == number:
                parts = [self._spread(part, result.layout) for part in result.parts]
                self.writes.append((result, parts))
                for part in parts:
                    merger.note_part(part, *self.domains)
        for key, (name, dtype, space, view) in self.reads.items():
            self.reads[key] = (name, dtype, space, merger.note(view, *self.domains))

    def _spread(self, part: External, layout: Layout) -> External:
        """A part of a result in the axes of `domains`."""
        whole, atoms = (*self.rows.rows, *self.stage.features), self.rows.atoms
        if not part.padded:
            return External(part.value, spread(part.view, layout, whole, atoms))
        order = [leaf for (leaf,) in layout]
        if sorted(order) != sorted(whole):
            raise NotFusable("a value that does not span the rows is stored in parts")
        at = [order.index(leaf) for leaf in whole]
        view = View(tuple(part.view.shape[i] for i in at), tuple(part.view.strides[i] for i in at), part.view.offset)
        return External(part.value, view, tuple(part.low[i] for i in at), tuple(part.extent[i] for i in at))

    def _operand(self, op: Op, i: int) -> None:
        """Find out where operand `i` of an op is."""
        rows, operand, result = self.rows, op.operands[i], op.results[0].name
        if operand.name in rows.constants:
            return
        if operand.name in rows.layouts:
            source = rows.source(operand.name)
            if rows.stage_of[source] < self.number:
                self.chain.operand_keys[result, i] = f"local:{source}"
                if source not in self.locals:
                    self.locals.append(source)
            return
        external = rows.memory(operand)
        layout = rows.given[operand.name] if op_axes(op) else rows.layouts[result]
        view = spread(external.view, layout, (*self.domains[0], *self.domains[1]), rows.atoms)
        key = f"{external.value.name}|{view.shape}{view.strides}{view.offset}"
        self.chain.operand_keys[result, i] = key
        self.reads[key] = (external.value.name, external.value.type.dtype, external.value.space, view)


class StageLowering(TiledLowering):
    """One stage. `kept` are its values that leave the vector engine, `tiles` the extents of its tiles."""

    def __init__(
        self, accesses: StageAccesses, merger: Merger, body: Graph, tensors: Mapping[str, str], target: Target
    ) -> None:
        rows, domains = accesses.rows, accesses.domains
        super().__init__(
            f"stage{accesses.number}", Graph("body", body.params, (), ()), tensors, (), target, accesses.chain
        )
        row_sizes, sizes = (merger.sizes(domain) for domain in domains)
        self.outer = len(row_sizes)
        names = [*(f"d{i}" for i in range(self.outer)), *(f"f{i}" for i in range(len(sizes)))]
        axes = tuple(Axis(name, size, False) for name, size in zip(names, (*row_sizes, *sizes), strict=True))
        self.space = IterationSpace(axes, {})
        none = (0,) * len(axes)
        self.operands = [
            Operand(key, Access(merger.view(view, *domains), none), tensors[name], dtype, False, space)
            for key, (name, dtype, space, view) in accesses.reads.items()
        ]
        self.locals = [local(rows, name, merger, domains) for name in accesses.locals]
        self.stores: list[tuple[str, Operand]] = []
        """Results of the group, each with the name of the computed value that it holds."""
        for stored, parts in accesses.writes:
            value = stored.value
            access, *further = (merger.part(part, *domains) for part in parts)
            tensor, dtype = tensors[value.name], value.type.dtype
            operand = Operand(f"out:{value.name}", access, tensor, dtype, True, value.space, tuple(further))
            self.stores.append((stored.source, operand))
        self.stores.sort(key=lambda s: len(s[1].further))  # others do not wait for those of many parts
        self.kept: list[Local] = []
        self.anchor_present: tuple[bool, ...] = ()
        self.reduces = accesses.stage.reduces
        if self.reduces and len(sizes) != 1:
            raise NotFusable("a reduction over features that are stored apart")
        self.features = sizes
        """The sizes of the feature axes."""
        self.tiles = [1] * self.outer + list(sizes)
        self.divided = False
        """The anchor comes with totals, one for each row, that it is still to be divided by."""
        self.always: frozenset[int] = frozenset()
        """Axes that tiles have even if they have one element along them."""

    def tile_axes(self) -> list[int]:
        kept = [i for i, t in enumerate(self.tiles) if t > 1 or i in self.always]
        return kept or [len(self.tiles) - 1]

    def at(self, rows: Sequence[int], features: Sequence[int] | None = None) -> StageLowering:
        """This stage with these tiles (whole features by default)."""
        self.tiles = [*rows, *(self.features if features is None else features)]
        return self

    def shape(self, present: Sequence[bool]) -> tuple[int, ...]:
        """The tile of a value in l1 or acc."""
        return tuple(self.tiles[i] if present[i] else 1 for i in self.tile_axes())

    def bytes_of(self, dtype: DType, present: Sequence[bool]) -> int:
        """Bytes of one slot of a tile."""
        elements = math.prod(t for t, there in zip(self.tiles, present, strict=True) if there)
        return -(-elements * dtype.bytes // self.target.alignment_bytes) * self.target.alignment_bytes

    def bounds(self, loops: Mapping[str, Tiling]) -> list[Bound | None]:
        """The valid extent along each of `tile_axes`."""
        found = (loops.get(self.space.axes[i].name) for i in self.tile_axes())
        return [None if loop is None else loop.bound for loop in found]

    def program(self, name: str) -> VectorProgram:
        """The vector program: from the accumulator (if the stage has a product), locals and operands to `kept`."""
        builder, names = ProgramBuilder(), dict[str, str]()
        if self.chain.anchor is not None:
            value = builder.param(compute_dtype(self.chain.anchor.type.dtype))
            if self.divided:
                value = builder.step("mul", value, builder.step("reciprocal", builder.param(DType.F32)))
            names[self.chain.anchor.name] = value
        for read in self.locals:
            names[f"local:{read.name}"] = builder.param(read.dtype)
        for operand in self.operands:
            names[operand.key] = builder.param(operand.dtype)
        axes = self.tile_axes()
        emitter = ChainEmitter(self.chain, builder, names, dict.fromkeys(range(16), len(axes) - 1))
        for op in self.chain.ops:
            emitter.emit(op)
        return builder.finish(name, [(emitter.value(v.name), v.dtype) for v in self.kept])

    @functools.cached_property
    def work(self) -> VectorWork:
        """The work of the vector program as a function of the tile's extents."""
        sizes = [axis.size for axis in self.space.axes]

        def shape(present: Sequence[bool]) -> tuple[int, ...]:
            return tuple(n if there else 1 for n, there in zip(sizes, present, strict=True))

        ins = [shape(self.anchor_present)] if self.chain.anchor is not None else []
        spaces = [Space.ACC] * len(ins) + [Space.L1] * (self.divided + len(self.locals) + len(self.operands))
        ins += [shape(tuple(i < self.outer for i in range(len(sizes))))] if self.divided else []
        ins += [shape(v.present) for v in self.locals]
        ins += [shape([o.access.present(i) for i in range(len(sizes))]) for o in self.operands]
        tiles, self.tiles = self.tiles, sizes  # all axes have more than one element: none is dropped
        program = self.program("work")
        self.tiles = tiles
        return vector_work(program, ins, [shape(v.present) for v in self.kept], spaces, self.target)


def local(rows: RowStages, name: str, merger: Merger, domains: Sequence[Domain]) -> Local:
    """A computed value that stays in l1, in the axes of `domains`."""
    return Local(name, rows.values[name].type.dtype, merger.present(name, *domains))


__all__ = ["Domain", "Local", "Matrix", "Merger", "StageAccesses", "StageLowering", "local"]

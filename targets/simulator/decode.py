"""A program segment as flat arrays for the event loop.

Names are resolved here once: loop variables become loop depths, rings, tensors and counter groups become indices,
affines become a constant and one factor per depth. Costs are described (boxes, bounds, terms), not evaluated, because
they differ at the edges of tensors.

Invariant: the arrays represent the segment in its order; instruction numbers follow text order over kernels, then
queues, then copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppuc.ir.errors import InternalError
from ppuc.ir.kernel import Load, Mma, Store, Vec
from ppuc.ir.program import (
    UNIT_QUEUES,
    Copy,
    Instr,
    KernelProgram,
    MemTensor,
    Program,
    Ring,
    Segment,
    StreamLoop,
    StreamNode,
)
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.cost import group_rows
from ppuc.targets.schema import Target
from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.counters import counter_arrays
from ppuc.targets.simulator.machine import machine_of
from ppuc.targets.simulator.shapes import Row, Shapes

_USE = {"claim": t.CLAIM, "push": t.PUSH, "wait": t.WAIT, "pop": t.POP}
_MEMORY = {Space.HBM: t.MEM_HBM, Space.L2: t.MEM_L2, Space.HOST: t.MEM_HOST}
_KIND = {Load: t.LOAD, Store: t.STORE, Mma: t.MMA, Vec: t.VEC}


@dataclass(frozen=True, slots=True)
class InstrInfo:
    """The instruction of a number. `loops` are its loop variables, outermost first; `operands` are ring numbers."""

    kernel: int
    queue: int
    item: Instr | Copy
    loops: tuple[str, ...]
    operands: tuple[int, ...]

    @property
    def text(self) -> str:
        """A short text for messages."""
        if isinstance(self.item, Copy):
            return f"copy {self.item.dst} <- {self.item.src}[{self.item.start}:{self.item.start + self.item.count}]"
        stmt = self.item.stmt
        if isinstance(stmt, Vec):
            return f"{self.item.op} {', '.join('%' + o for o in stmt.outs)} <- @{stmt.program}"
        if isinstance(stmt, Mma):
            return f"{self.item.op} %{stmt.dst} <- %{stmt.a.buffer}, %{stmt.b.buffer}"
        return f"{self.item.op} %{stmt.dst} <- %{stmt.src}"


MARKS = ("node", "loop", "ins", "use", "sync", "op", "box", "extent", "mma", "vec", "term", "traffic")
"""The tables whose rows belong to a kernel's part of a queue."""


@dataclass(frozen=True, slots=True)
class FlatSegment:
    """A segment's arrays, and the names of numbered entities. `marks` [4, kernels + 1, MARKS]: first rows of each
    kernel's part of each unit queue, and the end. `found`: what is computed from them once."""

    segment: Segment
    code: t.Code
    machine: t.Machine
    instrs: tuple[InstrInfo, ...]
    rings: tuple[Ring, ...]
    ring_kernel: tuple[int, ...]
    marks: np.ndarray
    found: dict[str, Any] = field(default_factory=dict)

    def tensor_of(self, index: int) -> str:
        """The tensor of load or store number `index`."""
        info = self.instrs[index]
        if isinstance(info.item, Copy) or not isinstance(info.item.stmt, Load | Store):
            raise InternalError(f"{self.instr_name(index)} is not a load or store")
        stmt = info.item.stmt
        name = stmt.src if isinstance(stmt, Load) else stmt.dst
        return next(p.tensor for p in self.segment.kernels[info.kernel].params if p.name == name)

    def instr_name(self, index: int) -> str:
        """`kernel/queue: text`, for messages."""
        info = self.instrs[index]
        if info.kernel < 0:
            return f"stage {info.queue}: {info.text}"
        return f"{self.segment.kernels[info.kernel].name}/{UNIT_QUEUES[info.queue]}: {info.text}"


def flatten(program: Program, segment: Segment, vectors: Mapping[str, VectorProgram], target: Target) -> FlatSegment:
    """Flatten one segment of `program`. Raises InternalError if a name does not resolve."""
    return _Builder(program, segment, vectors, target).build()


class _Builder:
    """One walk over the segment. `nodes`, `loops` and `rows` (instructions) grow in text order."""

    def __init__(
        self, program: Program, segment: Segment, vectors: Mapping[str, VectorProgram], target: Target
    ) -> None:
        self.segment, self.target = segment, target
        self.tensors: dict[str, MemTensor] = {m.name: m for m in program.tensors}
        self.numbers = {m.name: i for i, m in enumerate(program.tensors)}
        self.groups = {g.name: i for i, g in enumerate(segment.counters)}
        depth = max([1, *(_depth(body) for k in segment.kernels for _, body in k.streams)])
        self.shapes = Shapes(depth, vectors, target)
        self.nodes: list[Row] = []
        self.loops: list[list[int]] = []
        self.rows: list[list[int]] = []
        self.instrs: list[InstrInfo] = []
        self.uses: list[Row] = []
        self.syncs: list[Row] = []
        self.operands: list[Row] = []
        self.rings: list[Ring] = []
        self.ring_kernel: list[int] = []
        self.ring_of: list[dict[str, int]] = []
        self.pushes: dict[int, list[tuple[int, tuple[int, ...]]]] = {}

    def build(self) -> FlatSegment:
        kernels, stage = self.segment.kernels, 1 + max((c.queue for c in self.segment.copies), default=-1)
        for k, kernel in enumerate(kernels):
            self._add_rings(k, kernel)
        starts, ends = [], np.zeros((max(len(kernels), 1), 4), np.int64)
        marks = []
        for q, queue in enumerate(UNIT_QUEUES):
            starts.append(len(self.nodes))
            for k, kernel in enumerate(kernels):
                marks.append(self._marks())
                self.nodes.append((t.NODE_KERNEL, k))
                for on, body in kernel.streams:
                    if on is queue:
                        self._add_body(k, q, body, ())
                ends[k, q] = len(self.nodes)
            marks.append(self._marks())
            self.nodes.append((t.NODE_STOP, 0))
        streams = starts * self.target.cu + [self._add_copies(q) for q in range(stage)]
        machine = machine_of(self.target)
        return FlatSegment(
            self.segment,
            self._code(np.array(streams, np.int64), ends),
            machine,
            tuple(self.instrs),
            tuple(self.rings),
            tuple(self.ring_kernel),
            np.array(marks, np.int64).reshape(4, len(kernels) + 1, len(MARKS)),
        )

    def _marks(self) -> tuple[int, ...]:
        """Rows of each of MARKS so far."""
        instructions = (len(self.nodes), len(self.loops), len(self.rows), len(self.uses), len(self.syncs))
        return (*instructions, len(self.operands), *self.shapes.sizes())

    # Streams.

    def _add_rings(self, k: int, kernel: KernelProgram) -> None:
        self.ring_of.append({ring.name: len(self.rings) + i for i, ring in enumerate(kernel.rings)})
        self.rings.extend(kernel.rings)
        self.ring_kernel.extend([k] * len(kernel.rings))

    def _add_body(
        self, k: int, q: int, body: Sequence[StreamNode], loops: tuple[tuple[int, str], ...], alone: int = 0
    ) -> None:
        """Add the nodes of a stream inside `loops`, the innermost `alone` of which contain no other instruction."""
        axes = [name for name, _ in self.segment.kernels[k].grid]
        for node in body:
            if isinstance(node, Instr):
                self.nodes.append((t.NODE_INSTR, len(self.instrs)))
                self._add_instr(k, q, node, loops, alone)
                continue
            index, axis = len(self.loops), -1 if node.over is None else axes.index(node.over)
            self.nodes.append((t.NODE_LOOP, index))
            root = self.loops[loops[0][0]][8] if loops else len(self.nodes) - 1
            self.loops.append([node.start, node.stop, node.step, axis, len(loops), len(self.nodes), 0, k, root])
            inner = alone + 1 if len(node.body) == 1 else 0
            self._add_body(k, q, node.body, (*loops, (index, node.var)), inner)
            self.nodes.append((t.NODE_END, index))
            self.loops[index][6] = len(self.nodes)

    def _add_instr(self, k: int, q: int, instr: Instr, loops: tuple[tuple[int, str], ...], alone: int) -> None:
        stmt, names, index = instr.stmt, self.ring_of[k], len(self.instrs)
        depth, slots = len(loops), {var: d for d, (_, var) in enumerate(loops)}
        uses, operands = len(self.uses), len(self.operands)
        for use in instr.rings:
            mask = sum(1 << d for d in range(use.level, depth))
            self.uses.append((_USE[use.kind], names[use.ring], mask))
            if use.kind == "push":
                self.pushes.setdefault(names[use.ring], []).append((use.level, tuple(i for i, _ in loops)))
        rings = self._operands(stmt, names)
        buffers = [self.rings[r] for r, _ in rings]
        self.operands += rings
        memory, tensor = -1, -1
        if isinstance(stmt, Load | Store):
            memory, tensor, desc = self._transfer(k, stmt, buffers[0], slots)
        elif isinstance(stmt, Mma):
            follows = not stmt.continues and all(slots[var] >= depth - alone for var in stmt.start)
            desc = self.shapes.mma(stmt, buffers[1], buffers[2], slots, follows)
        else:
            desc = self.shapes.vec(stmt, buffers, slots)
        head = [k, q, _KIND[type(stmt)], depth, desc, memory, -1, (1 << depth) - 1, tensor, 0]
        self.rows.append([*head, uses, len(self.uses), *self._add_sync(instr), operands, len(self.operands)])
        self.instrs.append(InstrInfo(k, q, instr, tuple(v for _, v in loops), tuple(r for r, _ in rings)))
        if instr.bumps and not isinstance(stmt, Load | Store):
            raise InternalError(f"{self.instrs[index].text} bumps a counter: only transfers do")

    def _operands(self, stmt: Load | Store | Mma | Vec, names: Mapping[str, int]) -> list[tuple[int, int]]:
        """(ring, written) for every buffer of a statement, in the order that values.py reads them."""
        if isinstance(stmt, Load):
            return [(names[stmt.dst], 1)] + ([(names[stmt.gather.buffer], 0)] if stmt.gather else [])
        if isinstance(stmt, Store):
            return [(names[stmt.src], 0)] + ([(names[stmt.scatter.buffer], 0)] if stmt.scatter else [])
        if isinstance(stmt, Mma):
            return [(names[stmt.dst], 1), (names[stmt.a.buffer], 0), (names[stmt.b.buffer], 0)]
        return [(names[b], 0) for b in stmt.ins] + [(names[b], 1) for b in stmt.outs]

    def _transfer(self, k: int, stmt: Load | Store, ring: Ring, slots: Mapping[str, int]) -> tuple[int, int, int]:
        """Memory resource, tensor and box of a load or store."""
        name, gather = (stmt.src, stmt.gather) if isinstance(stmt, Load) else (stmt.dst, stmt.scatter)
        param = next((p for p in self.segment.kernels[k].params if p.name == name), None)
        if param is None or param.tensor not in self.tensors:
            raise InternalError(f"{self.segment.kernels[k].name}: no tensor is bound to %{name}")
        memory = _MEMORY[self.tensors[param.tensor].space]
        box = self.shapes.box(param.view, stmt.index, ring.shape, param.dtype, gather, slots)
        return memory, self.numbers[param.tensor], box

    def _add_sync(self, item: Instr | Copy) -> tuple[int, int, int, int]:
        """First and end row of the waits, then of the bumps."""
        waits = len(self.syncs)
        self.syncs += [(self.groups[wait.group], int(wait.touched)) for wait in item.waits]
        bumps = len(self.syncs)
        self.syncs += [(self.groups[bump.group], int(bump.touched)) for bump in item.bumps]
        return waits, bumps, bumps, len(self.syncs)

    def _add_copies(self, queue: int) -> int:
        start = len(self.nodes)
        for copy in self.segment.copies:
            if copy.queue != queue:
                continue
            src, dst = self.tensors[copy.src], self.tensors[copy.dst]
            self.nodes.append((t.NODE_INSTR, len(self.instrs)))
            desc = self.shapes.copy(copy.start, copy.count, src.dtype.bytes)
            head = [-1, 4, t.COPY, 0, desc, _MEMORY[src.space], _MEMORY[dst.space], 0, -1, 0]
            uses, operands = len(self.uses), len(self.operands)
            self.rows.append([*head, uses, uses, *self._add_sync(copy), operands, operands])
            self.instrs.append(InstrInfo(-1, queue, copy, (), ()))
        self.nodes.append((t.NODE_STOP, 0))
        return start

    # Arrays.

    def _code(self, streams: np.ndarray, ends: np.ndarray) -> t.Code:
        kernels = self.segment.kernels
        axes = max([1, *(len(k.grid) for k in kernels)])
        radix = np.ones((max(len(kernels), 1), axes), np.int64)
        for k, kernel in enumerate(kernels):
            radix[k, : len(kernel.grid)] = [n for _, n in kernel.grid]
        units = np.array([int(np.prod(row)) for row in radix], np.int64)
        blocks, trips = self._blocks()
        tiles = trips.prod(1)
        units = np.where(blocks[:, 0] < 0, units, np.minimum(tiles, self.target.cu))
        rings, after = self._rings()
        firsts = np.zeros(len(radix), np.int64)
        firsts[: len(kernels)] = [k.first for k in kernels]
        facts = np.column_stack([units, firsts, blocks, ends]).tolist()
        return t.Code(
            node=rec.table(rec.Node, self.nodes),
            stream_pc=streams,
            kernel=rec.table(rec.Kernel, [tuple(row) for row in facts]),
            radix=radix,
            trips=trips,
            loop=rec.table(rec.Loop, [tuple(row) for row in self.loops]),
            ins=rec.table(rec.Instruction, [tuple(row) for row in self.rows]),
            use=rec.table(rec.Use, self.uses),
            sync=rec.table(rec.Sync, self.syncs),
            op=rec.table(rec.Operand, self.operands),
            ring=rec.table(rec.Ring, rings),
            after=np.array(after, np.int64),
            total=self._totals(radix, units, firsts, blocks, tiles),
            **counter_arrays(self.segment.counters),
            **self.shapes.arrays(),
        )

    def _rings(self) -> tuple[list[Row], list[int]]:
        """Rows of the rings, and the rings to retire before their first claims."""
        rows: list[Row] = []
        after: list[int] = []
        for r, ring in enumerate(self.rings):
            first = len(after)
            after += [self._earlier_ring(r, name) for name in ring.after]
            consumers = sum(1 << UNIT_QUEUES.index(q) for q in ring.consumers)
            rows.append((ring.depth, consumers, UNIT_QUEUES.index(ring.producer), first, len(after)))
        return rows, after

    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """For targets that run tiles as blocks, per kernel with an accumulator: the loops around a tile's last store
        (which is marked), the slots of the accumulator, the rows of a group of tiles, and the trip counts. The loops
        must enclose everything except once-per-kernel work, and every ring must live either within a tile or for the
        whole kernel."""
        kernels = max(len(self.segment.kernels), 1)
        blocks, trips = np.full((kernels, 3), -1, np.int64), np.ones((kernels, self.shapes.depth), np.int64)
        if self.target.launch.tiles == "streaming":
            return blocks, trips
        for k, kernel in enumerate(self.segment.kernels):
            slots = [ring.depth for ring in kernel.rings if ring.space is Space.ACC]
            stores = [row for row in self.rows if row[0] == k and row[2] == t.STORE]
            around = stores[-1][3] if stores else 0
            loops = [_chain(body, around) for _, body in kernel.streams]
            levels = {use.level for _, body in kernel.streams for instr in _instrs(body) for use in instr.rings}
            if not (slots and around and all(loops)) or levels & set(range(1, around)):
                continue
            trips[k, :around] = [max(0, -(-(x.stop - x.start) // x.step)) for x in loops[0]]
            blocks[k] = around, min(slots) if self.target.launch.tiles == "blocks" else t.NO_BOUND, 1
            if around > 1:
                rows, cols = loops[0][around - 2], loops[0][around - 1]
                row_tiles, col_tiles = (int(n) for n in trips[k, around - 2 : around])
                blocks[k, 2] = group_rows(rows.step, cols.step, row_tiles, col_tiles, self.target.cu)
            stores[-1][9] = 1
        return blocks, trips

    def _pushes_of_tiles(self, tiles: np.ndarray, level: int, loops: tuple[int, ...], around: int) -> np.ndarray:
        """Pushes of one instruction in units that run `tiles` tiles; at level 0 a ring is pushed once."""
        times = tiles if level else np.minimum(tiles, 1) if loops else np.ones_like(tiles)
        for d, loop in enumerate(loops):
            start, stop, step = self.loops[loop][:3]
            trips = max(0, -(-(stop - start) // step))
            if d >= around:
                times = times * (trips if d < level else min(trips, 1))
        return times

    def _earlier_ring(self, ring: int, name: str) -> int:
        """The ring that `after` refers to: `kernel/ring`, or a bare name for the latest ring of this name up to this
        kernel."""
        kernel, _, bare = name.rpartition("/")
        for k in range(self.ring_kernel[ring], -1, -1):
            found = self.ring_of[k].get(bare)
            if found is not None and found != ring and kernel in ("", self.segment.kernels[k].name):
                return found
        raise InternalError(f"ring %{self.rings[ring].name} comes after %{name}, which no kernel before it has")

    def _totals(
        self, radix: np.ndarray, units: np.ndarray, firsts: np.ndarray, blocks: np.ndarray, tiles: np.ndarray
    ) -> np.ndarray:
        """Pushes that each unit makes on each ring."""
        cu = self.target.cu
        total, trips = np.zeros((cu, len(self.rings)), np.int64), self._trips(radix)
        for r, pushes in self.pushes.items():
            k = self.ring_kernel[r]
            if blocks[k, 0] >= 0:
                assigned = np.maximum(0, -(-(tiles[k] - (np.arange(cu) - firsts[k]) % cu) // cu))
                total[:, r] = sum(self._pushes_of_tiles(assigned, *push, int(blocks[k, 0])) for push in pushes)
                continue
            for level, loops in pushes:
                times = np.ones(units[k], np.int64)
                for d, loop in enumerate(loops):
                    times = times * (trips[loop] if d < level else np.minimum(trips[loop], 1))
                total[(firsts[k] + np.arange(units[k])) % cu, r] += times
        return total

    def _trips(self, radix: np.ndarray) -> list[np.ndarray]:
        """Trip counts of every loop, in each unit of its kernel's grid."""
        coords = [np.unravel_index(np.arange(np.prod(row)), tuple(row)) for row in radix]
        found = []
        for start, stop, step, axis, _, _, _, k, _ in self.loops:
            first = start + (coords[k][axis] if axis >= 0 else np.zeros_like(coords[k][0])) * step
            stride = step * (int(radix[k, axis]) if axis >= 0 else 1)
            found.append(np.maximum(0, -(-(stop - first) // stride)))
        return found


def _chain(body: Sequence[StreamNode], depth: int) -> list[StreamLoop]:
    """The outer `depth` loops of a stream if only the innermost of them contains instructions, else []."""
    chain: list[StreamLoop] = []
    nodes: Sequence[StreamNode] = [node for node in body if isinstance(node, StreamLoop)]
    while len(chain) < depth:
        if len(nodes) != 1 or not isinstance(nodes[0], StreamLoop):
            return []
        chain.append(nodes[0])
        nodes = nodes[0].body
    return chain


def _instrs(body: Sequence[StreamNode]) -> Iterator[Instr]:
    for node in body:
        if isinstance(node, Instr):
            yield node
        else:
            yield from _instrs(node.body)


def _depth(body: Sequence[StreamNode]) -> int:
    return max((1 + _depth(n.body) for n in body if isinstance(n, StreamLoop)), default=0)

"""Finds data races: accesses to the same bytes, at least one a write, without a happens-before order.

Reads the log of the event loop. l1 and acc are checked by slot, including rings that reuse each other's bytes; tensors
by granules, the largest pieces that no box of the segment splits; tensors that share bytes (reused memory) by all
accesses of the other tensor. Read-only tensors without shared bytes need no check. Boxes with an index list are assumed
to access every row that the list could name. Counters that serve several groups are checked too: bumps for a later
group must come after those for the earlier one.

Invariant: no false positives: a program whose conflicting accesses are all ordered by rings and counters is never
reported, for any timing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.ir.kernel import Load, Store
from ppuc.ir.program import Copy, MemTensor, Program
from ppuc.ir.types import Space
from ppuc.targets.simulator import hazard_check, tables
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.result import Hazard
from ppuc.targets.simulator.tables import ints
from ppuc.targets.simulator.vector_clocks import EARLY, FOUND_ROWS, PER_UNIT, RAW, WAR, Checker

_POOL_ROWS = 4096
_SPARE = 512
_SPACES = tuple(Space)
MAX_GRANULES = 1 << 24
"""Maximum granules of a segment; beyond that, its largest tensors are checked only by whole accesses of other
tensors."""


class HazardChecker:
    """Checks one segment; `consume` its log in order, then ask for `hazards`."""

    def __init__(self, program: Program, flat: FlatSegment) -> None:
        self._program, self._flat = program, flat
        self._tracked = _tracked(program, flat)
        self._state = self._new_state()

    def consume(self, log: np.ndarray) -> None:
        """Check log rows in order."""
        at = 0
        while at < len(log):
            limit = len(self._state.pool) - _SPARE
            at = hazard_check.run(self._flat.code, self._flat.machine, self._state, log, at, limit)
            if at < len(log):
                self._make_room()

    def hazards(self) -> tuple[Hazard, ...]:
        """Distinct hazards, in the order in which they were found."""
        found = self._state.found[: int(self._state.num[1])].tolist()
        return tuple(self._hazard(*row) for row in found)

    def _hazard(self, kind: int, first: int, second: int, place: int, is_tensor: int) -> Hazard:
        if kind == EARLY:
            return self._early_bump(second, place)
        name = {RAW: "read after write", WAR: "write after read"}.get(kind, "write after write")
        if is_tensor:
            tensor = self._tracked[place]
            space, what = str(tensor.space), tensor.name
        else:
            ring = self._flat.rings[int(np.searchsorted(self._state.slot0, place, side="right")) - 1]
            space, what = str(ring.space), f"%{ring.name}"
        return Hazard(name, space, what, self._flat.instr_name(first), self._flat.instr_name(second))

    def _early_bump(self, instr: int, block: int) -> Hazard:
        """The hazard of an instruction that bumps a block while the earlier block of its counter may be incomplete."""
        code, groups = self._flat.code, self._flat.segment.counters
        ends = code.group["at"] + code.group["count"]
        old, new = (int(np.searchsorted(ends, at, side="right")) for at in (code.before[block], block))
        ranges = zip(code.ins["bump_lo"].tolist(), code.ins["bump_hi"].tolist(), strict=True)
        first = next(i for i, (low, high) in enumerate(ranges) if old in code.sync["group"][low:high])
        what = f"a counter of %{groups[old].name}, now of %{groups[new].name}"
        return Hazard("bump after bump", "counters", what, self._flat.instr_name(first), self._flat.instr_name(instr))

    def _make_room(self) -> None:
        """Garbage-collect far vectors; double the pool if most are in use."""
        k = self._state
        fields = ("far", "push_f", "pop_f")
        used = np.unique(
            np.concatenate([[0], *(getattr(k, f).ravel() for f in fields), k.snap[:, :, PER_UNIT].ravel()])
        )
        pool = k.pool
        if len(used) > len(pool) // 2:
            pool = np.zeros((2 * len(pool), pool.shape[1]), pool.dtype)
        kept = k.pool[used]
        pool[: len(used)] = kept
        for f in fields:
            array = getattr(k, f)
            array[...] = np.searchsorted(used, array)
        k.snap[:, :, PER_UNIT] = np.searchsorted(used, k.snap[:, :, PER_UNIT])
        k.num[0] = len(used)
        k.memo[:] = 0
        self._state = k._replace(pool=pool)

    def _new_state(self) -> Checker:
        code, machine = self._flat.code, self._flat.machine
        streams, units = len(code.stream_pc), machine.units
        comps = PER_UNIT * units + 2 * (streams - 4 * units)
        depths = code.ring["depth"]
        slot0 = np.concatenate([[0], np.cumsum(depths)])[:-1].astype(np.int64)
        slots, intervals, n_intervals = int(depths.sum()), *_intervals(self._flat)
        names = {t.name: i for i, t in enumerate(self._tracked)}
        t_of = np.array([_tensors_of(self._flat, i, names) for i in range(len(self._flat.instrs))], np.int64)
        gran = _granules(self._flat, self._tracked, t_of)
        overlaps = _sharing(self._tracked)
        n_tensors, n_gran = len(self._tracked), int(gran[-1, 1]) if len(gran) else 0
        num = ints(4)
        num[0] = 1
        return Checker(
            num=num,
            seq=ints(streams),
            released=ints(streams),
            done=ints(streams),
            local=ints(streams, PER_UNIT),
            far=ints(streams),
            pool=np.zeros((_POOL_ROWS, comps), np.int32),
            memo=ints(1024, 3),
            snap=ints(streams, tables.IN_FLIGHT, PER_UNIT + 5),
            ring_n=ints(units, len(code.ring), 10),
            push_l=ints(units, slots, PER_UNIT),
            push_f=ints(units, slots),
            pop_l=ints(units, slots, 4, PER_UNIT),
            pop_f=ints(units, slots, 4),
            slot0=slot0,
            bumps=np.zeros((len(code.expect), comps), np.int32),
            bumped=ints(len(code.expect)),
            iv=intervals,
            iv_w=ints(units, n_intervals),
            iv_r=ints(units, n_intervals, PER_UNIT),
            t_of=t_of.reshape(len(self._flat.instrs), 2),
            t_gran=gran[:-1].copy(),
            t_r=ints(n_tensors, comps),
            t_w=ints(n_tensors, comps),
            t_n=np.zeros(n_tensors, np.int32),
            cleared=np.full((streams, n_tensors, 2), -1, np.int32),
            last=ints(max(n_gran, 1), 2),
            ov_ptr=np.concatenate([[0], np.cumsum([len(o) for o in overlaps])]).astype(np.int64),
            ov=np.concatenate([ints(0), *overlaps]),
            scratch=ints(3, 16),
            found=ints(FOUND_ROWS, 5),
        )


def _accesses(flat: FlatSegment, index: int) -> tuple[str | None, str | None]:
    """Names of the tensors that an instruction reads and writes."""
    info = flat.instrs[index]
    if isinstance(info.item, Copy):
        return info.item.src, info.item.dst
    stmt, params = info.item.stmt, flat.segment.kernels[info.kernel].params
    if isinstance(stmt, Load):
        return next(p.tensor for p in params if p.name == stmt.src), None
    if isinstance(stmt, Store):
        return None, next(p.tensor for p in params if p.name == stmt.dst)
    return None, None


def _tensors_of(flat: FlatSegment, index: int, names: dict[str, int]) -> tuple[int, int]:
    read, written = _accesses(flat, index)
    return names.get(read or "", -1), names.get(written or "", -1)


def _tracked(program: Program, flat: FlatSegment) -> list[MemTensor]:
    """Tensors that the segment accesses and writes, and accessed ones that share bytes with those."""
    accesses = [_accesses(flat, i) for i in range(len(flat.instrs))]
    written = {w for _, w in accesses}
    touched = written | {r for r, _ in accesses}
    used = [t for t in program.tensors if t.name in touched]
    targets = np.array([t.name in written for t in used], bool)
    return [t for t, shared in zip(used, _sharing(used), strict=True) if t.name in written or targets[shared].any()]


def _sharing(tensors: Sequence[MemTensor]) -> list[np.ndarray]:
    """For each tensor, the numbers of the others that share bytes with it."""
    space = np.array([_SPACES.index(t.space) for t in tensors], np.int64)
    start = np.array([t.address for t in tensors], np.int64)
    end = start + np.array([t.bytes for t in tensors], np.int64)
    found = []
    for i in range(len(tensors)):
        shared = (space == space[i]) & (start < end[i]) & (start[i] < end)
        shared[i] = False
        found.append(np.flatnonzero(shared))
    return found


def _intervals(flat: FlatSegment) -> tuple[np.ndarray, int]:
    """First and end interval of every slot, and the number of intervals of both unit memories."""
    rows: list[tuple[int, int]] = []
    for ring in flat.rings:
        base = ring.base + ((1 << 40) if ring.space is Space.ACC else 0)
        rows += [(base + i * ring.slot_bytes, base + (i + 1) * ring.slot_bytes) for i in range(ring.depth)]
    ends = np.array(rows, np.int64).reshape(len(rows), 2)
    cuts = np.unique(ends)
    return np.searchsorted(cuts, ends).astype(np.int64), max(len(cuts), 1)


def _granules(flat: FlatSegment, tracked: Sequence[MemTensor], t_of: np.ndarray) -> np.ndarray:
    """(elements of a granule, first granule, 1) of each tracked tensor; a last row holds the number of granules.
    Tensors that would need too many have 0 elements and are not checked by granules."""
    size, units = [0] * len(tracked), _loop_units(flat)
    for i in range(len(flat.instrs)):
        for t in t_of[i]:
            if t >= 0:
                size[t] = math.gcd(size[t], _piece(flat, i, units[i]))
    rows, at = np.zeros((len(tracked) + 1, 3), np.int64), 0
    for t, tensor in enumerate(tracked):
        pieces = -(-tensor.elements // size[t]) if size[t] else 0
        fits = at + pieces <= MAX_GRANULES
        rows[t] = size[t] if fits else 0, at, 1
        at += pieces if fits else 0
    rows[-1, 1] = at
    return rows


def _loop_units(flat: FlatSegment) -> list[tuple[int, ...]]:
    """The numbers that divide all values of the loops around each instruction, outermost first."""
    units: list[tuple[int, ...]] = [()] * len(flat.instrs)
    loops = np.gcd(flat.code.loop["start"], flat.code.loop["step"]).tolist()
    around: list[int] = []
    for op, arg in flat.code.node.tolist():
        if op == tables.NODE_LOOP:
            around.append(loops[arg])
        elif op == tables.NODE_END:
            around.pop()
        elif op == tables.NODE_INSTR:
            units[arg] = tuple(around)
    return units


def _piece(flat: FlatSegment, i: int, units: Sequence[int]) -> int:
    """Elements in the largest piece that divides every run of an instruction: offsets, lengths and clips. `units` are
    those of the loops around it."""
    code = flat.code
    v, kind = int(code.ins["desc"][i]), int(code.ins["kind"][i])
    if kind == tables.COPY:
        return math.gcd(int(code.copy["first"][v]), int(code.copy["count"][v]))
    dims, gather_dim, offset = (int(code.box[field][v]) for field in ("dims", "gather_dim", "first"))
    piece, found = offset, False
    for d in range(dims):
        size, stride, const = (int(code.dim[field][v, d]) for field in ("size", "stride", "const"))
        if size == 1:
            continue
        if stride != 1:
            piece = math.gcd(piece, stride)
            continue
        found = True
        moving = [(int(code.axis["size"][v, a]), f) for a, f in _pairs(code, v, d)]
        whole = moving and d != gather_dim and any(abs(f) == 1 for _, f in moving)
        steps = (factor * unit for factor, unit in zip(code.coef[v, d].tolist(), units, strict=False))
        piece = math.gcd(piece, const, size, *steps) if whole else 1
        for n, factor in moving:
            piece = math.gcd(piece, n if abs(factor) == 1 else factor)
    return piece if found else 1


def _pairs(code: tables.Code, v: int, d: int) -> list[tuple[int, int]]:
    a1, f1, a2, f2 = (int(code.dim[f][v, d]) for f in ("axis_1", "factor_1", "axis_2", "factor_2"))
    return [(a, f) for a, f in ((a1, f1), (a2, f2)) if a >= 0]

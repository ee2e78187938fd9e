"""Invariant P6 of programs: addresses of rings, and the order in which they reuse each other's bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppuc.ir.program import KernelProgram, Ring
from ppuc.ir.types import Space
from ppuc.ir.verify.findings import Findings

_Key = tuple[str, str]
"""(kernel, ring)."""


class _Map:
    """Owner rings of the bytes of one memory, as disjoint (start, end, ring) ranges. A ring takes its bytes from
    earlier rings in the program."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, _Key]] = []

    def take(self, start: int, end: int, key: _Key) -> list[_Key]:
        """Assign bytes [start, end) to `key`; returns the previous owners."""
        kept: list[tuple[int, int, _Key]] = []
        lost: list[_Key] = []
        for first, last, owner in self._ranges:
            if last <= start or end <= first:
                kept.append((first, last, owner))
                continue
            lost.append(owner)
            if first < start:
                kept.append((first, start, owner))
            if end < last:
                kept.append((end, last, owner))
        self._ranges = [*kept, (start, end, key)]
        return lost


def check_rings(kernels: Sequence[KernelProgram], findings: Findings) -> None:
    """Check the rings of a segment's kernels, in order."""
    owners = {space: _Map() for space in Space}
    after: dict[_Key, list[_Key]] = {}
    latest: dict[str, _Key] = {}
    for kernel in kernels:
        own = {r.name: (kernel.name, r.name) for r in kernel.rings}
        for ring in kernel.rings:
            entity = f"@{kernel.name} ring %{ring.name}"
            _check_ring(ring, entity, findings)
            key = own[ring.name]
            after[key] = []
            for name in ring.after:
                target = _resolve(name, own, latest, after)
                if target is None or target == key:
                    findings.add("P6", entity, f"comes after %{name}, which is not an earlier ring")
                else:
                    after[key].append(target)
            for owner in owners[ring.space].take(ring.base, ring.base + ring.slot_bytes * ring.depth, key):
                if not _reaches(key, owner, after):
                    taken = owner[1] if owner[0] == kernel.name else "/".join(owner)
                    findings.add("P6", entity, f"reuses bytes of %{taken} without coming after it")
        latest.update(own)


def _resolve(name: str, own: dict[str, _Key], latest: dict[str, _Key], known: dict[_Key, list[_Key]]) -> _Key | None:
    """The ring that `after` names: `kernel/ring`, a ring of this kernel, or the latest earlier one of that name."""
    kernel, slash, ring = name.rpartition("/")
    if slash:
        return (kernel, ring) if (kernel, ring) in known else None
    return own[name] if name in own and own[name] in known else latest.get(name)


def _reaches(start: _Key, goal: _Key, after: dict[_Key, list[_Key]]) -> bool:
    seen = {start}
    work = [start]
    while work:
        for key in after[work.pop()]:
            if key == goal:
                return True
            if key not in seen:
                seen.add(key)
                work.append(key)
    return False


def _check_ring(ring: Ring, entity: str, findings: Findings) -> None:
    need = math.prod(ring.shape) * ring.dtype.bytes
    if ring.space not in (Space.L1, Space.ACC) or ring.base < 0 or ring.depth < 1 or min(ring.shape, default=1) < 1:
        findings.add("P6", entity, "needs l1 or acc, a base of at least 0, a slot or more and no empty axis")
    if ring.slot_bytes < need:
        findings.add("P6", entity, f"a slot of {ring.slot_bytes} bytes holds no tile of {need}")
    if not ring.consumers or len(set(ring.consumers)) != len(ring.consumers):
        findings.add("P6", entity, "needs consumers, each named once")

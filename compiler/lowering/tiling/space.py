"""Iteration spaces of kernels: domains whose axes are merged where all operands' strides allow it.

Merging makes a `[8, 12, 128, 128]` elementwise domain one long axis, and a channels-last mean three axes. Invariant:
two domain axes are merged only when they are neighbours (ignoring axes of size 1), both reduced or both parallel, and
every operand either has both at a constant stride or neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ppuc.compiler.lowering.tiling.body import External
from ppuc.ir.kernel import View


@dataclass(frozen=True, slots=True)
class Axis:
    """One merged axis: its name in the kernel (a loop variable), size, and whether results lack it."""

    name: str
    size: int
    reduced: bool


@dataclass(frozen=True, slots=True)
class Access:
    """An operand in the merged space: stride and extent of its view per axis (extent 1 where it is broadcast), and the
    shift and pad value of a constant-padded operand."""

    view: View
    low: tuple[int, ...]
    pad: float = 0.0
    padded: bool = False

    def present(self, axis: int) -> bool:
        """Whether the operand varies along `axis`."""
        return self.padded or self.view.shape[axis] != 1


@dataclass(frozen=True, slots=True)
class IterationSpace:
    """Merged axes and the accesses of every operand, by key."""

    axes: tuple[Axis, ...]
    accesses: Mapping[str, Access]


def merge(
    domain: Sequence[int],
    reduced: Sequence[int],
    operands: Mapping[str, External | View],
    separate: Sequence[int] = (),
) -> IterationSpace:
    """Merge the axes of `domain`. `reduced` are the reduction axes; axes in `separate` are never merged with others.

    Operands are views of domain rank with size 1 or stride 0 where they are broadcast.
    """
    normal = {key: _normalise(op, domain) for key, op in operands.items()}
    groups: list[list[int]] = []
    for axis, size in enumerate(domain):
        if size == 1:
            continue
        if groups and _mergeable(groups[-1], axis, domain, reduced, normal, separate):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    groups = groups or [[len(domain) - 1]] if domain else []
    axes = tuple(Axis(f"d{i}", _size(group, domain), group[0] in reduced) for i, group in enumerate(groups)) or (
        Axis("d0", 1, False),
    )
    return IterationSpace(axes, {key: _merged(access, groups, domain) for key, access in normal.items()})


def _size(group: Sequence[int], domain: Sequence[int]) -> int:
    size = 1
    for axis in group:
        size *= domain[axis]
    return size


def _normalise(operand: External | View, domain: Sequence[int]) -> Access:
    """The operand with size 1 where it is broadcast."""
    if isinstance(operand, External) and operand.padded:
        return _narrowed(Access(operand.view, operand.low, operand.pad, padded=True), domain)
    view = operand.view if isinstance(operand, External) else operand
    shape = tuple(1 if stride == 0 else size for size, stride in zip(view.shape, view.strides, strict=True))
    return Access(View(shape, view.strides, view.offset), (0,) * len(domain))


def _narrowed(access: Access, domain: Sequence[int]) -> Access:
    """A padded access without padding along axes of one index, which merging drops: that index is inside the view, or
    all that is read is padding."""
    shape, low, offset, outside = list(access.view.shape), list(access.low), access.view.offset, False
    for axis, size in enumerate(domain):
        if size == 1:
            outside |= not 0 <= -low[axis] < shape[axis]
            offset -= low[axis] * access.view.strides[axis]
            shape[axis], low[axis] = 1, 0
    if outside:
        kept = max((axis for axis, size in enumerate(domain) if size > 1), default=len(domain) - 1)
        low[kept] = domain[kept]
    view = View(tuple(shape), access.view.strides, access.view.offset if outside else offset)
    return replace(access, view=view, low=tuple(low))


def _padded(access: Access, axis: int, domain: Sequence[int]) -> bool:
    return access.padded and (access.low[axis] != 0 or access.view.shape[axis] != domain[axis])


def _mergeable(
    group: Sequence[int],
    axis: int,
    domain: Sequence[int],
    reduced: Sequence[int],
    operands: Mapping[str, Access],
    separate: Sequence[int],
) -> bool:
    last = group[-1]
    if (last in reduced) != (axis in reduced) or last in separate or axis in separate:
        return False
    for access in operands.values():
        view = access.view
        if _padded(access, last, domain) or _padded(access, axis, domain):
            return False
        if access.present(last) != access.present(axis):
            return False
        if access.present(axis) and view.strides[last] != view.strides[axis] * view.shape[axis]:
            return False
    return True


def _merged(access: Access, groups: Sequence[Sequence[int]], domain: Sequence[int]) -> Access:
    view = access.view
    if not groups:
        return Access(View((1,), (0,), view.offset), (0,), access.pad)
    shape, strides, low = [], [], []
    for group in groups:
        size = 1
        for axis in group:
            size *= view.shape[axis]
        shape.append(size)
        strides.append(view.strides[group[-1]] if access.present(group[-1]) else 0)
        low.append(access.low[group[-1]])
    return Access(View(tuple(shape), tuple(strides), view.offset), tuple(low), access.pad, access.padded)

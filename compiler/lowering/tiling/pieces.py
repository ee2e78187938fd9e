"""Piecewise views: which parts of a value lie where in a result, through concatenations, slices, transposes, reshapes.

A Piece is a box of a value and the place of its elements in the memory of a result. `back` takes a piece of an op's
result to pieces of its operands; following a chain of data movement from its result back to what it moves gives the
chain as a union of boxes, each copied from one strided view to another.

A dimension of a value is a list of atoms, outermost first: index = (a0 * size1 + a1) * size2 + a2. A box spans a range
of each atom, so that a reshape that splits or merges dimensions only regroups atoms. The size of a dimension's
outermost atom is not stored: the dimension's size determines it.

Invariant: the boxes of all pieces of a value are disjoint in the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ppuc.compiler.lowering.tiling.not_fusable import NotFusable
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.view import SliceAttrs, TransposeAttrs

MOVES = ("concat", "reshape", "slice", "transpose")
"""Ops that `back` follows."""

MOST_PIECES = 256
"""Pieces at which `follow` gives up: more than one kernel can have, even if many of them join."""


@dataclass(frozen=True, slots=True)
class Atom:
    """A range of `extent` indices from `start` along an atom of `size` indices (unused for the outermost atom).
    `stride`: elements of the result from one index to the next."""

    size: int
    start: int
    extent: int
    stride: int


Axis = tuple[Atom, ...]
"""The atoms of one dimension; () if it has size one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of `value`, seen with dimensions `dims`, and the element of the result where its first element lies."""

    value: Value
    dims: tuple[int, ...]
    axes: tuple[Axis, ...]
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(a.extent for axis in self.axes for a in axis)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the box begins, per dimension."""
        return tuple(_first(axis) for axis in self.axes)

    def boxed(self) -> tuple[Atom | None, ...]:
        """The range along each dimension; None for one of a single index. Raises NotFusable if some dimension has no
        constant stride."""
        axes = [_merged(axis) for axis in self.axes]
        if any(len(axis) > 1 for axis in axes):
            raise NotFusable("a part of the result has no constant stride along a dimension")
        return tuple(axis[0] if axis else None for axis in axes)

    def stored(self) -> View:
        """Where the box lies in the result: a view with one axis for every atom."""
        atoms = [a for axis in self.axes for a in axis]
        return View(tuple(a.extent for a in atoms), tuple(a.stride for a in atoms), self.offset)

    def read(self, view: View) -> View:
        """The box in a memory where `value` is `view`, with the axes of `stored`."""
        offset = view.offset + sum(n * s for n, s in zip(self.starts, view.strides, strict=True))
        strides = [s * n for axis, s in zip(self.axes, view.strides, strict=True) for n in _inner_sizes(axis)]
        return View(self.stored().shape, tuple(strides), offset)


def whole(value: Value, view: View) -> Piece:
    """All of `value`, which lies in the result as `view`."""
    dims = value.type.dims
    axes = (() if n == 1 else (Atom(n, 0, n, s),) for n, s in zip(dims, view.strides, strict=True))
    return Piece(value, dims, tuple(axes), view.offset)


def follow(body: Graph, piece: Piece, ends: Callable[[Piece], bool]) -> list[Piece]:
    """The pieces that make up `piece`, each of a value where `ends` holds. Raises NotFusable."""
    found: list[Piece] = []
    left = [piece]
    while left:
        piece = left.pop()
        op = body.producer(piece.value)
        if not piece.elements:
            continue
        if len(found) + len(left) > MOST_PIECES:
            raise NotFusable(f"{piece.value} is scattered in more than {MOST_PIECES} pieces")
        if ends(piece):
            found.append(piece)
        elif op is not None and op.name in MOVES:
            left += reversed([*back(op, piece)])
        else:
            raise NotFusable(f"{piece.value} is neither a view of memory nor moved from one")
    return _joined(found)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same boxes, neighbours joined where they are neighbours in the result, too."""
    found = list(pieces)
    again = True
    while again:
        again = False
        for i, j in itertools.permutations(range(len(found)), 2):
            joined = _union(found[i], found[j])
            if joined is not None:
                found[i] = joined
                found.pop(j)
                again = True
                break
    return found


def _union(a: Piece, b: Piece) -> Piece | None:
    """Two pieces as one, if `b` follows `a` along one atom."""
    if (a.value, a.dims) != (b.value, b.dims) or [*map(len, a.axes)] != [*map(len, b.axes)]:
        return None
    pairs = [(i, k) for i, axis in enumerate(a.axes) for k in range(len(axis)) if axis[k] != b.axes[i][k]]
    if len(pairs) != 1:
        return None
    ((i, k),) = pairs
    x, y = a.axes[i][k], b.axes[i][k]
    follows = y.start == x.start + x.extent and b.offset == a.offset + x.extent * x.stride
    if not follows or (x.size, x.stride) != (y.size, y.stride):
        return None
    atom = replace(x, extent=x.extent + y.extent)
    axis = (*a.axes[i][:k], atom, *a.axes[i][k + 1 :])
    return replace(a, axes=(*a.axes[:i], axis, *a.axes[i + 1 :]))


def back(op: Op, piece: Piece) -> Iterator[Piece]:
    """The pieces of the operands of `op`, one of MOVES, that make up `piece` of its result. Raises NotFusable if these
    are not boxes."""
    attrs = op.attrs
    if isinstance(attrs, ConcatAttrs):
        yield from _parts(op, attrs.axis, piece)
    elif isinstance(attrs, TransposeAttrs):
        inverse = sorted(range(len(attrs.perm)), key=lambda i: attrs.perm[i])
        operand = op.operands[0]
        yield Piece(operand, operand.type.dims, tuple(piece.axes[i] for i in inverse), piece.offset)
    elif isinstance(attrs, SliceAttrs):
        yield from _unsliced(op.operands[0], attrs, piece)
    else:
        yield from (replace(p, value=op.operands[0]) for p in reshaped(piece, op.operands[0].type.dims))


# -- one axis --------------------------------------------------------------------------------------------------------


def _inner_sizes(axis: Axis) -> list[int]:
    """Indices of the dimension from one index of each atom to the next."""
    return [math.prod(a.size for a in axis[i + 1 :]) for i in range(len(axis))]


def _first(axis: Axis) -> int:
    return sum(a.start * n for a, n in zip(axis, _inner_sizes(axis), strict=True))


def _last(axis: Axis) -> int:
    return sum((a.start + a.extent - 1) * n for a, n in zip(axis, _inner_sizes(axis), strict=True))


def _cut(atom: Atom, start: int, stop: int) -> tuple[Atom, int]:
    """The part of an atom in a range, and the distance in the result from the first element of the atom to its own."""
    return replace(atom, start=start, extent=stop - start), (start - atom.start) * atom.stride


def _within(axis: Axis, low: int, high: int) -> Iterator[tuple[Axis, int]]:
    """The boxes that make up the part of `axis` in [low, high), each with its distance in the result."""
    if not axis or (low <= _first(axis) and _last(axis) < high):
        if not axis and not low <= 0 < high:
            return
        yield axis, 0
        return
    if _last(axis) < low or high <= _first(axis):
        return
    atom, inner = axis[0], axis[1:]
    step = math.prod(a.size for a in inner)
    begin, end = max(atom.start, -(-low // step)), min(atom.start + atom.extent, high // step)
    ranges = [(i, i + 1) for i in sorted({low // step, high // step}) if not begin <= i < end]
    ranges += [(begin, end)] if begin < end else []
    for start, stop in sorted(ranges):
        if atom.start <= start and stop <= atom.start + atom.extent:
            kept, moved = _cut(atom, start, stop)
            for rest, further in _within(inner, low - start * step, high - (stop - 1) * step):
                yield (kept, *rest), moved + further


def _shifted(axis: Axis, by: int) -> Iterator[tuple[Axis, int]]:
    """The boxes that `axis` becomes when `by` is added to its indices."""
    if not axis:
        yield (Atom(1, by, 1, 0),), 0
        return
    yield from ((moved, further) for moved, further, _ in _carried(axis, by, outermost=True))


def _carried(axis: Axis, by: int, *, outermost: bool) -> Iterator[tuple[Axis, int, int]]:
    """The same, with what is carried to the next outer atom."""
    if len(axis) > 1:
        for inner, moved, carry in _carried(axis[1:], by, outermost=False):
            for outer, further, more in _carried(axis[:1], carry, outermost=outermost):
                yield (*outer, *inner), moved + further, more
        return
    (atom,) = axis
    start, stop = atom.start + by, atom.start + by + atom.extent
    if outermost:
        yield (replace(atom, start=start),), 0, 0
        return
    while start < stop:
        carry = start // atom.size
        end = min(stop, (carry + 1) * atom.size)
        moved = start - atom.start - by
        box = replace(atom, start=start - carry * atom.size, extent=end - start)
        yield (box,), moved * atom.stride, carry
        start = end


def _strided(axis: Axis, start: int, step: int, size: int) -> Iterator[tuple[Axis, int]]:
    """The boxes of a dimension of `size` that `axis` of its slice from `start` in steps of `step` becomes."""
    if step == 1 or not axis:
        yield from _shifted(axis, start)
    elif step == -1 and len(axis) == 1:
        (atom,) = axis
        first = start - (atom.start + atom.extent - 1)
        yield (Atom(size, first, atom.extent, -atom.stride),), (atom.extent - 1) * atom.stride
    elif step > 1 and size % step == 0:
        outer, phase = divmod(start, step)
        for moved, further in _shifted(axis, outer):
            yield (*moved, Atom(step, phase, 1, 0)), further
    else:
        raise NotFusable(f"a slice in steps of {step} along a dimension of {size} is not made of boxes")


# -- ops -------------------------------------------------------------------------------------------------------------


def _parts(op: Op, axis: int, piece: Piece) -> Iterator[Piece]:
    first = 0
    for operand in op.operands:
        size = operand.type.dims[axis]
        for inside, moved in _within(piece.axes[axis], first, first + size):
            for shifted, further in _shifted(inside, -first):
                axes = (*piece.axes[:axis], shifted if size > 1 else (), *piece.axes[axis + 1 :])
                yield Piece(operand, operand.type.dims, axes, piece.offset + moved + further)
        first += size


def _unsliced(operand: Value, attrs: SliceAttrs, piece: Piece) -> Iterator[Piece]:
    found = [Piece(operand, operand.type.dims, (), piece.offset)]
    for axis, start, step, size in zip(piece.axes, attrs.starts, attrs.steps, operand.type.dims, strict=True):
        boxes = [*_strided(axis, start, step, size)] if size > 1 else [((), 0)]
        found = [replace(p, axes=(*p.axes, box), offset=p.offset + moved) for p in found for box, moved in boxes]
    yield from found


def atoms_of(piece: Piece) -> list[Atom]:
    """All atoms, outermost first, each with its size. Raises NotFusable if a dimension is not made of whole ones."""
    found: list[Atom] = []
    for axis, size in zip(piece.axes, piece.dims, strict=True):
        inner = math.prod(a.size for a in axis[1:])
        if size % inner:
            raise NotFusable(f"a dimension of {size} is not made of parts of {inner}")
        found += [replace(a, size=size // inner) if i == 0 else a for i, a in enumerate(axis)]
    return found


def reshaped(piece: Piece, dims: Sequence[int]) -> list[Piece]:
    """The pieces of the same value in dimensions `dims`, which regroup its atoms and split some. Raises NotFusable."""
    atoms = atoms_of(piece)
    sizes = _refined([a.size for a in atoms], dims)
    if sizes is None:
        atoms = _merged(atoms)
        sizes = _refined([a.size for a in atoms], dims)
    if sizes is None:
        raise NotFusable(f"a reshape to {list(dims)} regroups elements across dimensions")
    boxes: list[tuple[Axis, int]] = [((), 0)]
    for atom, parts in zip(atoms, sizes, strict=True):
        boxes = [((*before, *box), moved + further) for before, moved in boxes for box, further in _split(atom, parts)]
    found = []
    for box, moved in boxes:
        axes, left = [], [*box]
        for size in dims:
            axis: list[Atom] = []
            while math.prod(a.size for a in axis) < size:
                axis.append(left.pop(0))
            axes.append(tuple(axis))
        found.append(Piece(piece.value, tuple(dims), tuple(axes), piece.offset + moved))
    return found


def _merged(atoms: Sequence[Atom]) -> list[Atom]:
    """Neighbours as one atom where it has a constant stride and a range."""
    found: list[Atom] = []
    for atom in atoms:
        outer = found[-1] if found else None
        if outer is None or atom.extent != atom.size or outer.stride != atom.stride * atom.size:
            found.append(atom)
        else:
            sizes = (outer.size * atom.size, outer.start * atom.size, outer.extent * atom.size)
            found[-1] = Atom(*sizes, atom.stride)
    return found


def _refined(sizes: Sequence[int], dims: Sequence[int]) -> list[list[int]] | None:
    """The parts of atoms of `sizes`, outermost first, of which a reshape to `dims` makes dimensions; None if it divides
    them in another way."""
    wanted, found = [n for n in dims if n != 1], []
    for size in sizes:
        parts: list[int] = []
        while size > 1:
            common = math.gcd(size, wanted[0])
            if common not in (size, wanted[0]):
                return None
            parts.append(common)
            size //= common
            wanted[0] //= common
            if wanted[0] == 1:
                wanted.pop(0)
        found.append(parts)
    return found


def _split(atom: Atom, parts: Sequence[int]) -> Iterator[tuple[Axis, int]]:
    """The boxes of one atom for each of `parts` that make up a range of an atom of their product."""
    steps = [math.prod(parts[i + 1 :]) for i in range(len(parts))]
    full = tuple(Atom(n, 0, n, atom.stride * step) for n, step in zip(parts, steps, strict=True))
    for box, moved in _within(full, atom.start, atom.start + atom.extent):
        yield box, moved - atom.start * atom.stride

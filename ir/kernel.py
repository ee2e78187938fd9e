"""Level 2, the kernel: loops over tiles, buffers with a space and a ring depth, and four tile statements.

A kernel describes data movement and computation without synchronisation. Its semantics are sequential: every unit of
the grid runs the body, one unit after another; statements run in text order; each buffer is one tile that a load, mma
or vec overwrites. `depth` (number of tiles in flight) and `over` (distribution of iterations over units) affect only
time.

Edges: outside a tensor, a box reads the pad value and writes nothing. `Bound`s give mma and vec the valid extent of a
tile.

Invariants (checked by ppuc.ir.verify): loop variables and buffers are unique; a buffer is written before it is read;
every affine names enclosing loops and existing tile axes only; each tile axis moves along at most one view dimension;
the boxes that two units store to one parameter are disjoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ppuc.ir.affine import Affine
from ppuc.ir.types import DType, Space

MAX_VIEW_RANK = 8
"""Maximum dimensions of a strided view's descriptor."""

MAX_TILE_RANK = 5
"""Maximum axes of the box of a load or store."""

MAX_LOOPS = 32
"""Maximum loops around a statement."""


@dataclass(frozen=True, slots=True)
class View:
    """A strided window onto a flat tensor: element (i0, i1, ...) lies at `offset + sum(i * stride)`, in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def contiguous(cls, shape: tuple[int, ...]) -> View:
        """Row-major view of a whole tensor."""
        strides = [1] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            strides[i] = strides[i + 1] * shape[i + 1]
        return cls(shape, tuple(strides))

    @property
    def is_contiguous(self) -> bool:
        return self == View.contiguous(self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Param:
    """A tensor operand of a kernel: `view` onto the memory of graph value `tensor`. `written` marks results."""

    name: str
    tensor: str
    dtype: DType
    view: View
    space: Space
    written: bool = False


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tile in l1 or acc, kept as a ring of `depth` slots."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    space: Space
    depth: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of one slot."""
        return math.prod(self.shape) * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class Bound:
    """Valid extent of a tile axis of size t: `clip(limit - offset, 0, t)`; prints as `%m < 1000`."""

    offset: Affine
    limit: int


@dataclass(frozen=True, slots=True)
class TileRef:
    """A buffer read as a whole (`index` empty) or through affine indexing: dimension d of the buffer is read at
    `index[d]`, where `$i` is the index along axis i of the resulting tile of `shape`."""

    buffer: str
    index: tuple[Affine, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Gather:
    """View dimension `dim` is indexed by the integers in `buffer` (read along tile axis `axis`; negative ones count
    from the end, others outside the dimension read as padding and store nowhere)."""

    dim: int
    buffer: str
    axis: int


@dataclass(frozen=True, slots=True)
class Load:
    """`dst[i0, i1, ...] = src[index]`, or `pad` where an index is outside the view."""

    dst: str
    src: str
    index: tuple[Affine, ...]
    pad: float = 0.0
    gather: Gather | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """`dst[index] = src[i0, i1, ...]` where the index is inside the view. `combine` is "" (overwrite), "add", "mul",
    "max" or "min" (read-modify-write in the order of the tile's elements)."""

    dst: str
    src: str
    index: tuple[Affine, ...]
    scatter: Gather | None = None
    combine: str = ""


@dataclass(frozen=True, slots=True)
class Mma:
    """`dst (+)= a . b`: a is [m..., k...], b is [k..., n...] (or [n..., k...] if transpose_b; a is [k..., m] if
    transpose_a), the last `k_axes` axes of a being contracted with the first of b. The accumulator restarts from zero
    when all loops in `start` are at their first iteration (an empty `start` restarts always, unless it `continues` what
    another mma of the iteration began). `valid` gives Bounds for
    (m axes..., n axes..., k axes...), None where a whole tile is always valid; bounds affect time, not values."""

    dst: str
    a: TileRef
    b: TileRef
    start: tuple[str, ...]
    k_axes: int = 1
    transpose_a: bool = False
    transpose_b: bool = False
    valid: tuple[Bound | None, ...] = ()
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Vec:
    """`outs = @program(ins)` on the valid part of each axis (None: all of it). `scalars` are affine operands of the
    program's `scalar` steps."""

    program: str
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    valid: tuple[Bound | None, ...] = ()
    scalars: tuple[Affine, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """`for %var in start..stop step step [over axis]`: the unit at coordinate c of grid axis `over` (of size n) runs
    iterations c, c + n, c + 2n, ..."""

    var: str
    stop: int
    step: int
    body: tuple[Stmt, ...]
    over: str | None = None
    start: int = 0

    @property
    def trips(self) -> int:
        """Trip count over all units together."""
        return max(0, -(-(self.stop - self.start) // self.step))


Stmt = Loop | Load | Store | Mma | Vec


@dataclass(frozen=True, slots=True)
class Kernel:
    """One fused group on the compute units. `grid` names its axes and their sizes, the last varying fastest over
    units, beginning at unit `first` and going on at unit 0 after the machine's last unit."""

    name: str
    grid: tuple[tuple[str, int], ...]
    params: tuple[Param, ...]
    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    loc: tuple[str, ...] = ()
    first: int = 0

    @property
    def units(self) -> int:
        """Compute units that the grid uses."""
        return math.prod(n for _, n in self.grid)

    def statements(self) -> Iterator[tuple[tuple[Loop, ...], Load | Store | Mma | Vec]]:
        """Every tile statement in text order, with the loops around it (outermost first)."""
        yield from _walk(self.body, ())


def _walk(
    body: tuple[Stmt, ...], loops: tuple[Loop, ...]
) -> Iterator[tuple[tuple[Loop, ...], Load | Store | Mma | Vec]]:
    for stmt in body:
        if isinstance(stmt, Loop):
            yield from _walk(stmt.body, (*loops, stmt))
        else:
            yield loops, stmt

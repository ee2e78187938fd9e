"""Invariants of kernels.

K1  names are well-formed; buffers and parameters, loops, and grid axes are distinct; an axis has at least one unit,
    and the first unit is not negative.
K2  a buffer lies in l1 or acc, has a depth and no empty axis; a parameter lies elsewhere, its view has one stride per
    dimension and at most 8 dimensions.
K3  statements name existing buffers and parameters; a stored parameter is marked written.
K4  in text order, a buffer is written before it is read.
K5  affines name enclosing loops and existing axes of the tile; bounds, scalars and `start` name loops only.
K6  an index has one affine per dimension; a tile axis moves along at most one dimension.
K7  loads and stores move tiles of at most 5 axes between l1 and parameters of the same element type.
K8  mma reads l1 and accumulates in acc, in f32 (i32 of integers); contracted axes and the product's shape agree.
K9  vec matches its program: numbers and element types of tiles, scalars, one bound per axis.
K10 a loop advances; it runs over an axis of the grid, and over each axis once on any path; at most 32 are nested.
K11 an index list holds integers in l1, one for each position of its tile axis; combinations are known.
K12 units store disjoint boxes: a store is inside a loop over each grid axis, whose step moves past the box.

`StatementChecker` holds the rules of single statements, which also apply to a program's instructions (with rings as
buffers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ppuc.ir.affine import Affine
from ppuc.ir.kernel import (
    MAX_LOOPS,
    MAX_TILE_RANK,
    MAX_VIEW_RANK,
    Bound,
    Gather,
    Kernel,
    Load,
    Loop,
    Mma,
    Param,
    Stmt,
    Store,
    TileRef,
    Vec,
)
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram
from ppuc.ir.verify.findings import Findings

_COMBINES = ("", "add", "mul", "max", "min")

Statement = Load | Store | Mma | Vec


class Tile(Protocol):
    """The common interface of buffers and rings."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def space(self) -> Space: ...


class LoopLike(Protocol):
    """The common interface of loops in kernels and in streams."""

    @property
    def var(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def over(self) -> str | None: ...


def reads_and_writes(stmt: Statement) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tiles that a statement reads and writes; an accumulator counts as written."""
    match stmt:
        case Load():
            return (() if stmt.gather is None else (stmt.gather.buffer,)), (stmt.dst,)
        case Store():
            return (stmt.src, *(() if stmt.scatter is None else (stmt.scatter.buffer,))), ()
        case Mma():
            return (stmt.a.buffer, stmt.b.buffer), (stmt.dst,)
        case Vec():
            return stmt.ins, stmt.outs


class StatementChecker:
    """Checks statements of one kernel against its parameters, tiles and grid."""

    def __init__(
        self,
        findings: Findings,
        grid: Sequence[tuple[str, int]],
        first: int,
        params: Iterable[Param],
        tiles: Iterable[Tile],
        vectors: Mapping[str, VectorProgram],
    ) -> None:
        self.sums: set[str] = set()  # accumulators of the products so far
        self.findings = findings
        self.grid, self.first = dict(grid), first
        self.params = {p.name: p for p in params}
        self.tiles = {t.name: t for t in tiles}
        self.vectors = vectors
        self._ranks = {t.name: len(t.shape) for t in self.tiles.values()}

    def declarations(self) -> None:
        """K1 and K2 of the grid and the parameters."""
        for axis, size in self.grid.items():
            if size < 1:
                self.findings.add("K1", f"grid axis {axis}", f"has {size} units")
        if self.first < 0:
            self.findings.add("K1", "the grid", f"begins at unit {self.first}")
        for param in self.params.values():
            if len(param.view.strides) != len(param.view.shape) or min(param.view.shape, default=1) < 0:
                self.findings.add(
                    "K2", f"%{param.name}", "its view needs one stride per dimension and no negative size"
                )
            if len(param.view.shape) > MAX_VIEW_RANK:
                message = f"its view has {len(param.view.shape)} dimensions, a descriptor {MAX_VIEW_RANK}"
                self.findings.add("K2", f"%{param.name}", message)
            if param.space in (Space.L1, Space.ACC):
                self.findings.add("K2", f"%{param.name}", f"a parameter cannot lie in {param.space}")

    def loop(self, loop: LoopLike, around: Sequence[LoopLike]) -> None:
        """K10 of one loop."""
        entity = f"loop %{loop.var}"
        if loop.step < 1:
            self.findings.add("K10", entity, f"its step is {loop.step}")
        if len(around) >= MAX_LOOPS:
            self.findings.add("K10", entity, f"is inside {len(around)} loops, at most {MAX_LOOPS} can be nested")
        if loop.over is None:
            return
        if loop.over not in self.grid:
            self.findings.add("K10", entity, f"runs over '{loop.over}', which is not an axis of the grid")
        if any(other.over == loop.over for other in around):
            self.findings.add("K10", entity, f"runs over '{loop.over}', as a loop around it does")

    def statement(self, stmt: Statement, loops: Sequence[LoopLike]) -> None:
        """All rules of one statement inside `loops` (outermost first)."""
        before = len(self.findings.items)
        self._references(stmt)
        if len(self.findings.items) > before:
            return
        names = {loop.var for loop in loops}
        match stmt:
            case Load():
                self._move(stmt, self.params[stmt.src], self.tiles[stmt.dst], stmt.gather, names)
            case Store():
                self._move(stmt, self.params[stmt.dst], self.tiles[stmt.src], stmt.scatter, names)
                self._disjoint(stmt, loops)
            case Mma():
                self._mma(stmt, names)
            case Vec():
                self._vec(stmt, names)

    def add(self, rule: str, stmt: Statement, message: str) -> None:
        """Report `stmt`."""
        target = stmt.outs[0] if isinstance(stmt, Vec) and stmt.outs else getattr(stmt, "dst", "vec")

        def show() -> str:
            from ppuc.ir.text.print_kernel import print_statement

            return print_statement(stmt, self._ranks)

        self.findings.add(rule, f"%{target}", message, show)

    def _references(self, stmt: Statement) -> None:
        reads, writes = reads_and_writes(stmt)
        for name in (*reads, *writes):
            if name not in self.tiles:
                self.add("K3", stmt, f"there is no buffer %{name}")
        if isinstance(stmt, Load) and stmt.src not in self.params:
            self.add("K3", stmt, f"there is no parameter %{stmt.src}")
        if isinstance(stmt, Store):
            param = self.params.get(stmt.dst)
            if param is None:
                self.add("K3", stmt, f"there is no parameter %{stmt.dst}")
            elif not param.written:
                self.add("K3", stmt, f"parameter %{stmt.dst} is not marked as written")

    def _affine(self, stmt: Statement, found: Affine, loops: set[str], rank: int, what: str) -> None:
        for name, _ in found.terms:
            if name[0] != "$":
                if name not in loops:
                    self.add("K5", stmt, f"{what} names %{name}, which is not a loop around it")
            elif int(name[1:]) >= rank:
                self.add("K5", stmt, f"{what} names tile axis {name}, but the tile has {rank} axes")

    def _index(self, stmt: Statement, index: tuple[Affine, ...], dims: int, rank: int, loops: set[str]) -> None:
        if len(index) != dims:
            self.add("K6", stmt, f"{len(index)} indices for {dims} dimensions")
        used: set[int] = set()
        for found in index:
            self._affine(stmt, found, loops, rank, "an index")
            axes = {a for a, _ in found.axes}
            for shared in sorted(axes & used):
                self.add("K6", stmt, f"tile axis ${shared} moves along two dimensions")
            used |= axes

    def _move(self, stmt: Load | Store, param: Param, tile: Tile, gather: Gather | None, loops: set[str]) -> None:
        self._index(stmt, stmt.index, len(param.view.shape), len(tile.shape), loops)
        if tile.space is not Space.L1:
            self.add("K7", stmt, f"moves %{tile.name} in {tile.space}, expected l1")
        if tile.dtype is not param.dtype:
            self.add("K7", stmt, f"%{tile.name} holds {tile.dtype}, %{param.name} {param.dtype}")
        if len(tile.shape) > MAX_TILE_RANK:
            self.add("K7", stmt, f"the tile has {len(tile.shape)} axes, at most {MAX_TILE_RANK} can be moved")
        if gather is not None:
            self._gather(stmt, gather, param, tile)
        if isinstance(stmt, Store) and stmt.combine not in _COMBINES:
            self.add("K11", stmt, f"unknown combination '{stmt.combine}'")

    def _gather(self, stmt: Load | Store, gather: Gather, param: Param, tile: Tile) -> None:
        index = self.tiles[gather.buffer]
        if not index.dtype.is_integer or index.space is not Space.L1:
            found = f"{index.dtype} in {index.space}"
            self.add("K11", stmt, f"the index list %{index.name} is {found}, expected integers in l1")
        if not (0 <= gather.dim < len(param.view.shape) and 0 <= gather.axis < len(tile.shape)):
            self.add("K11", stmt, f"%{param.name} has no dimension {gather.dim}, or the tile no axis {gather.axis}")
        elif math.prod(index.shape) != tile.shape[gather.axis]:
            size = tile.shape[gather.axis]
            self.add("K11", stmt, f"{math.prod(index.shape)} indices for {size} positions along ${gather.axis}")
        elif any(a == gather.axis for expression in stmt.index for a, _ in expression.axes):
            self.add("K11", stmt, f"tile axis ${gather.axis} follows the index list and an index expression")

    def _disjoint(self, stmt: Store, loops: Sequence[LoopLike]) -> None:
        """K12. Iterations of one loop that differ by a step must store different boxes; boxes along a dimension that
        several axes or strided axes walk are assumed disjoint (they may interleave)."""
        by_axis = {loop.over: loop for loop in loops if loop.over is not None}
        shape = self.tiles[stmt.src].shape
        for axis, size in self.grid.items():
            loop = by_axis.get(axis)
            if size < 2 or (loop is not None and loop.stop - loop.start <= loop.step):
                continue
            if loop is None:
                self.add("K12", stmt, f"all {size} units of grid axis {axis} store the same box")
            elif stmt.scatter is None and not any(_moves_past(found, loop, shape) for found in stmt.index):
                self.add("K12", stmt, f"units of grid axis {axis} store overlapping boxes (loop %{loop.var})")

    def _operand(self, stmt: Mma, ref: TileRef, loops: set[str]) -> tuple[int, ...]:
        tile = self.tiles[ref.buffer]
        if tile.space is not Space.L1:
            self.add("K8", stmt, f"operand %{tile.name} lies in {tile.space}, expected l1")
        if ref.index:
            self._index(stmt, ref.index, len(tile.shape), len(ref.shape), loops)
            return ref.shape
        if ref.shape not in ((), tile.shape):
            self.add("K8", stmt, f"operand %{tile.name} is read whole, but with shape {list(ref.shape)}")
        return tile.shape

    def _mma(self, stmt: Mma, loops: set[str]) -> None:
        for name in stmt.start:
            if name not in loops:
                self.add("K5", stmt, f"start names %{name}, which is not a loop around it")
        if stmt.continues and stmt.start:
            self.add("K5", stmt, "a product that continues a sum never starts one, but has loops in start")
        if stmt.continues and stmt.dst not in self.sums:
            self.add("K5", stmt, f"continues a sum in %{stmt.dst} that no product before it began")
        self.sums.add(stmt.dst)
        a, b = self._operand(stmt, stmt.a, loops), self._operand(stmt, stmt.b, loops)
        k = stmt.k_axes
        if not (1 <= k <= len(a) and k <= len(b)):
            self.add("K8", stmt, f"contracts {k} axes of operands with {len(a)} and {len(b)}")
            return
        a_m, a_k = (a[k:], a[:k]) if stmt.transpose_a else (a[: len(a) - k], a[len(a) - k :])
        b_k, b_n = (b[len(b) - k :], b[: len(b) - k]) if stmt.transpose_b else (b[:k], b[k:])
        dst = self.tiles[stmt.dst]
        if math.prod(a_k) != math.prod(b_k):
            self.add("K8", stmt, f"contracts axes {list(a_k)} with axes {list(b_k)}")
        if math.prod(dst.shape) != math.prod(a_m) * math.prod(b_n):
            self.add("K8", stmt, f"the product is {[*a_m, *b_n]}, the accumulator {list(dst.shape)}")
        if dst.space is not Space.ACC:
            self.add("K8", stmt, f"accumulates in {dst.space}, expected acc")
        self._mma_types(stmt, dst)
        self._valid(stmt, stmt.valid, loops, (len(a_m) + len(b_n) + k,), "K8")

    def _mma_types(self, stmt: Mma, dst: Tile) -> None:
        a, b = self.tiles[stmt.a.buffer].dtype, self.tiles[stmt.b.buffer].dtype
        expected = DType.F32 if a.is_float else DType.I32
        if a.is_float != b.is_float or DType.BOOL in (a, b) or dst.dtype is not expected:
            self.add("K8", stmt, f"{a} times {b} does not accumulate in {dst.dtype}")

    def _valid(
        self, stmt: Statement, bounds: tuple[Bound | None, ...], loops: set[str], ranks: Iterable[int], rule: str
    ) -> None:
        for bound in bounds:
            if bound is not None:
                self._affine(stmt, bound.offset, loops, 0, "a bound")
        for rank in ranks:
            if any(bounds) and len(bounds) != rank:
                self.add(rule, stmt, f"{len(bounds)} bounds for {rank} axes")

    def _vec(self, stmt: Vec, loops: set[str]) -> None:
        program = self.vectors.get(stmt.program)
        if program is None:
            self.add("K9", stmt, f"there is no vector program @{stmt.program}")
            return
        if not stmt.outs or (len(stmt.ins), len(stmt.outs)) != (len(program.params), len(program.results)):
            expected = f"{len(program.params)} to {len(program.results)}"
            self.add("K9", stmt, f"{len(stmt.ins)} tiles to {len(stmt.outs)}, @{program.name} maps {expected}")
            return
        operands = [(self.tiles[n], p.dtype) for n, p in zip(stmt.ins, program.params, strict=True)]
        results = [(self.tiles[n], dtype) for n, (_, dtype) in zip(stmt.outs, program.results, strict=True)]
        for tile, dtype in (*operands, *results):
            if tile.dtype is not dtype:
                self.add("K9", stmt, f"%{tile.name} holds {tile.dtype}, @{program.name} expects {dtype}")
            if tile.space not in (Space.L1, Space.ACC):
                self.add("K9", stmt, f"%{tile.name} lies in {tile.space}, expected l1 or acc")
        cut = [self.tiles[n] for n, p in zip(stmt.ins, program.params, strict=True) if not p.whole]
        ranks = sorted({len(t.shape) for t in (*cut, *(t for t, _ in results))})
        self._valid(stmt, stmt.valid, loops, ranks, "K9")
        for found in stmt.scalars:
            self._affine(stmt, found, loops, 0, "a scalar")
        needed = max((s.ints[0] + 1 for s in program.steps if s.op == "scalar" and s.ints), default=0)
        if needed > len(stmt.scalars):
            self.add("K9", stmt, f"{len(stmt.scalars)} scalars, @{program.name} needs {needed}")


def _moves_past(found: Affine, loop: LoopLike, shape: tuple[int, ...]) -> bool:
    """Whether one step of `loop` moves the box of a tile of `shape` to disjoint elements along a dimension."""
    moved = abs(found.coefficient(loop.var)) * loop.step
    if not moved:
        return False
    axes = found.axes
    if len(axes) > 1 or any(abs(factor) != 1 for _, factor in axes):
        return True
    return moved >= (shape[axes[0][0]] if axes else 1)


def check_kernel(kernel: Kernel, vectors: Mapping[str, VectorProgram], findings: Findings) -> None:
    """Check one kernel."""
    outside, findings.where = findings.where, f"{findings.where}@{kernel.name} "
    findings.names("K1", "grid axis", [axis for axis, _ in kernel.grid])
    findings.names("K1", "name", [*(p.name for p in kernel.params), *(b.name for b in kernel.buffers)])
    for buffer in kernel.buffers:
        if buffer.space not in (Space.L1, Space.ACC) or buffer.depth < 1 or min(buffer.shape, default=1) < 1:
            message = "needs l1 or acc, a depth of at least 1 and no empty axis"
            findings.add("K2", f"%{buffer.name}", message)
    checker = StatementChecker(findings, kernel.grid, kernel.first, kernel.params, kernel.buffers, vectors)
    checker.declarations()
    variables: list[str] = []
    _check_body(kernel.body, [], checker, variables, set())
    findings.names("K1", "loop", variables)
    findings.where = outside


def _check_body(
    body: tuple[Stmt, ...], loops: list[Loop], checker: StatementChecker, variables: list[str], written: set[str]
) -> None:
    for stmt in body:
        if isinstance(stmt, Loop):
            variables.append(stmt.var)
            checker.loop(stmt, loops)
            _check_body(stmt.body, [*loops, stmt], checker, variables, written)
            continue
        checker.statement(stmt, loops)
        reads, writes = reads_and_writes(stmt)
        for name in reads:
            if name not in written and name in checker.tiles:
                checker.add("K4", stmt, f"reads %{name} before it is written")
        written.update(writes)

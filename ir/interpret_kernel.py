"""The semantics of level 2 in numpy: sequential execution of kernels.

Every unit of the grid runs the kernel's body, one unit after another, statements in text order; buffers are single
tiles. Ring depths and concurrency of units are ignored, so this is the reference for the simulator; both use the
statement plans of `ppuc.ir.tile`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, MutableMapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from ppuc.ir.kernel import Gather, Kernel, Load, Loop, Mma, Stmt, Store
from ppuc.ir.numerics import bits_dtype
from ppuc.ir.tile import LoadPlan, MmaPlan, StorePlan
from ppuc.ir.vector import VectorProgram
from ppuc.ir.vector_steps import VecPlan

Runner = Callable[[list[int]], None]


class KernelExecutor:
    """A kernel compiled to closures over `memory` (tensor name -> flat uint8 array)."""

    def __init__(
        self, kernel: Kernel, vectors: Mapping[str, VectorProgram], memory: MutableMapping[str, np.ndarray]
    ) -> None:
        self.kernel, self.vectors, self.memory = kernel, vectors, memory
        self.params = {p.name: p for p in kernel.params}
        self.buffers = {b.name: b for b in kernel.buffers}
        self.tiles = {b.name: np.zeros(b.shape, bits_dtype(b.dtype)) for b in kernel.buffers}
        self.slots = {loop.var: i for i, loop in enumerate(_loops(kernel.body))}
        self.coordinates = {name: 0 for name, _ in kernel.grid}
        self.first: list[bool] = [True] * len(self.slots)
        self.body = [self._compile(stmt) for stmt in kernel.body]

    def run(self) -> None:
        """Execute the whole grid."""
        for point in itertools.product(*(range(n) for _, n in self.kernel.grid)):
            self.coordinates.update(zip(self.coordinates, point, strict=True))
            env = [0] * len(self.slots)
            for run in self.body:
                run(env)

    def _compile(self, stmt: Stmt) -> Runner:
        if isinstance(stmt, Loop):
            return self._loop(stmt)
        if isinstance(stmt, Load):
            return self._load(stmt)
        if isinstance(stmt, Store):
            return self._store(stmt)
        if isinstance(stmt, Mma):
            return self._mma(stmt)
        plan = VecPlan(
            stmt,
            self.vectors[stmt.program],
            [self.buffers[n] for n in stmt.ins],
            [self.buffers[n] for n in stmt.outs],
            self.slots,
        )
        ins, outs = [self.tiles[n] for n in stmt.ins], [self.tiles[n] for n in stmt.outs]

        def vec(env: list[int]) -> None:
            for tile, value in zip(outs, plan.compute(ins, env), strict=True):
                tile[...] = value

        return vec

    def _loop(self, loop: Loop) -> Runner:
        body = [self._compile(s) for s in loop.body]
        slot = self.slots[loop.var]
        sizes = dict(self.kernel.grid)

        def run(env: list[int]) -> None:
            units = sizes[loop.over] if loop.over is not None else 1
            begin = self.coordinates[loop.over] if loop.over is not None else 0
            for value in range(loop.start + begin * loop.step, loop.stop, loop.step * units):
                env[slot] = value
                self.first[slot] = value == loop.start + begin * loop.step
                for statement in body:
                    statement(env)

        return run

    def _index_tile(self, gather: Gather | None) -> Callable[[], np.ndarray | None]:
        if gather is None:
            return lambda: None
        tile, dtype = self.tiles[gather.buffer], self.buffers[gather.buffer].dtype
        return lambda: tile.view(dtype.numpy)

    def _load(self, stmt: Load) -> Runner:
        param = self.params[stmt.src]
        plan = LoadPlan(stmt, param, self.buffers[stmt.dst], self.slots)
        tile, indices, memory = self.tiles[stmt.dst], self._index_tile(stmt.gather), self.memory
        return lambda env: plan.run(memory[param.tensor], tile, env, indices())

    def _store(self, stmt: Store) -> Runner:
        param = self.params[stmt.dst]
        plan = StorePlan(stmt, param, self.buffers[stmt.src], self.slots)
        tile, indices, memory = self.tiles[stmt.src], self._index_tile(stmt.scatter), self.memory
        return lambda env: plan.run(memory[param.tensor], tile, env, indices())

    def _mma(self, stmt: Mma) -> Runner:
        plan = MmaPlan(
            stmt, self.buffers[stmt.dst], self.buffers[stmt.a.buffer], self.buffers[stmt.b.buffer], self.slots
        )
        acc, a, b = self.tiles[stmt.dst], self.tiles[stmt.a.buffer], self.tiles[stmt.b.buffer]
        watch = [self.slots[v] for v in stmt.start]
        if stmt.continues:
            return lambda env: plan.commit(acc, plan.product(a, b, env), False)
        return lambda env: plan.commit(acc, plan.product(a, b, env), all(self.first[s] for s in watch))


def _loops(body: Sequence[Stmt]) -> list[Loop]:
    found: list[Loop] = []
    for stmt in body:
        if isinstance(stmt, Loop):
            found.append(stmt)
            found += _loops(stmt.body)
    return found


def run_kernel(kernel: Kernel, vectors: Mapping[str, VectorProgram], memory: MutableMapping[str, np.ndarray]) -> None:
    """Execute `kernel` on `memory`: flat uint8 arrays by tensor name, including results, which are written in place."""
    with threadpool_limits(1, "blas"), np.errstate(all="ignore"):
        KernelExecutor(kernel, vectors, memory).run()

"""Balances kernels over the compute units.

Tiles rarely divide evenly among the units: in the last round of a kernel some units have no tile. Units run the next
kernel as soon as they are through with this one, so what counts is a unit's work over several kernels. Each kernel
begins at the unit that makes the busiest unit least busy: units that had a tile fewer in earlier kernels get one more.

Invariant: only the first unit of kernels changes; units of a group, which share reads, stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppuc.compiler.lowering.busy import unit_clk
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import TILED, Contract
from ppuc.compiler.passes.remarks import listener
from ppuc.ir.kernel import Kernel, Loop, Stmt
from ppuc.ir.module import Module
from ppuc.targets.cost import in_order
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class BalanceUnits(Pass):
    """Begin each kernel at the unit that evens out the work of all kernels up to it.

    kernel @b {grid = (cm = 48)} after kernel @a {grid = (cm = 48)}  ->  kernel @b {grid = (cm = 48), first = 48}
    """

    name: ClassVar[str] = "balance-units"
    requires: ClassVar[tuple[Contract, ...]] = (TILED,)
    ensures: ClassVar[tuple[Contract, ...]] = (TILED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with the first units of its kernels chosen."""
        if in_order(target):
            return module
        vectors = {v.name: v for v in module.vectors}
        step = target.cu_per_ce if target.cu_per_ce < target.cu else 1  # units of one group stay together anyway
        done = np.zeros(target.cu)
        kernels: list[Kernel] = []
        for kernel in module.kernels:
            if _even(kernel, target):
                kernels.append(kernel)
                continue
            work = np.zeros(target.cu)
            work[: kernel.units] = unit_clk(kernel, vectors, target)
            first = _best_first(done, work, step)
            done += np.roll(work, first)
            done -= done.min()
            kernels.append(replace(kernel, first=first) if first else kernel)
            if first and (remarks := listener()) is not None:
                remarks.applied("begins-later", kernel.name, kernel.loc, first=first, units=kernel.units)
        return replace(module, kernels=tuple(kernels)) if any(k.first for k in kernels) else module


def _best_first(done: np.ndarray, work: np.ndarray, step: int) -> int:
    """The first unit, a multiple of `step`, from which `work` evens out `done` best (cycles of all units); the lowest
    of equals."""
    return min(range(0, len(done), step), key=lambda first: float(np.square(done + np.roll(work, first)).sum()))


def _even(kernel: Kernel, target: Target) -> bool:
    """Whether every unit has the same iterations of all loops."""
    return kernel.units == target.cu and _divides_evenly(kernel.body, dict(kernel.grid))


def _divides_evenly(body: Sequence[Stmt], sizes: Mapping[str, int]) -> bool:
    """Whether the trip counts of all distributed loops in `body` are multiples of the sizes of their grid axes."""
    loops = (stmt for stmt in body if isinstance(stmt, Loop))
    return all(
        (loop.over is None or loop.trips % sizes[loop.over] == 0) and _divides_evenly(loop.body, sizes)
        for loop in loops
    )

"""Times one program on many variants of a target, sharing work that does not depend on the varied numbers.

Invariant: a retimed run takes exactly the time that `simulate` reports for the same target.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ppuc.ir.program import Program
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target
from ppuc.targets.simulator.launch import launch_clk
from ppuc.targets.simulator.machine import machine_of
from ppuc.targets.simulator.prepare import Launch, prepare
from ppuc.targets.simulator.run import run_flat

_IN_CODE = ("tensor.", "launch.", "cu", "hbm.channels", "hbm.interleave_bytes", "hbm.mapping", "hbm.layout_tile")
"""Path prefixes of numbers that a flattened segment contains."""


class Retimer:
    """Times `program` on variants of `target` that differ only in numbers."""

    def __init__(self, program: Program, vectors: tuple[VectorProgram, ...], target: Target) -> None:
        self._program, self._vectors = program, vectors
        self._launches = prepare(program, vectors, target)

    def seconds(self, target: Target, changed: Collection[str]) -> float:
        """Seconds of a run on `target`, which differs in the numbers at paths `changed`."""
        machine, cycles = machine_of(target), 0.0
        for launch in self._prepared(target, changed):
            state = run_flat(replace(launch.flat, machine=machine))
            cycles += launch_clk(target, launch.first) + float(state.core["now"][0])
        return cycles / (1.0 / target.clk_ns * 1e9)

    def _prepared(self, target: Target, changed: Collection[str]) -> tuple[Launch, ...]:
        if any(path.startswith(_IN_CODE) for path in changed):
            return prepare(self._program, self._vectors, target)
        return self._launches


__all__ = ["Retimer"]

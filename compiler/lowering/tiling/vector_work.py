"""Prices of a group's vector program before its tiles are known, from the table of operations that the simulator uses.

Invariant: apart from rounding up to whole cycles per step, a price is what the simulator charges for a whole tile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering.cost import overhead_clk
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target
from ppuc.targets.vector_cost import vec_cost


@dataclass(frozen=True, slots=True)
class Share:
    """The steps and operands with the extents of the tile along `axes` (and no others), for each of their elements:
    cycles of the lanes and of the special function units, and of l1 and acc. Each of the `steps` takes a cycle at
    least."""

    axes: tuple[int, ...]
    engine_clk: float
    steps: int
    memory_clk: float


@dataclass(frozen=True, slots=True)
class VectorWork:
    """Cycles of a vector program on a tile, as a function of the tile's extents; `fixed_clk` do not depend on them."""

    shares: tuple[Share, ...]
    fixed_clk: float

    def clk(self, tiles: Sequence[int]) -> float:
        """Cycles on the vector engine for a tile with these extents, issue included."""
        engine, memory = self.fixed_clk, 0.0
        for share in self.shares:
            elements = 1
            for axis in share.axes:
                elements *= tiles[axis]
            engine += max(elements * share.engine_clk, share.steps)
            memory += elements * share.memory_clk
        return max(engine, memory)


NO_WORK = VectorWork((), 0.0)
"""Of kernels that only move elements."""


def vector_work(
    program: VectorProgram,
    in_shapes: Sequence[tuple[int, ...]],
    out_shapes: Sequence[tuple[int, ...]],
    in_spaces: Sequence[Space],
    target: Target,
) -> VectorWork:
    """The work of `program` on tiles of operands of these shapes, size 1 where an operand is broadcast."""
    cost = vec_cost(program, in_shapes, out_shapes, in_spaces)
    lanes, sfu = target.vector.lanes, target.vector.sfu_per_clk
    lane: dict[tuple[int, ...], float] = defaultdict(float)
    special: dict[tuple[int, ...], float] = defaultdict(float)
    memory: dict[tuple[int, ...], float] = defaultdict(float)
    steps: dict[tuple[int, ...], int] = defaultdict(int)
    fixed = overhead_clk(target)
    for term in cost.terms:
        fixed += term.tail_clk
        lane[term.count.axes] += term.count.const * term.lane_ops / lanes
        special[term.count.axes] += term.count.const * term.sfu_ops / sfu
        steps[term.count.axes] += (term.lane_ops > 0) + (term.sfu_ops > 0)
    for moved in cost.traffic:
        rate = target.acc.bytes_per_clk if moved.space is Space.ACC else target.l1.bytes_per_clk
        memory[moved.count.axes] += moved.count.const * moved.bytes / rate
    beside = target.vector.sfu_beside_lanes
    engine = {a: max(lane[a], special[a]) if beside else lane[a] + special[a] for a in {*lane, *memory}}
    return VectorWork(tuple(Share(a, engine[a], steps[a], memory[a]) for a in sorted(engine)), fixed)

"""Tiles for systolic arrays whose folds do not overlap.

Such an array pays preload, skew and drain for every fold, so tiles are ranked by cycles on the array first, and only
then by price. Weight-stationary arrays want all rows in a tile and k and columns in multiples of the array;
output-stationary ones rows and columns in multiples, and the whole sum in one product or in one fold.

Invariant: cycles are those of the simulator, tiles at the edges included.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import TypeVar

from ppuc.ir.types import DType
from ppuc.targets.cost import mma_cycles
from ppuc.targets.schema import Target

Parts = Sequence[tuple[int, int]]
"""Extents of the tiles along some axes, each with the number of tiles that have it."""


def serial_array(target: Target) -> bool:
    """Whether products run on a systolic array whose folds do not overlap."""
    return target.tensor.organisation == "systolic" and target.tensor.overlap == "serial"


def parts(axes: Iterable[tuple[int, int]]) -> Parts:
    """Extents of the tiles of axes given as (size, tile size)."""
    found = [[(tile, size // tile), (size % tile, 1)] for size, tile in axes]
    whole = itertools.product(*([p for p in axis if math.prod(p)] for axis in found))
    return [(math.prod(extent for extent, _ in tile), math.prod(count for _, count in tile)) for tile in whole]


def array_clk(rows: Parts, cols: Parts, sums: Sequence[int], dtype: DType, target: Target) -> float:
    """Cycles on the tensor engine of all tiles of `rows` x `cols`, each the sum of products of the k in `sums`."""
    clk = 0.0
    for (m, down), (n, across) in itertools.product(rows, cols):
        later: dict[int, int] = {}
        for k in sums[1:]:
            later[k] = later.get(k, 0) + 1
        tile = float(mma_cycles(m, n, sums[0], dtype, target))
        tile += sum(times * float(mma_cycles(m, n, k, dtype, target, continues=True)) for k, times in later.items())
        clk += down * across * tile
    return clk


T = TypeVar("T")
Candidate = TypeVar("Candidate")


def fewest_cycles(tilings: Iterable[tuple[float, T]], build: Callable[[T], Candidate | None]) -> list[Candidate]:
    """Candidates of the tilings with the fewest cycles for which `build` finds any room."""
    for _, alike in itertools.groupby(sorted(tilings, key=itemgetter(0)), key=itemgetter(0)):
        found = [candidate for _, tiling in alike if (candidate := build(tiling)) is not None]
        if found:
            return found
    return []


__all__ = ["Parts", "array_clk", "fewest_cycles", "parts", "serial_array"]

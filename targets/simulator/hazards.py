"""placeholder"""

from __future__ import annotations

import numpy as np

from ppuc.ir.program import Program
from ppuc.targets.simulator.flatten import FlatSegment
from ppuc.targets.simulator.result import Hazard


class HazardChecker:
    def __init__(self, program: Program, flat: FlatSegment) -> None:
        pass

    def consume(self, log: np.ndarray) -> None:
        pass

    def hazards(self) -> tuple[Hazard, ...]:
        return ()

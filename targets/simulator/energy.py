"""Energy of a run, from counts of events and the target's energy per event.

Dynamic energy is a sum over events; static energy is idle power times the simulated time. Joules by component: tensor,
vector, l1, acc, l2, hbm, host, instructions, static.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target

PJ = 1e-12


def energy_joules(
    target: Target,
    *,
    macs: Mapping[DType, int],
    lane_ops: int,
    sfu_ops: int,
    moved_bytes: Mapping[Space, int],
    instructions: int,
    seconds: float,
) -> dict[str, float]:
    """Joules by component for the counted events; `moved_bytes` are bytes read plus written."""
    e = target.energy
    moved = Counter(moved_bytes)
    picojoules = {
        "tensor": sum(n * e.mac_pj["i8" if d is DType.U8 else str(d)] for d, n in macs.items()),
        "vector": lane_ops * e.vector_op_pj + sfu_ops * e.sfu_op_pj,
        "l1": moved[Space.L1] * e.l1_pj_per_byte,
        "acc": moved[Space.ACC] * e.acc_pj_per_byte,
        "l2": moved[Space.L2] * e.l2_pj_per_byte,
        "hbm": moved[Space.HBM] * e.hbm_pj_per_byte,
        "host": moved[Space.HOST] * e.link_pj_per_byte,
        "instructions": instructions * e.instruction_pj,
    }
    joules = {name: value * PJ for name, value in picojoules.items()}
    joules["static"] = target.power.idle_w * seconds
    return joules

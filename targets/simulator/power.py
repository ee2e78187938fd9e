"""Power of a run that repeats without pause, and the clock under power and temperature limits.

Average power is dynamic energy over time plus idle power. Two limits cap it: the board's, and the power at which one
thermal RC node (ambient, resistance, time constant) settles at its software limit. Above the cap, the clock falls in
proportion, with constant energy per event. This is exact at a fixed voltage; with voltage scaling, the clock falls
less, so throttled times are upper bounds. Single runs much shorter than the control loops of a board (milliseconds) are
not throttled at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class PowerState:
    """`watts` at full clock, before limits; `clock` the fraction of the clock under the limits; `temperature_c` the
    steady temperature at that clock; `seconds_to_limit` the time to reach the temperature limit from ambient (inf:
    never)."""

    watts: float
    clock: float
    temperature_c: float
    seconds_to_limit: float


def steady_power(target: Target, dynamic_joules: float, seconds: float) -> PowerState:
    """Power of a program that takes `seconds` and `dynamic_joules` a run when it repeats without pause."""
    thermal, idle = target.thermal, target.power.idle_w
    dynamic = dynamic_joules / seconds if seconds > 0 else 0.0
    room = target.temperature.sw_limit_c - thermal.ambient_c
    cap = min(target.power.tdp_w, room / thermal.c_per_w)
    clock = min(1.0, max(cap - idle, 0.0) / dynamic) if dynamic > 0 else 1.0
    slowest = target.clock.min_mhz / (target.clock.max_mhz * target.clock.sustained)
    clock = max(clock, min(1.0, slowest))
    drawn = idle + dynamic * clock
    rise = min(idle + dynamic, target.power.tdp_w) * thermal.c_per_w
    to_limit = -thermal.tau_s * math.log1p(-room / rise) if rise > room else math.inf
    return PowerState(idle + dynamic, clock, thermal.ambient_c + drawn * thermal.c_per_w, to_limit)


__all__ = ["PowerState", "steady_power"]

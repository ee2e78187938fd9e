"""Judges whether tensors agree with the model's: by the tolerance rule, and by the model's conditioning if that fails.

Invariant: a tensor that keeps the rule is judged by the rule alone; one that breaks it is accepted only within what the
model itself makes of rounding, and its comparison then carries the sensitivity that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.conditioning import Sensitivity, sensitivities
from ppuc.compiler.validation.expected import Allowed
from ppuc.compiler.validation.tolerance import Tolerance, exact, stored_as, tolerances, typical_step
from ppuc.ir.graph import Graph
from ppuc.ir.types import DType


class Judge:
    """Judges values of `graph` (the imported model) computed at `precision` from `feeds` (by parameter name), against a
    reference that computes the ONNX nodes `transforms` as Fourier transforms."""

    def __init__(
        self,
        graph: Graph,
        precision: str,
        feeds: Mapping[str, np.ndarray],
        transforms: Collection[str] = (),
    ) -> None:
        self._graph, self._feeds = graph, feeds
        self._tolerances = tolerances(graph, precision, transforms)
        self._step = typical_step(graph, precision, transforms)
        self._sensitivities: dict[str, Sensitivity] | None = None

    def compare(
        self,
        label: str,
        value: str,
        got: np.ndarray,
        want: np.ndarray,
        allowed: Allowed | None = None,
        stored: DType | None = None,
    ) -> Comparison:
        """`got` against the reference `want` for the graph's value of that name ("" for one that is not in the graph).
        `allowed` was measured: with the rounding of `got`'s own type it bounds elements in place of the rule, and the
        whole where it is smaller. `stored` is the dtype in which the program held `got` (None: its own)."""
        dtype = stored or DType.of(got.dtype)
        tolerance = stored_as(dtype, self._tolerances.get(value, exact()))
        result = compare(label, got, want, _within(allowed, tolerance, dtype, want))
        sensitivity = None if result.ok else self._sensitivity(value)
        if sensitivity is None:
            return result
        widened = sensitivity.widened(tolerance, self._step)
        if widened == tolerance:
            return result
        again = compare(label, got, want, _within(allowed, widened, dtype, want))
        return replace(again, sensitivity=sensitivity.relative)

    def tolerances_of(self, value: str) -> list[Tolerance]:
        """What the graph's value of that name may be off: by the rule, and by the model's own conditioning."""
        rule, sensitivity = self._tolerances.get(value, exact()), self._sensitivity(value)
        return [rule] if sensitivity is None else [rule, sensitivity.widened(rule, self._step)]

    def _sensitivity(self, value: str) -> Sensitivity | None:
        if self._sensitivities is None:
            self._sensitivities = sensitivities(self._graph, self._feeds, self._step)
        return self._sensitivities.get(value)


def _within(allowed: Allowed | None, tolerance: Tolerance, dtype: DType, want: np.ndarray) -> Tolerance:
    """`tolerance` within what was measured to be allowed of `want`, stored as `dtype`."""
    if allowed is None:
        return tolerance
    unit = stored_as(dtype, Tolerance(0.0)).relative
    relative = min(tolerance.relative, math.hypot(allowed.relative, unit))
    largest = allowed.largest + unit * float(np.abs(want.astype(np.float64)).max(initial=0))
    return replace(tolerance, relative=relative, largest=largest, absolute=Tolerance(0.0).absolute, rms=None)

"""Judges whether tensors agree with the model's: by the tolerance rule, then by the model's conditioning, then by the
sides that its steps may fall on.

Invariant: a tensor that keeps the rule is judged by the rule alone, but for integers, none of which may differ where no
step is near an edge; one that breaks it is accepted only within what the model itself makes of rounding. Its comparison
then carries the sensitivity that was measured, or a note of the elements that are on other sides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.conditioning import Sensitivity, sensitivities
from ppuc.compiler.validation.expected import Allowed
from ppuc.compiler.validation.overflow import nearest
from ppuc.compiler.validation.sides import Sided, sided
from ppuc.compiler.validation.tolerance import Tolerance, exact, stored_as, tolerances, typical_step
from ppuc.ir.graph import Graph
from ppuc.ir.types import DType


class Judge:
    """Judges values of `graph` (the imported model) computed at `precision` from `feeds` (by parameter name), against a
    reference that computes the ONNX nodes `transforms` as Fourier transforms. `held` are the dtypes of parameters that
    the program computed and stored; what follows them may have read them before they were rounded to be stored."""

    def __init__(
        self,
        graph: Graph,
        precision: str,
        feeds: Mapping[str, np.ndarray],
        transforms: Collection[str] = (),
        held: Mapping[str, DType] | None = None,
    ) -> None:
        self._graph, self._feeds = graph, feeds
        self._tolerances = tolerances(graph, precision, transforms)
        self._step = typical_step(graph, precision, transforms)
        self._sensitivities: dict[str, Sensitivity] | None = None
        self._precision, self._transforms = precision, transforms
        self._held = dict(held or {})
        self._sided: dict[str, Sided | None] = {}

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
        if result.ok:
            return self._as_integers(result, value, got, want) if result.mismatches else result
        sensitivity = self._sensitivity(value)
        widened = tolerance if sensitivity is None else sensitivity.widened(tolerance, self._step)
        if sensitivity is not None and widened != tolerance:
            result = replace(
                compare(label, got, want, _within(allowed, widened, dtype, want)), sensitivity=sensitivity.relative
            )
        if result.ok:
            return self._as_integers(result, value, got, want) if result.mismatches else result
        sides = self._sides(value)
        if sides is None or not got.shape == want.shape == sides.base.shape:
            return result
        return on_other_sides(result, got, want, sides, _within(allowed, widened, dtype, want)) or result

    def _as_integers(self, before: Comparison, value: str, got: np.ndarray, want: np.ndarray) -> Comparison:
        """`before`, of integers some of which differ though no more than may: right if all of them are those of other
        sides, wrong when one is less or more than on any side. Where layers are of 8 bits, the rule does not know how
        far their errors go."""
        sides = None if PRECISIONS[self._precision].quantized else self._sides(value)
        if sides is None or sides.base.shape != got.shape:
            return before
        better = on_other_sides(before, got, want, sides, exact())
        stray = (got != want) & sides.beyond(got)
        if better is not None or not stray.any():
            return better or before
        count, at = int(np.count_nonzero(stray)), [int(i) for i in np.argwhere(stray)[0]]
        return replace(
            before, ok=False, reason=f"{count} of {got.size} elements differ, far from any edge, first at {at}"
        )

    def _sides(self, value: str) -> Sided | None:
        if value not in self._sided:
            results = {v.name for v in self._graph.results} | {value}
            found = sided(self._graph, self._precision, self._feeds, self._step, results, self._transforms, self._held)
            self._sided |= {name: found.get(name) for name in results}
        return self._sided[value]

    def tolerances_of(self, value: str) -> list[Tolerance]:
        """What the graph's value of that name may be off: by the rule, and by the model's own conditioning."""
        rule, sensitivity = self._tolerances.get(value, exact()), self._sensitivity(value)
        return [rule] if sensitivity is None else [rule, sensitivity.widened(rule, self._step)]

    def _sensitivity(self, value: str) -> Sensitivity | None:
        if self._sensitivities is None:
            self._sensitivities = sensitivities(self._graph, self._feeds, self._step)
        return self._sensitivities.get(value)


def on_other_sides(
    before: Comparison, got: np.ndarray, want: np.ndarray, sides: Sided, tolerance: Tolerance
) -> Comparison | None:
    """`got` compared with the reference `want` on the sides of steps that it is closest to; None if it is off there,
    too. `before` is its comparison with `want` itself."""
    closest = nearest(got, *sides.given(want)).astype(want.dtype)
    again = compare(before.name, got, closest, replace(tolerance, mismatch_share=0.0, flips=0.0))
    if not again.ok:
        return None
    count = int(np.count_nonzero(closest != want))
    note = f"{count} of {got.size} elements come from numbers so near an edge that rounding may take them over it"
    return replace(again, sensitivity=before.sensitivity, mismatches=before.mismatches, note=note)


def _within(allowed: Allowed | None, tolerance: Tolerance, dtype: DType, want: np.ndarray) -> Tolerance:
    """`tolerance` within what was measured to be allowed of `want`, stored as `dtype`."""
    if allowed is None:
        return tolerance
    unit = stored_as(dtype, Tolerance(0.0)).relative
    relative = min(tolerance.relative, math.hypot(allowed.relative, unit))
    largest = allowed.largest + unit * float(np.abs(want.astype(np.float64)).max(initial=0))
    return replace(tolerance, relative=relative, largest=largest, absolute=Tolerance(0.0).absolute, rms=None)

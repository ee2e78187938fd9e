"""Predicts an operator's time: compiled for the target like part of a model, and simulated for timing only.

Invariant: predictions do not use measurements; equal cases are predicted once.
"""

from __future__ import annotations

from typing import Any

from ppuc.compiler.entry import compile_program
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.predict.case import Case
from ppuc.compiler.predict.library import library_us
from ppuc.compiler.predict.operators import model_of
from ppuc.compiler.predict.repeated import repeated
from ppuc.compiler.report.interval import interval
from ppuc.ir.errors import PpucError, UsageError
from ppuc.ir.program import Program
from ppuc.ir.types import Space
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import Target


class Predictor:
    """Predicts cases on one target; with `intervals`, including the uncertainty from estimated numbers."""

    def __init__(self, target: Target, intervals: bool) -> None:
        self._target = target
        self._intervals = intervals
        self._known: dict[Case, dict[str, Any]] = {}

    def predict(self, case: Case, where: str) -> dict[str, Any]:
        """Time and its causes, as JSON-able values: `us` of a run that repeats without pause, of which the machine's
        library adds `library_us`, `bound_by`, the `tile` of the product (empty without one), `kernels`, bytes of device
        memory and l2 read and written, the share of the roofline, and `interval_us`. Raises UsageError at `where` if
        the target cannot run it."""
        if case not in self._known:
            self._known[case] = self._predicted(case, where)
        return self._known[case]

    def _predicted(self, case: Case, where: str) -> dict[str, Any]:
        target = self._target
        if not target.tensor.supports(case.dtype):
            known = ", ".join(dtype for dtype in target.tensor.ii_clk)
            raise UsageError.of(where, f"{target.name} does not multiply {case.dtype}", got=case.name, expected=known)
        try:
            program = compile_program(model_of(case), CompileOptions(target))
        except PpucError as error:
            raise UsageError.of(where, f"does not run on {target.name}", got=f"{case.name}: {error}") from error
        if case.kind == "gemm":
            program = repeated(program)
        profile = program.time().profile
        us = profile.sustained_seconds * 1e6
        library = 0.0
        if case.kind == "attention":
            library = library_us(case, us, target, lambda other: float(self.predict(other, where)["us"]))
        moved = {s: profile.read_bytes.get(s, 0) + profile.write_bytes.get(s, 0) for s in (Space.HBM, Space.L2)}
        found = interval(program, profile) if self._intervals else {}
        longest = max(profile.kernels, key=lambda kernel: kernel.end - kernel.start)
        us += library
        return {
            "us": us,
            "library_us": library,
            "bound_by": longest.bound_by,
            "tile": _tile(program.artifact.program),
            "kernels": len(profile.kernels),
            "hbm_bytes": moved[Space.HBM],
            "l2_bytes": moved[Space.L2],
            "roofline": roofline_us(case, program.artifact.program, target) / us,
            "interval_us": [(us - library) * s / profile.seconds + library for s in found["seconds"]]
            if "seconds" in found
            else None,
        }


def roofline_us(case: Case, program: Program, target: Target) -> float:
    """Lower bound on the time of a case in us: its products at the peak of their element type, or its operands and
    results at the sustained rate of device memory."""
    products = case.macs / (target.peak_macs_per_clk(case.dtype) * target.clock.max_mhz) if case.macs else 0.0
    ends = sum(t.bytes for t in program.tensors if t.role in ("input", "output"))
    return max(products, ends / hbm_bytes_per_clk(target) * target.clk_ns / 1e3)


def _tile(program: Program) -> list[int]:
    """The accumulator tile of the first product."""
    rings = (r for segment in program.segments for kernel in segment.kernels for r in kernel.rings)
    return next((list(r.shape) for r in rings if r.space is Space.ACC), [])

"""Compares an array with its reference under a tolerance.

Invariant: an array with a NaN or an infinity where the reference has none (or the other way round, or of the other
sign) never agrees, whatever the tolerance; integers and booleans agree only in their values, never "nearly".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.ir.types import DType

MAX_SQNR_DB = 999.0
"""Represents an infinite ratio (no error), which JSON cannot express."""

LOOSE = 0.5
"""Relative error from which on allowing it proves nothing: an answer half of which is wrong would pass."""

CLOSE = 0.01
"""Relative error so small that an agreement is no coincidence, whatever is allowed."""


def sqnr_text(decibels: float) -> str:
    """A signal-to-noise ratio for people: with one digit, or `exact`."""
    return "exact" if decibels >= MAX_SQNR_DB else f"{decibels:.1f}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor against its reference. `max_rel` is over elements whose reference is not zero; `rms_rel` is the
    error's root mean square over the reference's; `sqnr_db` is `-20 log10(rms_rel)`; `worst` is the index of the
    largest error. For integers `mismatches` counts differing elements. `reason` says why `ok` is False (""
    otherwise). `sensitivity` is set when the tolerance was widened to the model's own conditioning: its relative change
    for one unit of relative change of the weights. `unproven` says why an agreement means little ("": it means that the
    tensor is right); `note` is what else to know of it."""

    name: str
    type: str
    ok: bool
    reason: str
    max_abs: float
    max_rel: float
    rms_rel: float
    cosine: float
    sqnr_db: float
    mismatches: int
    tolerance: float
    worst: tuple[int, ...]
    sensitivity: float | None = None
    unproven: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`ok`, `unproven` or `wrong`."""
        return "wrong" if not self.ok else "unproven" if self.unproven else "ok"

    @property
    def empty(self) -> bool:
        """Whether there are no elements to compare."""
        return "0" in self.type.partition("[")[2].removesuffix("]").split(", ")

    def record(self) -> dict[str, Any]:
        """The comparison as JSON-able values."""
        return {**asdict(self), "worst": list(self.worst), "verdict": self.verdict}


def compare(name: str, got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> Comparison:
    """Compare `got` with the reference `want` (same shape; floats may differ in format)."""
    if got.shape != want.shape:
        return _refused(name, got, f"shape is {list(got.shape)}, the reference has {list(want.shape)}", tolerance)
    if _is_float(got) != _is_float(want) or (not _is_float(got) and got.dtype != want.dtype):
        return _refused(name, got, f"dtype is {got.dtype}, the reference has {want.dtype}", tolerance)
    if not _is_float(got):
        return _compare_exact(name, got, want, tolerance)
    return _compare_float(name, got, want, tolerance)


def _is_float(array: np.ndarray) -> bool:
    return DType.of(array.dtype).is_float


def _type(array: np.ndarray) -> str:
    return f"{DType.of(array.dtype)}[{', '.join(map(str, array.shape))}]"


def _refused(name: str, got: np.ndarray, reason: str, tolerance: Tolerance) -> Comparison:
    return Comparison(
        name,
        _type(got),
        False,
        reason,
        math.inf,
        math.inf,
        math.inf,
        0.0,
        -MAX_SQNR_DB,
        got.size,
        tolerance.relative,
        (),
    )


def _compare_exact(name: str, got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> Comparison:
    differs = got != want
    mismatches = int(np.count_nonzero(differs))
    allowed = min(tolerance.mismatches(got.size), got.size)
    worst = _index(int(np.argmax(differs)), got.shape) if mismatches else ()
    ok = mismatches <= allowed
    reason = "" if ok else f"{mismatches} of {got.size} elements differ ({allowed} allowed), first at {list(worst)}"
    error = np.abs(got.astype(np.float64) - want.astype(np.float64)) if mismatches else np.zeros(1)
    scale = np.abs(want.astype(np.float64))
    rms = _ratio(_rms(error), _rms(scale)) if mismatches else 0.0
    loose = ok and mismatches > 0 and max(tolerance.mismatch_share, tolerance.flips) >= LOOSE
    unproven = f"{allowed} of {got.size} elements might differ" if loose else ""
    return Comparison(
        name, _type(got), ok, reason, float(error.max()), _max_rel(error, scale) if mismatches else 0.0, rms,
        _cosine(got, want), _decibel(rms), mismatches, tolerance.relative, worst, unproven=unproven,
    )  # fmt: skip


def _compare_float(name: str, got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> Comparison:
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if reason := _special_values(a, b, finite):
        return _refused(name, got, reason, tolerance)
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    error = np.abs(a - b)
    scale = _rms(b)
    rms = _ratio(_rms(error), scale)
    spread = tolerance.spread(got.size)
    limit = spread * tolerance.relative * (np.abs(b) + scale) + tolerance.absolute
    if tolerance.largest is not None:
        limit = np.full_like(limit, tolerance.largest)
    worst = _index(int(np.argmax(error)), got.shape) if got.size else ()
    reason, whole = "", tolerance.absolute if tolerance.rms is None else tolerance.rms
    if rms > tolerance.relative and _rms(error) > whole:
        reason = f"relative error {rms:.2e} exceeds {tolerance.relative:.2e} (SQNR {_decibel(rms):.1f} dB)"
    elif got.size and bool(np.any(error > limit)):
        at = _index(int(np.argmax(error - limit)), got.shape)
        reason = f"element {list(at)} is {a[at]:.6g}, the reference has {b[at]:.6g} (allowed error {limit[at]:.2e})"
    largest = float(error.max()) if got.size else 0.0
    unproven = "" if reason or rms <= CLOSE else _doubt(b, limit, tolerance)
    return Comparison(
        name, _type(got), not reason, reason, largest, _max_rel(error, np.abs(b)), rms, _cosine(a, b), _decibel(rms),
        0, tolerance.relative, worst, unproven=unproven,
    )  # fmt: skip


def _doubt(want: np.ndarray, limit: np.ndarray, tolerance: Tolerance) -> str:
    """Why a tensor that is allowed elements off by `limit` proves nothing by agreeing; "" when it does."""
    if tolerance.relative >= LOOSE:
        return f"errors of {tolerance.relative:.2g} of the values would be accepted"
    zeros = tolerance.relative >= 1.0 or _rms(want) <= tolerance.absolute
    return "zeros would be accepted" if zeros and bool(np.all(np.abs(want) <= limit)) else ""


def _special_values(a: np.ndarray, b: np.ndarray, finite: np.ndarray) -> str:
    """Why NaN and infinite elements disagree; "" if they agree."""
    same = (np.isnan(a) == np.isnan(b)) & (finite | np.isnan(b) | (a == b)) & (np.isfinite(a) == finite)
    if bool(same.all()):
        return ""
    at = _index(int(np.argmin(same)), a.shape)
    return f"element {list(at)} is {a[at]}, the reference has {b[at]}"


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape and 0 not in shape else ()


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def _ratio(error: float, scale: float) -> float:
    return 0.0 if error == 0 else math.inf if scale == 0 else error / scale


def _decibel(rms_rel: float) -> float:
    if rms_rel == 0:
        return MAX_SQNR_DB
    return -MAX_SQNR_DB if math.isinf(rms_rel) else -20 * math.log10(rms_rel)


def _max_rel(error: np.ndarray, scale: np.ndarray) -> float:
    nonzero = scale > 0
    return float((error[nonzero] / scale[nonzero]).max()) if nonzero.any() else 0.0


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else float(not x.any() and not y.any())

"""Index outputs are judged by the values that they choose.

Where two values differ by less than rounding does, either is a right choice. So an index output agrees when every value
that it chooses is, in the model's own numbers, within twice the allowed error of the one that the model chooses there:
once for the value that was taken, once for the one that was passed over. And the choices have to be different ones.

Invariant: values are the oracle's, for both choices; the program gives nothing but indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.frontend.selections import Selection, selections
from ppuc.compiler.validation.compare import LOOSE, Comparison
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import Tolerance

if TYPE_CHECKING:
    import onnx


def by_value(
    before: Comparison,
    got: np.ndarray,
    want: np.ndarray,
    selection: Selection,
    data: np.ndarray,
    tolerances: Callable[[], list[Tolerance]],
) -> Comparison:
    """`before`, the comparison of indices `got` and `want`, which differ, or a better one. `data` are the oracle's
    values that `selection` chose from, `tolerances` what they may be off, the strictest first."""
    chosen = _choices(got, want, selection, data)
    if chosen is None:
        return before
    error = np.abs(chosen[0].astype(np.float64) - chosen[1].astype(np.float64))
    scale = np.abs(chosen[1].astype(np.float64)) + _rms(data)
    for tolerance in tolerances():
        limit = 2 * (tolerance.spread(data.size) * tolerance.relative * scale + tolerance.absolute)
        if bool(np.all(error <= limit)):
            note = f"{before.mismatches} of {got.size} indices differ, and choose values that agree"
            loose = f"values {tolerance.relative:.2g} apart would be accepted" if tolerance.relative >= LOOSE else ""
            return replace(before, ok=True, reason="", note=note, tolerance=tolerance.relative, unproven=loose)
    worst = float(np.max(error))
    return replace(before, reason=f"{before.reason}; values that they choose differ by up to {worst:.3g}")


def judged_by_value(
    source: str | Path | onnx.ModelProto,
    arrays: Mapping[str, Any],
    outputs: Mapping[str, Comparison],
    got: Mapping[str, Any],
    want: Mapping[str, Any],
    tolerances: Callable[[str], list[Tolerance]],
) -> tuple[Comparison, ...]:
    """`outputs`, compared on inputs `arrays`; those that differ and are indices which a node chose are judged by the
    values that they choose. `tolerances` are those of what the node of a name gives."""
    differing = [name for name, c in outputs.items() if not c.ok and c.mismatches]
    found = dict(outputs)
    for name, selection in selections(source, differing).items() if differing else ():
        data = arrays.get(selection.data)
        if data is None:
            data = Oracle(source, (selection.data,)).run(arrays)[selection.data]
        allowed = partial(tolerances, selection.node)
        found[name] = by_value(outputs[name], got[name], want[name], selection, data, allowed)
    return tuple(found.values())


def _choices(
    got: np.ndarray, want: np.ndarray, selection: Selection, data: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The values that two choices take; None when `got` is none that the op could make."""
    if got.shape != want.shape or not got.size or data.dtype.kind not in "fV":
        return None
    if selection.op == "NonMaxSuppression":
        return _boxes(got.astype(np.int64), want.astype(np.int64), data)
    axis = selection.axis % data.ndim
    width = data.shape[axis]
    others = math.prod(data.shape) // width
    if got.size % others or got.min() < 0 or got.max() >= width:
        return None
    shape = [got.size // others if i == axis else n for i, n in enumerate(data.shape)]
    mine, theirs = (a.reshape(shape).astype(np.int64) for a in (got, want))
    if np.any(np.diff(np.sort(mine, axis), axis=axis) == 0):
        return None
    return np.take_along_axis(data, mine, axis), np.take_along_axis(data, theirs, axis)


def _boxes(got: np.ndarray, want: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The scores of rows (batch, class, box), whose batches and classes have to be the same."""
    same = np.array_equal(got[:, :2], want[:, :2]) and len(np.unique(got, axis=0)) == len(got)
    if not same or got.min() < 0 or got[:, 2].max() >= scores.shape[2]:
        return None
    return scores[tuple(got.T)], scores[tuple(want.T)]


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))

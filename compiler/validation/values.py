"""Compares outputs other than numeric tensors: text, sequences, optional values, maps from keys to numbers.

Invariant: maps agree only if they have the same keys, and text only if it is the same; numbers are judged as those of
tensors are, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppuc.compiler.validation.compare import MAX_SQNR_DB, Comparison, compare
from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.ir.types import DType

OTHER_KIND = "has a different kind than the reference"


def compare_values(name: str, got: Any, want: Any, tolerance: Callable[[np.ndarray], Tolerance]) -> list[Comparison]:
    """One comparison for each tensor of an output: sequences have several. A sequence of maps with the same keys is one
    tensor, with a row for each map. `tolerance` says what is allowed of an array like the one that it is given."""
    if isinstance(got, list) and isinstance(want, list):
        if len(got) != len(want):
            return [_exact(name, got, f"has {len(got)} elements, the reference has {len(want)}")]
        if all(isinstance(e, dict) for e in (*got, *want)) and want:
            return [_maps(name, got, want, tolerance)]
        pairs = enumerate(zip(got, want, strict=True))
        return [c for i, (a, b) in pairs for c in compare_values(f"{name}[{i}]", a, b, tolerance)]
    if isinstance(got, dict) and isinstance(want, dict):
        return [_maps(name, [got], [want], tolerance)]
    if not isinstance(got, np.ndarray) or not isinstance(want, np.ndarray):
        return [_exact(name, got, "" if got is want is None else OTHER_KIND)]
    return [_arrays(name, got, want, tolerance)]


def _maps(
    name: str,
    got: Sequence[Mapping[Any, Any]],
    want: Sequence[Mapping[Any, Any]],
    tolerance: Callable[[np.ndarray], Tolerance],
) -> Comparison:
    """The values of maps in the order of the reference's keys."""
    for a, b in zip(got, want, strict=True):
        if a.keys() != b.keys():
            return _exact(name, got[0], "has different keys than the reference")
    if len({frozenset(m) for m in want}) == 1:
        keys = list(want[0])
        rows = [np.asarray([[m[k] for k in keys] for m in maps]) for maps in (got, want)]
    else:
        rows = [np.asarray([m[k] for m, n in zip(maps, want, strict=True) for k in n]) for maps in (got, want)]
    return _arrays(name, rows[0], rows[1], tolerance)


def _arrays(name: str, got: np.ndarray, want: np.ndarray, tolerance: Callable[[np.ndarray], Tolerance]) -> Comparison:
    try:
        DType.of(got.dtype)
    except KeyError:
        same = got.shape == want.shape and got.dtype.kind == want.dtype.kind and bool(np.all(got == want))
        return _exact(name, got, "" if same else "elements differ")
    return compare(name, got, want, tolerance(got))


def _exact(name: str, got: Any, reason: str) -> Comparison:
    """What agrees or does not, with nothing between."""
    kind = f"{got.dtype}{list(got.shape)}" if isinstance(got, np.ndarray) else type(got).__name__
    wrong = 1 if reason else 0
    sqnr = 0.0 if wrong else MAX_SQNR_DB
    return Comparison(name, kind, not reason, reason, 0.0, 0.0, 0.0, 1.0 - wrong, sqnr, wrong, 0.0, ())

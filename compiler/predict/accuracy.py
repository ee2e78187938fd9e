"""Errors of predictions against measurements, in total and by class of operator.

Invariant: every measured row counts once in the total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppuc.compiler.predict.case import Case

Belongs = Callable[[Case], bool]


def _product(test: Callable[[int, int, int], bool]) -> Belongs:
    return lambda case: case.kind == "gemm" and test(*case.dims)


CLASSES: Mapping[str, Belongs] = {
    "up to 16 rows": _product(lambda m, n, k: m <= 16),
    "17 to 96 rows": _product(lambda m, n, k: 17 <= m <= 96),
    "97 to 768 rows": _product(lambda m, n, k: 97 <= m <= 768),
    "more than 768 rows": _product(lambda m, n, k: m > 768),
    "causal attention": lambda case: case.kind == "attention" and bool(case.dims[6]),
    "attention of one query": lambda case: case.kind == "attention" and case.dims[3] == 1,
    "other attention": lambda case: case.kind == "attention" and not case.dims[6] and case.dims[3] > 1,
    "pointwise convolution": lambda case: case.kind == "conv" and case.dims[5] == 1,
    "convolution with a window": lambda case: case.kind == "conv" and case.dims[5] > 1,
}
"""Classes of operators with different bottlenecks, by sizes alone; each case is in one of them."""


def class_of(case: Case) -> str:
    """The class of a case: its kind if no class applies."""
    return next((name for name, belongs in CLASSES.items() if belongs(case)), case.kind)


def accuracy(
    cases: Sequence[Case], predicted: Sequence[float], measured: Sequence[float | None]
) -> dict[str, Any] | None:
    """Relative errors of measured rows, as JSON-able values; None without any."""
    rows = [(class_of(c), p / m - 1) for c, p, m in zip(cases, predicted, measured, strict=True) if m is not None]
    if not rows:
        return None
    names = list(dict.fromkeys(name for name, _ in rows))
    return _summary([error for _, error in rows]) | {
        "classes": [{"class": name, **_summary([e for n, e in rows if n == name])} for name in names]
    }


def _summary(errors: Sequence[float]) -> dict[str, Any]:
    """Mean and percentiles of absolute errors, and the mean error (above 0: predicted too long)."""
    sizes = np.abs(np.asarray(errors))
    return {
        "rows": len(errors),
        "mean_abs": float(sizes.mean()),
        "p50": float(np.percentile(sizes, 50)),
        "p90": float(np.percentile(sizes, 90)),
        "max": float(sizes.max()),
        "mean": float(np.mean(errors)),
    }

"""The forms in which detectors give boxes, and how boxes overlap.

A box's four numbers mean corners and sizes, or follow from the point of its cell, the stride of its level and an
anchor.

Invariant: decoded boxes are x0, y0, x1, y1 in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cells:
    """For each candidate: `cell` f64[n, 2], its column and row; `centre`, where in a cell its point lies; `stride`
    f64[n, 1] and `anchor` f64[n, 2] in pixels; `size`, width and height of the input."""

    cell: np.ndarray
    centre: float
    stride: np.ndarray
    anchor: np.ndarray
    size: np.ndarray
    variances: tuple[float, ...]

    @property
    def point(self) -> np.ndarray:
        """Points in pixels."""
        found: np.ndarray = (self.cell + self.centre) * self.stride
        return found


def _around(centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.concatenate([centre - size / 2, centre + size / 2], 1)


def _distances(cells: Cells, t: np.ndarray) -> np.ndarray:
    return np.concatenate([cells.point - t[:, :2], cells.point + t[:, 2:]], 1)


def _expected(t: np.ndarray) -> np.ndarray:
    """The means of distributions over bins, f64[n, 4]."""
    bins = t.reshape(len(t), 4, -1)
    found: np.ndarray = softmax(bins) @ np.arange(bins.shape[2])
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e**-x)"""
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(x, -80, 80)))
    return found


def softmax(x: np.ndarray) -> np.ndarray:
    """Likelihoods along the last axis."""
    likely = np.exp(x - x.max(-1, keepdims=True))
    found: np.ndarray = likely / likely.sum(-1, keepdims=True)
    return found


def _exp(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(np.minimum(x, 50.0))
    return found


FORMS: dict[str, tuple[str, Callable[[Cells, np.ndarray], np.ndarray]]] = {
    "xyxy": ("corners in pixels", lambda cells, t: t),
    "xywh": ("corner and size in pixels", lambda cells, t: np.concatenate([t[:, :2], t[:, :2] + t[:, 2:]], 1)),
    "cxcywh": ("centre and size in pixels", lambda cells, t: _around(t[:, :2], t[:, 2:])),
    "ltrb": ("distances from the point, in strides", lambda cells, t: _distances(cells, t * cells.stride)),
    "ltrb-pixels": ("distances from the point, in pixels", _distances),
    "ltrb-exp": ("logarithms of distances in strides", lambda cells, t: _distances(cells, _exp(t) * cells.stride)),
    "dfl": (
        "a distribution of each distance over bins",
        lambda cells, t: _distances(cells, _expected(t) * cells.stride),
    ),
    "cxcywh-exp": (
        "(cell + xy) and e**wh in strides (YOLOX)",
        lambda cells, t: _around((cells.cell + t[:, :2]) * cells.stride, _exp(t[:, 2:]) * cells.stride),
    ),
    "yolov3": (
        "(cell + sigmoid xy) in strides, e**wh of the anchor",
        lambda cells, t: _around((cells.cell + sigmoid(t[:, :2])) * cells.stride, _exp(t[:, 2:]) * cells.anchor),
    ),
    "yolov5": (
        "(cell + 2 sigmoid xy - 0.5) in strides, (2 sigmoid wh)**2 of the anchor",
        lambda cells, t: _around(
            (cells.cell + 2 * sigmoid(t[:, :2]) - 0.5) * cells.stride, (2 * sigmoid(t[:, 2:])) ** 2 * cells.anchor
        ),
    ),
    "fastestdet": (
        "(cell + tanh xy) in strides, sigmoid wh of the input",
        lambda cells, t: _around((cells.cell + np.tanh(t[:, :2])) * cells.stride, sigmoid(t[:, 2:]) * cells.size),
    ),
    "deltas": (
        "point + xy and e**wh of the anchor, times `variances` (SSD, RetinaNet)",
        lambda cells, t: _around(
            cells.point + t[:, :2] * cells.variances[0] * cells.anchor,
            _exp(t[:, 2:] * cells.variances[1]) * cells.anchor,
        ),
    ),
}
"""Form of a box's numbers -> its meaning, and the box."""
FROM_CELLS = frozenset(FORMS) - {"xyxy", "xywh", "cxcywh"}
FROM_ANCHORS = ("yolov3", "yolov5", "deltas")


def overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes f64[n, 4] with boxes f64[m, 4]: f64[n, m]."""
    low = np.maximum(one[:, None, :2], others[None, :, :2])
    high = np.minimum(one[:, None, 2:], others[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) for b in (one, others)]
    either = areas[0][:, None] + areas[1][None] - both
    found: np.ndarray = both / np.maximum(either, 1e-12)
    return found


def suppressed(boxes: np.ndarray, classes: np.ndarray, most: float) -> np.ndarray:
    """Indices of the boxes, best first, that overlap no better one of their class by more than `most`."""
    left, kept = np.arange(len(boxes)), []
    while left.size:
        best, rest = left[0], left[1:]
        kept.append(best)
        near = (overlap(boxes[best : best + 1], boxes[rest])[0] > most) & (classes[rest] == classes[best])
        left = rest[~near]
    return np.array(kept, np.int64)

"""Average precision of detections, as COCO defines it: against labels, or against what the model finds in f32.

Detections of a class, best first, take the unmatched true box of their image that they overlap most, if they do so by
the threshold at least. Average precision is the mean, over 101 recalls, of the best precision at that recall or beyond;
it is averaged over classes that have true boxes, and for AP over thresholds of 0.5 to 0.95.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppuc.compiler.metrics.base import ByLabels, Sample, classes_of, metric, numbered, numbers_of
from ppuc.compiler.metrics.boxes import overlap
from ppuc.compiler.metrics.detections import Boxes, Detections
from ppuc.ir.errors import UsageError

THRESHOLDS = {"AP50": (0.5,), "AP75": (0.75,), "AP": tuple(0.5 + 0.05 * i for i in range(10))}
RECALLS = np.linspace(0, 1, 101)


@metric("ap")
@dataclass(frozen=True, slots=True)
class AveragePrecision(ByLabels):
    """Average precision of a detector's boxes, which `boxes` describes: at an overlap of 0.5, of 0.75, or the mean over
    0.5 to 0.95. The truth are two arrays in the data, `labels`: boxes [boxes, 4] as x0, y0, x1, y1 in pixels of the
    input, and their class numbers, of which negative ones pad; or else what the model finds in f32 with a score of
    `sure` at least."""

    boxes: Boxes
    measure: Literal["AP50", "AP75", "AP"] = "AP50"
    labels: tuple[str, ...] = ()
    sure: float = 0.3

    def __post_init__(self) -> None:
        if len(self.labels) not in (0, 2):
            raise UsageError.of("ap", "'labels' are two arrays", got=list(self.labels), expected='["boxes", "classes"]')

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        found: list[Detections] = []
        truth: list[Detections] = []
        for number, (output, sample, reference) in numbered(outputs, samples, exact):
            mine = self.boxes.found(output)
            found += mine
            if self.labels:
                truth += _labelled(sample, self.labels, len(mine), number)
            else:
                truth += [image.above(self.sure) for image in self.boxes.found(reference)]
        if not any(len(t.boxes) for t in truth):
            what = (
                "the data's labels hold no boxes" if self.labels else f"the model finds nothing of score {self.sure:g}"
            )
            raise UsageError.of("ap", what, hint=None if self.labels else "`sure` is the least score of a true box")
        return average_precision(found, truth, THRESHOLDS[self.measure])


def _labelled(sample: Sample, names: Sequence[str], images: int, number: int) -> list[Detections]:
    boxes, classes = numbers_of(sample, names[0], "ap"), classes_of(sample, names[1], "ap")
    if boxes.size != 4 * classes.size or classes.size % images:
        what = f"the labels of sample {number} are not a class for each box of {images} images"
        raise UsageError.of("ap", what, got=f"{list(boxes.shape)} and {list(classes.shape)}")
    found = []
    for own, of in zip(boxes.reshape(images, -1, 4), classes.reshape(images, -1), strict=True):
        keep = of >= 0
        found.append(Detections(own[keep].astype(np.float64), np.ones(int(keep.sum())), of[keep]))
    return found


def average_precision(found: Sequence[Detections], truth: Sequence[Detections], thresholds: Sequence[float]) -> float:
    """The average precision of `found` against `truth`, an entry an image, over classes and `thresholds`."""
    classes = sorted({int(c) for t in truth for c in t.classes})
    return float(np.mean([_of_class(found, truth, number, thresholds) for number in classes]))


def _of_class(
    found: Sequence[Detections], truth: Sequence[Detections], number: int, thresholds: Sequence[float]
) -> float:
    hits, scores, true = [], [], 0
    for mine, image in zip(found, truth, strict=True):
        own, wanted = mine.classes == number, image.classes == number
        true += int(wanted.sum())
        scores.append(mine.scores[own])
        shared = overlap(mine.boxes[own], image.boxes[wanted])
        hits.append(np.stack([_matched(shared, t) for t in thresholds]))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return float(np.mean([_precision(row[order], true) for row in np.concatenate(hits, 1)]))


def _matched(shared: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each detection, best first, matches a true box of its own; `shared` f64[detections, true boxes]."""
    free = np.ones(shared.shape[1], bool)
    hits = np.zeros(len(shared), bool)
    for i, row in enumerate(shared):
        left = np.where(free, row, -1.0)
        if left.size and left.max() >= threshold:
            hits[i], free[left.argmax()] = True, False
    return hits


def _precision(hits: np.ndarray, true: int) -> float:
    right = np.cumsum(hits)
    recall, precision = right / true, right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS - 1e-12, side="left")
    return float(np.where(at < len(best), best[np.minimum(at, len(best) - 1)], 0.0).mean()) if len(hits) else 0.0

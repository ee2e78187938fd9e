"""Metrics of classes: top-k, and the intersection over union of segmentation maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.metrics.base import ByLabels, Sample, check_axis, classes_of, metric, numbered, output_of
from ppuc.ir.errors import UsageError


@metric("top-k")
@dataclass(frozen=True, slots=True)
class TopK(ByLabels):
    """The share of rows whose true class is among the `k` largest scores along `axis`; of equal scores the first counts
    as the larger one, and NaN as larger than any. The truth is an array of class numbers in the data, `labels`, or else
    the largest score of the model in f32."""

    k: int = 1
    output: str = ""
    axis: int = -1
    labels: str = ""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError.of("top-k", "'k' is at least 1", got=self.k)

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        right = total = 0
        for number, (output, sample, reference) in numbered(outputs, samples, exact):
            scores = output_of(output, self.output, "top-k")
            check_axis(scores, self.axis, "top-k")
            scores = np.moveaxis(scores, self.axis, -1)
            if self.labels:
                true = classes_of(sample, self.labels, "top-k")
            else:
                true = np.moveaxis(output_of(reference, self.output, "top-k"), self.axis, -1).argmax(-1)
            classes = scores.shape[-1]
            scores, true = scores.reshape(-1, classes), true.reshape(-1)
            if len(true) != len(scores):
                what = f"sample {number} has {len(true)} labels for {len(scores)} rows of scores"
                raise UsageError.of("top-k", what, hint="`axis` is the axis of the classes")
            if true.size and not (true.min() >= 0 and true.max() < classes):
                what = f"a label of sample {number} is not one of the {classes} classes"
                raise UsageError.of("top-k", what, got=f"{true.min()} to {true.max()}")
            own = np.take_along_axis(scores, true[:, None], 1)
            before = ~(scores <= own) | ((scores == own) & (np.arange(classes) < true[:, None]))
            right += int((before.sum(1) < self.k).sum())
            total += len(true)
        return right / max(total, 1)


@metric("miou")
@dataclass(frozen=True, slots=True)
class MeanIou(ByLabels):
    """The mean over classes of intersection over union, over the pixels of all samples. `axis` is that of the classes;
    one class is decided at `threshold`, and maps of integers are taken as they are. The truth is a map of class numbers
    in the data, `labels`, whose pixels of class `ignore` or of a negative one do not count, or else that of the model
    in f32. Classes that occur neither in the truth nor in the result do not count. A pixel with a NaN is of no
    class."""

    output: str = ""
    axis: int = 1
    labels: str = ""
    ignore: int = 255
    threshold: float = 0.5

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        counts: dict[int, np.ndarray] = {}
        for number, (output, sample, reference) in numbered(outputs, samples, exact):
            mine = self._classes(output)
            true = classes_of(sample, self.labels, "miou") if self.labels else self._classes(reference)
            if true.size != mine.size:
                what = f"the labels of sample {number} do not have the shape of the output's map"
                raise UsageError.of("miou", what, got=true.shape, expected=mine.shape)
            mine, true = mine.reshape(-1).astype(np.int64), true.reshape(-1).astype(np.int64)
            counted = (true != self.ignore) & (true >= 0) if self.labels else np.ones(true.shape, bool)
            mine, true = mine[counted], true[counted]
            for value in np.unique(np.concatenate([mine[mine >= 0], true[true >= 0]])):
                both = np.array([((mine == value) & (true == value)).sum(), ((mine == value) | (true == value)).sum()])
                counts[int(value)] = counts.get(int(value), 0) + both
        return float(np.mean([both / either for both, either in counts.values()])) if counts else 1.0

    def _classes(self, sample: Sample) -> np.ndarray:
        scores = output_of(sample, self.output, "miou")
        if scores.dtype.kind in "biu":
            return scores
        check_axis(scores, self.axis, "miou")
        single = scores.shape[self.axis] == 1
        found = (scores > self.threshold).any(self.axis) if single else scores.argmax(self.axis)
        return np.where(np.isnan(scores).any(self.axis), -1, found)

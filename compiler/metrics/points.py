"""Metrics of points: keypoints of bodies and faces, and points of lanes on rows of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppuc.compiler.metrics.base import ByLabels, Sample, check_axis, metric, numbered, numbers_of, output_of
from ppuc.ir.errors import UsageError


@metric("keypoints")
@dataclass(frozen=True, slots=True)
class Keypoints(ByLabels):
    """Keypoints: the share within `within` pixels of the truth (`pck`), or minus the mean distance in pixels
    (`pixels`). The output is heatmaps [N, points, H, W], whose largest elements count, or coordinates x and y:
    [N, points, 2 or more] or [N, 2 * points]. Both are multiplied by `scale`. The truth is an array [points, 2 or more]
    a row in the data, `labels`, in pixels, points with a NaN or a negative coordinate being unseen; or else the model
    in f32."""

    measure: Literal["pck", "pixels"] = "pck"
    within: float = 5.0
    output: str = ""
    scale: float = 1.0
    labels: str = ""

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        distances = []
        for number, (output, sample, reference) in numbered(outputs, samples, exact):
            mine = self._points(output)
            if self.labels:
                true = numbers_of(sample, self.labels, "keypoints").astype(np.float64)
                if true.ndim > 1 and true.size == math.prod(mine.shape[:2]) * true.shape[-1]:
                    true = true.reshape(*mine.shape[:2], -1)[..., :2]
                seen = ~(np.isnan(true) | (true < 0)).any(-1)
            else:
                true = self._points(reference)
                seen = np.ones(true.shape[:2], bool)
            if true.shape != mine.shape:
                what = f"the labels of sample {number} are not the output's points"
                raise UsageError.of("keypoints", what, got=true.shape, expected=mine.shape)
            distances.append(np.linalg.norm(mine - true, axis=-1)[seen])
        far = np.concatenate(distances)
        if not far.size:
            return 1.0 if self.measure == "pck" else 0.0
        return float((far <= self.within).mean() if self.measure == "pck" else -far.mean())

    def _points(self, sample: Sample) -> np.ndarray:
        """f64[N, points, 2]"""
        array = output_of(sample, self.output, "keypoints").astype(np.float64)
        if array.ndim == 4:
            heat = array.reshape(*array.shape[:2], -1)
            at = np.where(np.isnan(heat).any(-1), np.nan, heat.argmax(-1))
            return np.stack([at % array.shape[3], at // array.shape[3]], -1) * self.scale
        if array.ndim == 3 and array.shape[2] >= 2:
            return array[..., :2] * self.scale
        if array.ndim == 2 and array.shape[1] % 2 == 0:
            return array.reshape(len(array), -1, 2) * self.scale
        what = "the output is neither heatmaps nor coordinates"
        raise UsageError.of("keypoints", what, got=list(array.shape), expected="[N, points, H, W], [N, points, 2]")


@metric("lanes")
@dataclass(frozen=True, slots=True)
class Lanes(ByLabels):
    """Lanes: the share of the truth's points that are found within `within` pixels. `points`: the output holds an x for
    each row of an image, absent where negative or NaN. `cells`: the output holds scores of the cells of each row along
    `axis`, the last cell meaning absent (`absent`), and a point lies at the mean of the cells by likelihood. Both are
    multiplied by `scale`, the pixels in a cell. The truth is an array of x in the data, `labels`, in pixels, or else
    the model in f32."""

    within: float = 5.0
    form: Literal["cells", "points"] = "cells"
    output: str = ""
    axis: int = 1
    absent: bool = True
    scale: float = 1.0
    labels: str = ""

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        found = total = 0
        for number, (output, sample, reference) in numbered(outputs, samples, exact):
            mine = self._points(output)
            true = numbers_of(sample, self.labels, "lanes").astype(float) if self.labels else self._points(reference)
            if true.size != mine.size:
                what = f"the labels of sample {number} are not the output's points"
                raise UsageError.of("lanes", what, got=true.shape, expected=mine.shape)
            true = np.where(true < 0, np.nan, true).reshape(mine.shape)
            found += int((np.abs(mine - true) <= self.within).sum())
            total += int((~np.isnan(true)).sum())
        return found / total if total else 1.0

    def _points(self, sample: Sample) -> np.ndarray:
        """x in pixels; NaN where absent."""
        array = output_of(sample, self.output, "lanes").astype(np.float64)
        if self.form == "points":
            return np.where(array < 0, np.nan, array) * self.scale
        check_axis(array, self.axis, "lanes")
        scores = np.moveaxis(array, self.axis, -1)
        cells = scores[..., :-1] if self.absent else scores
        if not cells.shape[-1]:
            raise UsageError.of("lanes", f"the output has no cells along axis {self.axis}", got=list(array.shape))
        likely = np.exp(cells - cells.max(-1, keepdims=True))
        x = (likely * np.arange(cells.shape[-1])).sum(-1) / likely.sum(-1) * self.scale
        missing = scores.argmax(-1) == cells.shape[-1]
        return np.where(missing, np.nan, x)

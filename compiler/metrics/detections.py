"""Detections in the outputs of a detector, as a declaration says.

Outputs are brought into one form: a row a candidate, in the order level, row, column, anchor, with the numbers of its
box, its objectness and its classes.

Invariant: detections are ordered by score, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppuc.compiler.metrics.base import Sample, output_of
from ppuc.compiler.metrics.boxes import FORMS, FROM_ANCHORS, FROM_CELLS, Cells, sigmoid, softmax, suppressed
from ppuc.ir.errors import UsageError

MOST_CANDIDATES = 2000
"""Of the highest scores, that non-maximum suppression looks at."""

WHERE = "boxes"
Activation = Literal["none", "sigmoid", "softmax"]
Shapes = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in an image, highest scores first: `boxes` f64[n, 4] as x0, y0, x1, y1, `scores` f64[n], `classes`
    i64[n]."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def above(self, score: float) -> Detections:
        """Those of at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])


_WANTED = {
    "outputs": "the outputs with boxes",
    "strides": "the stride of each level, in pixels",
    "variances": "two numbers, of centres and of sizes",
    "anchors": "a list of [width, height] for each stride",
    "size": "[rows, columns] of the input",
    "class_columns": "[first, behind the last], or outputs in 'scores'",
    "box_columns": "[first, behind the last]",
}


@dataclass(frozen=True, slots=True)
class Boxes:
    """How outputs hold boxes. `outputs` hold the boxes, one a level or one for all; `scores` and `objectness` are
    outputs likewise, or else columns of `outputs`: `box_columns` and `class_columns` from first to behind the last,
    `objectness_column`. Columns lie along `axis` (default: 1 of [N, columns, H, W], else the last). `class_numbers` is
    an output with the classes of boxes already chosen. `size` is that of the input, rows and columns; boxes are
    multiplied by it if `normalised`. `anchors` are lists of widths and heights, one list a level. A score is the
    activated class score, to the power `class_power`, times the objectness to its power. `background` is a class that
    stands for nothing. Boxes below `least_score` are dropped, and those that overlap a better one of their class by
    more than `nms` (0: none are); `most` are kept."""

    outputs: tuple[str, ...]
    form: Literal[
        "xyxy", "xywh", "cxcywh", "ltrb", "ltrb-pixels", "ltrb-exp", "dfl", "cxcywh-exp", "yolov3", "yolov5",
        "fastestdet", "deltas",
    ]  # fmt: skip
    scores: tuple[str, ...] = ()
    objectness: tuple[str, ...] = ()
    class_numbers: str = ""
    box_columns: tuple[int, ...] = ()
    class_columns: tuple[int, ...] = ()
    objectness_column: int = -1
    axis: int | None = None
    strides: tuple[float, ...] = ()
    size: tuple[int, ...] = ()
    centre: float = 0.5
    anchors: tuple[tuple[tuple[float, ...], ...], ...] = ()
    variances: tuple[float, ...] = (1.0, 1.0)
    normalised: bool = False
    activation: Activation = "none"
    objectness_activation: Activation = "none"
    class_power: float = 1.0
    objectness_power: float = 1.0
    background: int | None = None
    least_score: float = 0.01
    nms: float = 0.6
    most: int = 100

    def __post_init__(self) -> None:
        sized = bool(self.size) or self.normalised or self.form == "fastestdet"
        pairs = all(level and all(len(anchor) == 2 for anchor in level) for level in self.anchors)
        needed = {
            "outputs": not self.outputs,
            "strides": (self.form in FROM_CELLS and not self.strides) or any(stride <= 0 for stride in self.strides),
            "anchors": (self.form in FROM_ANCHORS and len(self.anchors) != len(self.strides)) or not pairs,
            "variances": len(self.variances) != 2,
            "size": sized and len(self.size) != 2,
            "class_columns": not self.scores and len(self.class_columns) != 2,
            "box_columns": (not self.scores or bool(self.box_columns)) and len(self.box_columns) != 2,
        }
        for key, missing in needed.items():
            if missing:
                raise UsageError.of(WHERE, f"form '{self.form}' needs '{key}'", expected=_WANTED[key])

    def found(self, sample: Sample) -> list[Detections]:
        """What the outputs of a sample hold, for each image in it. Raises UsageError where they do not fit the
        declaration."""
        single = output_of(sample, self.outputs[0], WHERE).ndim == 2
        rows, shapes = self._rows(sample, self.outputs, single)
        scores = self._rows(sample, self.scores, single)[0] if self.scores else self._columns(rows, "class_columns")
        boxes = self._columns(rows, "box_columns") if self.box_columns else rows
        columns = boxes.shape[2]
        if boxes.shape[:2] != scores.shape[:2]:
            what = f"the outputs hold {boxes.shape[1]} boxes and {scores.shape[1]} scores"
            raise UsageError.of(WHERE, what, hint="`axis` is the axis of columns")
        if not columns or columns % 4 or (self.form != "dfl" and columns != 4):
            wanted = "4 times the bins" if self.form == "dfl" else 4
            raise UsageError.of(WHERE, f"form '{self.form}' has other columns", got=columns, expected=wanted)
        scored = self._scored(scores, self._sure(sample, rows, single))
        numbers = scored.argmax(2)
        if self.class_numbers:
            numbers = output_of(sample, self.class_numbers, WHERE)
            if numbers.size != scored[..., 0].size:
                what = f"output '{self.class_numbers}' is not a class for each box"
                raise UsageError.of(WHERE, what, got=list(numbers.shape), expected=list(boxes.shape[:2]))
            numbers = numbers.reshape(boxes.shape[:2])
        cells = self._cells(shapes, boxes.shape[1])
        scale = np.tile(cells.size, 2) if self.normalised else 1.0
        best = scored.max(2)
        decoded = [FORMS[self.form][1](cells, own) * scale for own in boxes]
        return [self._chosen(*image) for image in zip(decoded, best, numbers, strict=True)]

    def _sure(self, sample: Sample, rows: np.ndarray, single: bool) -> np.ndarray | None:
        """f64[N, candidates]: the objectness, if there is one."""
        if self.objectness:
            found = self._rows(sample, self.objectness, single)[0]
            return found[..., 0]
        if self.objectness_column < 0:
            return None
        if self.objectness_column >= rows.shape[2]:
            raise self._outside("objectness_column", self.objectness_column, rows)
        return rows[..., self.objectness_column]

    def _columns(self, rows: np.ndarray, key: str) -> np.ndarray:
        """The columns of `outputs` that a parameter names. Raises UsageError if there are no such columns."""
        first, last = getattr(self, key)
        if not 0 <= first < last <= rows.shape[2]:
            raise self._outside(key, [first, last], rows)
        return rows[..., first:last]

    def _outside(self, key: str, got: object, rows: np.ndarray) -> Exception:
        what = f"the outputs have no such '{key}'"
        return UsageError.of(WHERE, what, got=got, expected=f"of {rows.shape[2]} columns")

    def _rows(self, sample: Sample, names: Sequence[str], single: bool) -> tuple[np.ndarray, Shapes]:
        """f64[N, candidates, columns] of the outputs of all levels, and the rows and columns of each level that an
        output's shape gives. A `single` image has no axis N."""
        parts, shapes = [], []
        for number, name in enumerate(names):
            array = output_of(sample, name, WHERE).astype(np.float64)
            array = array[None] if single else array
            array = array[..., None] if array.ndim == 2 else array
            if array.ndim not in (3, 4):
                raise UsageError.of(WHERE, f"output '{name}' has no rows of boxes", got=list(array.shape))
            axis = self.axis if self.axis is not None else 1 if array.ndim == 4 else 2
            if not -array.ndim <= axis < array.ndim:
                raise UsageError.of(WHERE, f"output '{name}' has no axis {axis}", got=list(array.shape))
            last = np.moveaxis(array, axis, -1)
            if array.ndim == 4:
                shapes.append(last.shape[1:3])
                each = len(self.anchors[number]) if number < len(self.anchors) else 1
                if last.shape[-1] % each:
                    raise UsageError.of(WHERE, f"'anchors' do not divide output '{name}'", got=list(array.shape))
                last = last.reshape(*last.shape[:3], each, -1)
            parts.append(last.reshape(last.shape[0], -1, last.shape[-1]))
        return np.concatenate(parts, 1), shapes

    def _cells(self, shapes: Sequence[tuple[int, ...]], count: int) -> Cells:
        size = np.array(self.size[::-1] or (0, 0), np.float64)
        if not self.strides:
            nothing = np.zeros((count, 2))
            return Cells(nothing, 0.0, nothing[:, :1], nothing, size, self.variances)
        if not shapes and not self.size:
            raise UsageError.of(
                WHERE, "the cells of outputs without rows and columns follow from the input's", expected="'size'"
            )
        cells, strides, anchors = [], [], []
        for level, stride in enumerate(self.strides):
            rows, columns = shapes[level] if level < len(shapes) else (int(-(-n // stride)) for n in self.size)
            own = np.array(self.anchors[level]).reshape(-1, 2) if self.anchors else np.zeros((1, 2))
            y, x, _ = np.meshgrid(np.arange(rows), np.arange(columns), np.arange(len(own)), indexing="ij")
            cells.append(np.stack([x.reshape(-1), y.reshape(-1)], 1))
            strides.append(np.full((x.size, 1), stride))
            anchors.append(np.tile(own, (rows * columns, 1)))
        cell = np.concatenate(cells).astype(np.float64)
        if len(cell) != count:
            what = f"the outputs hold {count} boxes, and 'size', 'strides' and 'anchors' make {len(cell)}"
            raise UsageError.of(WHERE, what, got=f"strides {list(self.strides)}, size {list(self.size)}")
        return Cells(cell, self.centre, np.concatenate(strides), np.concatenate(anchors), size, self.variances)

    def _scored(self, scores: np.ndarray, sure: np.ndarray | None) -> np.ndarray:
        """f64[N, candidates, classes]; the background's are 0."""
        found = _activated(scores, self.activation)
        if self.background is not None:
            if not -found.shape[2] <= self.background < found.shape[2]:
                what = f"'background' is not one of the {found.shape[2]} classes"
                raise UsageError.of(WHERE, what, got=self.background)
            found[..., self.background] = 0.0
        found = found**self.class_power if self.class_power != 1.0 else found
        if sure is None:
            return found
        objects = _activated(sure[..., None], self.objectness_activation)
        return found * (objects**self.objectness_power if self.objectness_power != 1.0 else objects)

    def _chosen(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Detections:
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.least_score][:MOST_CANDIDATES]
        if self.nms:
            order = order[suppressed(boxes[order], classes[order], self.nms)]
        order = order[: self.most]
        return Detections(boxes[order], scores[order], classes[order].astype(np.int64))


def _activated(scores: np.ndarray, how: str) -> np.ndarray:
    return sigmoid(scores) if how == "sigmoid" else softmax(scores) if how == "softmax" else np.array(scores)

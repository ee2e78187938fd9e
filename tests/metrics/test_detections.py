"""Decoding of detectors' outputs, and average precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ppuc.compiler.metrics.base import built
from ppuc.compiler.metrics.boxes import overlap, suppressed
from ppuc.compiler.metrics.detections import Boxes, Detections
from ppuc.compiler.metrics.precision import THRESHOLDS, average_precision
from ppuc.ir.errors import UsageError

BOX = np.array([20.0, 36.0, 52.0, 60.0])
"""The box that every form below spells: centre 36, 48, size 32 x 24; stride 16, so its cell is column 2, row 3."""


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def bins(distance: float) -> list[float]:
    """Logits over 8 bins whose mean is `distance`."""
    below = int(distance)
    share = distance - below
    return [
        0.0 if i not in (below, below + 1) else 60.0 + np.log(max(share if i > below else 1 - share, 1e-9))
        for i in range(8)
    ]


POINT = (40.0, 56.0)
DISTANCES = [(POINT[0] - 20) / 16, (POINT[1] - 36) / 16, (52 - POINT[0]) / 16, (60 - POINT[1]) / 16]
ANCHOR = {"anchors": [[[16, 48]]]}
FORMS: dict[str, tuple[list[float], dict[str, Any]]] = {
    "xyxy": ([20, 36, 52, 60], {}),
    "xywh": ([20, 36, 32, 24], {}),
    "cxcywh": ([36, 48, 32, 24], {}),
    "ltrb": (DISTANCES, {}),
    "ltrb-pixels": ([16 * d for d in DISTANCES], {}),
    "ltrb-exp": ([float(np.log(d)) for d in DISTANCES], {}),
    "dfl": ([b for d in DISTANCES for b in bins(d)], {}),
    "cxcywh-exp": ([0.25, 0.0, float(np.log(2)), float(np.log(1.5))], {}),
    "yolov3": ([logit(0.25), -80.0, float(np.log(2)), float(np.log(0.5))], ANCHOR),
    "yolov5": ([logit(0.375), logit(0.25), logit(2**0.5 / 2), logit(0.5**0.5 / 2)], ANCHOR),
    "fastestdet": ([float(np.arctanh(0.25)), 0.0, logit(32 / 96), logit(24 / 80)], {"size": [80, 96]}),
    "deltas": ([-4 / 16 / 0.1, -8 / 48 / 0.1, np.log(2) / 0.2, np.log(0.5) / 0.2], {**ANCHOR, "variances": [0.1, 0.2]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_spells_the_same_box(form: str) -> None:
    """A map of 5 x 6 cells of [box, objectness, two classes], of which one holds the box."""
    numbers, more = FORMS[form]
    width = len(numbers)
    head = np.full((1, width + 3, 5, 6), -60.0)
    head[0, :, 3, 2] = [*numbers, logit(0.8), logit(0.1), logit(0.5)]
    spec: dict[str, Any] = {"outputs": ["head"], "form": form, "strides": [16], "box_columns": [0, width]}
    spec |= {"objectness_column": width, "class_columns": [width + 1, width + 3]}
    spec |= {"activation": "sigmoid", "objectness_activation": "sigmoid", **more}
    made: Any = built("ap", {"boxes": spec}, "test")
    (found,) = made.boxes.found({"head": head})
    assert found.boxes.shape == (1, 4)
    np.testing.assert_allclose(found.boxes[0], BOX, atol=1e-4)
    assert found.scores[0] == pytest.approx(0.4)
    assert found.classes[0] == 1


def test_levels_may_lie_in_one_tensor_of_rows() -> None:
    """Levels of 2 x 3 and 1 x 2 cells (32 x 48 at strides 16 and 32, rounded up), columns on axis 1."""
    head = np.zeros((2, 5, 8))
    head[1, :, 7] = [0.5, 0.5, 0.5, 0.5, 0.9]
    spec = Boxes(
        ("head",), "ltrb", box_columns=(0, 4), class_columns=(4, 5), axis=1, strides=(16.0, 32.0), size=(32, 48)
    )
    nothing, found = spec.found({"head": head})
    assert not len(nothing.boxes)
    np.testing.assert_allclose(found.boxes, [[32, 0, 64, 32]])
    with pytest.raises(UsageError, match="hold 8 boxes, and 'size', 'strides' and 'anchors' make 6"):
        Boxes(
            ("head",), "ltrb", box_columns=(0, 4), class_columns=(4, 5), axis=1, strides=(16.0,), size=(32, 48)
        ).found({"head": head})


def test_anchors_are_outermost_in_channels() -> None:
    head = np.full((1, 2 * 5, 1, 1), -60.0)
    head[0, 5:, 0, 0] = [0.0, 0.0, 0.0, 0.0, 50.0]
    spec = Boxes(
        ("head",), "yolov3", box_columns=(0, 4), class_columns=(4, 5), strides=(8.0,), activation="sigmoid",
        anchors=(((2.0, 2.0), (6.0, 4.0)),),
    )  # fmt: skip
    (found,) = spec.found({"head": head})
    np.testing.assert_allclose(found.boxes, [[1, 2, 7, 6]])


def test_a_transformer_gives_shares_of_the_image_and_a_background() -> None:
    scores = np.array([[[5.0, 0, 0], [0, 5.0, 0], [0, 0, 9.0]]])
    boxes = np.array([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    spec = Boxes(
        ("boxes",), "cxcywh", ("scores",), normalised=True, size=(100, 200), activation="softmax", background=-1,
        nms=0.0, least_score=0.5,
    )  # fmt: skip
    (found,) = spec.found({"boxes": boxes, "scores": scores})
    np.testing.assert_allclose(found.boxes, [[80, 30, 120, 70]] * 2)
    assert list(found.classes) == [0, 1]


def test_boxes_already_chosen_have_class_numbers() -> None:
    outputs = {"b": np.array([[0, 0, 4, 4], [1, 1, 2, 2.0]]), "s": np.array([0.3, 0.9]), "l": np.array([7, 5])}
    (found,) = Boxes(("b",), "xyxy", ("s",), class_numbers="l").found(outputs)
    assert list(found.classes) == [5, 7]
    assert list(found.scores) == [0.9, 0.3]


def test_overlapping_boxes_of_a_class_are_suppressed() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 0, 30, 10.0]])
    assert list(suppressed(boxes, np.array([0, 0, 1, 0]), 0.6)) == [0, 2, 3]
    assert overlap(boxes[:1], boxes)[0] == pytest.approx([1, 90 / 110, 1, 0])


def detections(*rows: tuple[float, int, float]) -> Detections:
    """Boxes of 10 x 10, moved right by the first number; classes and scores."""
    order = sorted(rows, key=lambda row: -row[2])
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in order], float).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, _, s in order]), np.array([c for _, c, _ in order], int))


def test_average_precision() -> None:
    """Of two true boxes one is found, after a false one: precision 1/2 up to recall 1/2, 51 of 101 recalls."""
    truth = [detections((0, 0, 1.0), (50, 0, 1.0))]
    found = [detections((200, 0, 0.9), (1, 0, 0.8))]
    assert average_precision(found, truth, (0.5,)) == pytest.approx(0.5 * 51 / 101)
    assert average_precision(truth, truth, THRESHOLDS["AP"]) == 1.0
    # A move by one pixel overlaps by 9/11: it counts at 0.5 to 0.8, seven of ten thresholds.
    moved = [detections((1, 0, 0.9), (51, 0, 0.8))]
    assert average_precision(moved, truth, THRESHOLDS["AP"]) == pytest.approx(0.7)
    # A second detection of the same box is false; another class without truth does not count.
    twice = [detections((0, 0, 0.9), (1, 0, 0.8), (50, 0, 0.7), (0, 3, 0.9))]
    assert average_precision(twice, truth, (0.5,)) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_against_f32_and_against_labels() -> None:
    exact = {"b": np.array([[[0, 0, 10, 10], [50, 0, 60, 10.0]]]), "s": np.array([[[0.9], [0.2]]])}
    worse = {"b": exact["b"] + [100.0, 0, 100, 0], "s": exact["s"]}
    spec = {"outputs": "b", "form": "xyxy", "scores": "s"}
    own = built("ap", {"boxes": spec}, "test")
    assert own([exact], [{}], [exact]) == 1.0
    assert own([worse], [{}], [exact]) == 0.0
    labels = {"t": np.array([[0, 0, 10, 10], [100, 0, 110, 10], [0, 0, 0, 0.0]]), "c": np.array([0, 0, -1])}
    labelled = built("ap", {"boxes": spec, "labels": ["t", "c"]}, "test")
    assert labelled([exact], [labels], [exact]) == pytest.approx(51 / 101)
    with pytest.raises(UsageError, match="finds nothing of score"):
        built("ap", {"boxes": spec, "sure": 0.95}, "test")([exact], [{}], [exact])


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"outputs": "b", "form": "ltrb", "scores": "s"}, "boxes: form 'ltrb' needs 'strides'"),
        ({"outputs": "b", "form": "yolov5", "scores": "s", "strides": [8]}, "boxes: form 'yolov5' needs 'anchors'"),
        ({"outputs": "b", "form": "xyxy"}, "boxes: form 'xyxy' needs 'class_columns'"),
        ({"outputs": "b", "form": "xyxy", "scores": "s", "normalised": True}, "boxes: form 'xyxy' needs 'size'"),
        ({"outputs": [], "form": "xyxy", "scores": "s"}, "boxes: form 'xyxy' needs 'outputs'"),
        ({"outputs": "b", "form": "ltrb", "scores": "s", "strides": [0]}, "boxes: form 'ltrb' needs 'strides'"),
        (
            {"outputs": "b", "form": "yolov5", "scores": "s", "strides": [8], "anchors": [[[1, 2, 3]]]},
            "boxes: form 'yolov5' needs 'anchors'\n  expected: a list of [width, height] for each stride",
        ),
        ({"outputs": "b", "form": "xyxy", "scores": "s", "variances": 0.1}, "boxes: form 'xyxy' needs 'variances'"),
        ({"outputs": "b", "form": "xyx"}, "test: 'form': has the wrong type\n  got: 'xyx'\n  expected: xyxy or xywh"),
        ({"outputs": "b", "frm": "xyxy"}, "test: 'boxes' has no parameter 'frm'"),
        ({"form": "xyxy", "scores": "s"}, "test: 'boxes' needs 'outputs'"),
    ],
)
def test_a_declaration_that_lacks_something(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        built("ap", {"boxes": spec}, "test")
    assert str(caught.value).startswith(text)


def test_outputs_that_do_not_fit_are_named() -> None:
    spec = Boxes(("boxes",), "xyxy", ("scores",))
    outputs = {"boxes": np.zeros((1, 9, 4)), "scores": np.zeros((1, 8, 3))}
    with pytest.raises(UsageError, match="hold 9 boxes and 8 scores"):
        spec.found(outputs)
    with pytest.raises(UsageError, match=r"no output 'scores'\n  expected: boxes, score\n  hint: did you mean 'score'"):
        spec.found({"boxes": np.zeros((1, 9, 4)), "score": np.zeros((1, 9, 3))})
    with pytest.raises(UsageError, match=r"form 'xyxy' has other columns\n  got: 5\n  expected: 4"):
        spec.found({"boxes": np.zeros((1, 9, 5)), "scores": np.zeros((1, 9, 3))})
    rows = {"boxes": np.zeros((1, 9, 6)), "numbers": np.zeros((1, 8))}

    def refused(message: str, **given: Any) -> None:
        with pytest.raises(UsageError, match=message):
            Boxes(("boxes",), "xyxy", box_columns=(0, 4), **{"class_columns": (4, 6), **given}).found(rows)

    refused(r"no such 'class_columns'\n  got: \[4, 7\]\n  expected: of 6 columns", class_columns=(4, 7))
    refused("no such 'objectness_column'", objectness_column=6)
    refused("'background' is not one of the 2 classes", background=2)
    refused("'numbers' is not a class for each box", class_numbers="numbers")

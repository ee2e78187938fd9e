"""Metrics of classes, points and texts, and how `--metric` names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppuc.compiler.metrics.base import built
from ppuc.compiler.metrics.choose import chosen_metric, value_of
from ppuc.compiler.metrics.text import distance
from ppuc.ir.errors import UsageError

NONE: list[dict[str, np.ndarray]] = [{}]


def figure(name: str, output: Any, exact: Any = None, labels: Any = None, **given: Any) -> float:
    """A metric of one sample with one output `y`, and labels `t`."""
    sample = [] if labels is None else [("t", np.array(labels))]
    given = {**given, **({"labels": "t"} if sample else {})}
    return built(name, given, "test")([{"y": np.array(output)}], [dict(sample)], [{"y": np.array(exact)}])


def test_top_k() -> None:
    scores = [[0.1, 0.5, 0.4], [0.6, 0.1, 0.3], [0.2, 0.3, 0.5]]
    assert figure("top-k", scores, labels=[1, 2, 0]) == pytest.approx(1 / 3)
    assert figure("top-k", scores, labels=[1, 2, 0], k=2) == pytest.approx(2 / 3)
    assert figure("top-k", scores, exact=np.eye(3)) == pytest.approx(1 / 3)
    assert figure("top-k", np.transpose(scores), labels=[1, 2, 0], axis=0) == pytest.approx(1 / 3)
    # Equal scores do not all come first, and NaN is no likely class.
    assert figure("top-k", np.zeros((3, 3)), labels=[0, 1, 2]) == pytest.approx(1 / 3)
    assert figure("top-k", np.zeros((3, 3)), labels=[0, 1, 2], k=2) == pytest.approx(2 / 3)
    assert figure("top-k", np.full((3, 3), np.nan), labels=[0, 1, 2]) == 0.0
    assert figure("top-k", [[np.nan, 1.0, 0.0]], labels=[1]) == 0.0
    with pytest.raises(UsageError, match="sample 0 has 2 labels for 3 rows"):
        figure("top-k", scores, labels=[1, 2])
    with pytest.raises(UsageError, match="not one of the 3 classes"):
        figure("top-k", scores, labels=[1, 2, 3])
    with pytest.raises(UsageError, match="'k' is at least 1"):
        figure("top-k", scores, labels=[1, 2, 0], k=0)


def test_mean_iou() -> None:
    """Classes 0: 2 of 3, 1: 1 of 2; the ignored pixel counts nowhere."""
    scores = np.zeros((1, 3, 1, 5), np.float32)
    for pixel, found in enumerate([0, 0, 1, 0, 2]):
        scores[0, found, 0, pixel] = 1
    assert figure("miou", scores, labels=[[[0, 0, 1, 1, 255]]]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figure("miou", scores, exact=scores) == 1.0
    assert figure("miou", np.array([[0, 1, 1]]), labels=[[0, 1, 0]]) == pytest.approx(0.5)
    mask = np.array([[[[0.6, 0.4]]]], np.float32)
    assert figure("miou", mask, labels=[[[1, 1]]]) == pytest.approx(0.25)
    padded = [[[0, 0, 1, -1, -1]]]
    assert figure("miou", scores, labels=padded) == figure("miou", scores[..., :3], labels=[[[0, 0, 1]]]) == 1.0
    assert figure("miou", np.full((1, 2, 1, 2), np.nan), labels=[[[0, 0]]]) == 0.0
    with pytest.raises(UsageError, match="labels of sample 0 do not have the shape"):
        figure("miou", scores, labels=[[0, 0]])


def test_keypoints() -> None:
    heat = np.zeros((1, 2, 4, 6))
    heat[0, 0, 1, 5] = heat[0, 1, 3, 0] = 1  # x 5, y 1 and x 0, y 3; four pixels a cell
    true = [[[20.0, 4.0], [3.0, 16.0]]]
    assert figure("keypoints", heat, labels=true, scale=4.0) == 1.0
    assert figure("keypoints", heat, labels=true, scale=4.0, within=4.0) == 0.5
    assert figure("keypoints", heat, labels=true, scale=4.0, measure="pixels") == pytest.approx(-2.5)
    unseen = [[[20.0, 4.0], [-1.0, -1.0]]]
    assert figure("keypoints", heat, labels=unseen, scale=4.0, within=0.0) == 1.0
    heat[0, 0, 2, 2] = np.nan
    assert figure("keypoints", heat, labels=true, scale=4.0) == 0.5
    flat = [[1.0, 2.0, 3.0, 4.0]]
    assert figure("keypoints", flat, exact=[[1.0, 2.0, 13.0, 4.0]]) == 0.5


def test_lanes() -> None:
    """Four rows of one lane over cells 0 to 3, the fifth meaning absent, at 8 pixels a cell."""
    scores = np.full((1, 5, 4, 1), -90.0)
    for row, cell in enumerate([1, 3, 4, 0]):
        scores[0, cell, row, 0] = 0.0
    assert figure("lanes", scores, labels=[[[8.0], [27.0], [16.0], [-2.0]]], scale=8.0) == pytest.approx(2 / 3)
    assert figure("lanes", scores, labels=[[[8.0], [27.0], [16.0], [-2.0]]], scale=8.0, within=2.0) == pytest.approx(
        1 / 3
    )
    assert figure("lanes", scores, exact=scores) == 1.0
    assert figure("lanes", [[3.0, -1.0]], exact=[[5.0, 7.0]], form="points") == 0.5


def test_ctc(tmp_path: Path) -> None:
    """Steps a a - b b, blank 0: "ab"."""
    scores = np.eye(4)[[1, 1, 0, 2, 2, 0, 3, 1]][None]
    alphabet = tmp_path / "letters.txt"
    alphabet.write_text("a\nb\n")
    given: dict[str, Any] = {"alphabet": str(alphabet), "space": True}
    assert figure("ctc", scores, labels=["ab a"], measure="lines", **given) == 1.0
    assert figure("ctc", scores, labels=["ab b"], **given) == pytest.approx(0.75)
    assert figure("ctc", scores, labels=["ab b"], measure="wer", **given) == pytest.approx(0.5)
    assert figure("ctc", scores.transpose(1, 0, 2), exact=scores.transpose(1, 0, 2), time_major=True) == 1.0
    other = np.eye(4)[[1, 1, 0, 2, 2, 0, 3, 2]][None]
    assert figure("ctc", scores, exact=other) == pytest.approx(0.75)
    assert figure("ctc", scores, exact=other, measure="wer", separator=3) == pytest.approx(0.5)
    assert figure("ctc", scores, labels=[[b"ab a"]], measure="lines", **given) == 1.0
    alphabet.write_text("a\nb\n\u2028\n", encoding="utf-8")
    assert figure("ctc", scores, labels=["ab\u2028a"], measure="lines", alphabet=str(alphabet)) == 1.0
    with pytest.raises(UsageError, match="'blank' is not one of the 4 classes"):
        figure("ctc", scores, labels=["a"], alphabet=str(alphabet), blank=4)
    alphabet.write_text("a\nb\n")
    with pytest.raises(UsageError, match="the output has 4 classes, the alphabet 3 with the blank"):
        figure("ctc", scores, labels=["a"], alphabet=str(alphabet))
    with pytest.raises(UsageError, match="labels are texts\n  expected: 'alphabet'"):
        figure("ctc", scores, labels=["a"])


@pytest.mark.parametrize(
    ("name", "output", "labels", "given", "message"),
    [
        ("top-k", [[1.0, 2.0]], [1], {"axis": 2}, "top-k: the output has no axis 2"),
        ("top-k", 1.0, [1], {}, "top-k: the output has no axis -1"),
        ("top-k", [[1.0, 2.0]], ["cat"], {}, "top-k: the labels 't' are not numbers\n  got: cat"),
        ("top-k", [[1.0, 2.0]], [0.5], {}, "top-k: the labels 't' are not class numbers\n  got: 0.5"),
        ("miou", [[[1.0], [2.0]]], [["a"]], {}, "miou: the labels 't' are not numbers"),
        ("keypoints", [[[1.0, 2.0]]], [1.0, 2.0, 3.0], {}, "keypoints: the labels of sample 0 are not the output's"),
        ("keypoints", [[[1.0, 2.0]]], [[1.0, 2.0], [1.0, 2.0]], {}, "keypoints: the labels of sample 0 are not the"),
        ("lanes", [[[1.0]]], [[1.0]], {}, "lanes: the output has no cells along axis 1"),
    ],
)
def test_outputs_and_labels_that_do_not_fit(
    name: str, output: Any, labels: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        figure(name, output, labels=labels, **given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("one", "other", "edits"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
)
def test_edit_distance(one: str, other: str, edits: int) -> None:
    assert distance(one, other) == distance(other, one) == edits


def test_metrics_are_named_with_parameters(tmp_path: Path) -> None:
    assert chosen_metric("top-k,k=5,output=logits") == built("top-k", {"k": 5, "output": "logits"}, "")
    (tmp_path / "abc.txt").write_text("a\n")
    (tmp_path / "m.toml").write_text('metric = "ctc"\nmeasure = "wer"\nalphabet = "abc.txt"\n')
    assert chosen_metric(str(tmp_path / "m.toml")) == built(
        "ctc", {"measure": "wer", "alphabet": str(tmp_path / "abc.txt")}, ""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk", "--metric: there is no metric 'topk'\n  expected: ap, ctc, keypoints, lanes, miou, top-k"),
        ("top-k,n=5", "--metric: 'top-k' has no parameter 'n'\n  expected: k, output, axis, labels"),
        ("top-k,k=many", "--metric: 'k': has the wrong type\n  got: 'many'\n  expected: integer"),
        ("top-k,k", "--metric: 'k' is not of the form KEY=VALUE"),
        ("ap", "--metric: 'ap' needs 'boxes'\n  expected: a table"),
        (
            "ctc,measure=words",
            "--metric: 'measure': has the wrong type\n  got: 'words'\n  expected: lines or cer or wer",
        ),
        ("none.py", "none.py: cannot be read as a Python file"),
    ],
)
def test_mistakes_in_names_and_parameters(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_metric(text)
    assert str(caught.value).startswith(message)


def test_a_python_function_that_fails_names_the_sample(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "def one(output):\n    return 1 / output['y'].sum()\n\n"
        "def metric(outputs, inputs):\n    return sum(one(o) for o in outputs)\n"
    )
    outputs = [{"y": np.ones(2)}, {"y": np.ones(2)}, {"y": "nothing"}, {"y": np.ones(2)}]
    with pytest.raises(UsageError) as caught:
        value_of(chosen_metric(str(file)), outputs, 4 * NONE, outputs)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith(f"--metric {file}: fails on sample 2\n  got: AttributeError: 'str' object")
    assert f"{file}, line 2, in one: return 1 / output['y'].sum()" in text
    assert f"{file}, line 5, in metric" in text
    file.write_text("def metric(outputs, inputs):\n    assert len(outputs) < 2\n    return 1.0\n")
    with pytest.raises(UsageError, match="fails on the samples together, on none alone"):
        value_of(chosen_metric(str(file)), outputs, 4 * NONE, outputs)  # type: ignore[arg-type]
    file.write_text("def metric(outputs, inputs):\n    return float('nan')\n")
    with pytest.raises(UsageError, match="gives no finite number"):
        value_of(chosen_metric(str(file)), outputs, 4 * NONE, outputs)  # type: ignore[arg-type]

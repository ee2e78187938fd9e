"""Labelled data for models, and metrics of the models' tasks.

A folder NAME contains model.onnx, sample.npz (one sample of each input), eval.npz (stacked samples by input name, and
labels) and, if the metric needs it, meta.json: `task.type`, `task.output` and the model's `outputs`.

Invariant: a metric is between 0 and 1, larger is better, and depends only on the outputs, the labels and, for tasks
without labels, the outputs of the model in f32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Sample = dict[str, np.ndarray]
Outputs = Sequence[Mapping[str, np.ndarray]]
"""Outputs by ONNX name, one dict per sample."""


@dataclass(frozen=True, slots=True)
class Run:
    """The data of a metric: the `outputs` of one tensor, one row per sample, those of the model in f32 (`wanted`), and
    the `labels` of the same samples, including labels that are not per sample."""

    outputs: np.ndarray
    wanted: np.ndarray
    labels: Mapping[str, np.ndarray]


def _top1(run: Run) -> float:
    return _share(run.outputs.argmax(-1) == run.labels["y"])


def _kept(run: Run) -> float:
    return _share(run.outputs.argmax(-1) == run.wanted.argmax(-1))


def _named(run: Run) -> float:
    return _share(run.labels["labels"][run.outputs.argmax(-1)] == run.labels["label"])


def _lines(run: Run) -> float:
    """The share of lines of text read without an error: greedy CTC decoding, the most probable symbol at each position
    without repetitions and blanks."""
    symbols = run.labels["chars"]

    def read(ids: np.ndarray) -> str:
        changed = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        return "".join(str(symbols[i - 1]) for i in changed if 0 < i <= len(symbols))

    return _share(
        [read(row.argmax(-1)) == str(text) for row, text in zip(run.outputs, run.labels["text"], strict=True)]
    )


def _lines_found(run: Run, least: float = 0.3) -> float:
    """The share of lines of text with a mean probability of at least 0.3 along their centre."""
    found = []
    for probability, mask in zip(run.outputs[:, 0], run.labels["mask"], strict=True):
        for line in range(1, int(mask.max()) + 1):
            ys, xs = np.nonzero(mask == line)
            found.append(probability[(ys.min() + ys.max()) // 2, xs.min() : xs.max()].mean() > least)
    return _share(found)


def _triplets(run: Run) -> float:
    """The share of sentence triplets in which the first is nearer to the second than to the third."""
    first, second, third = run.outputs.reshape(-1, 3, run.outputs.shape[-1]).swapaxes(0, 1)
    return _share((first * second).sum(-1) > (first * third).sum(-1))


def _pitch(run: Run, cents: float = 50.0) -> float:
    """The share of pitches within 50 cents; bins are 20 cents wide, from 31.7 Hz (Kim et al., "CREPE", 2018)."""
    hertz = 10 * 2 ** ((run.outputs.argmax(-1) * 20 + 1997.3794084376191) / 1200)
    return _share(np.abs(1200 * np.log2(hertz / run.labels["f0"])) < cents)


def _notes(run: Run) -> float:
    """The share of notes among the two most probable of a piano's 88, the lowest of which is 21."""
    loudest = np.argsort(-run.outputs.mean(1), -1)[:, :2] + 21
    return _share([n in own for own, notes in zip(loudest, run.labels["notes"], strict=True) for n in notes])


def _share(right: Any) -> float:
    return float(np.mean(right))


FIGURES: Mapping[str, Callable[[Run], float]] = {
    "argmax": _top1,
    "topk": _kept,
    "label": _named,
    "ctc_text": _lines,
    "text_mask": _lines_found,
    "triplet": _triplets,
    "crepe": _pitch,
    "notes": _notes,
}
"""Type of task -> its metric."""
TOGETHER = {"triplet": 3}
"""Number of consecutive samples that belong together, by type of task."""
OUTPUT = {"notes": "StatefulPartitionedCall:1"}
"""The output that the metric reads, if it is not the first and the task does not name it."""


@dataclass(frozen=True, slots=True)
class Task:
    """`seen` are samples for calibration, `held` the held-out samples with their `labels`; `type` is None if there is
    no metric."""

    seen: Sequence[Sample]
    held: Sequence[Sample]
    labels: Mapping[str, np.ndarray]
    type: str | None
    output: str | None

    def figure(self, outputs: Outputs, wanted: Outputs) -> float:
        """The task metric of `outputs` on the held-out samples."""
        name = self.output if self.output in outputs[0] else next(iter(outputs[0]))
        both = (np.concatenate([o[name] for o in every]) for every in (outputs, wanted))
        assert self.type is not None
        return FIGURES[self.type](Run(*both, self.labels))


def task_of(folder: Path) -> Task:
    """The task in a folder. Every second sample (or group of samples that belong together) is for calibration, unless
    eval.npz has calibration samples, `calib`."""
    stacked, single = (dict(np.load(folder / f"{name}.npz")) for name in ("eval", "sample"))
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8")) if (folder / "meta.json").exists() else {}
    about = meta.get("task") or {}
    kind = about.get("type") if about.get("type") in FIGURES else None
    inputs = [name for name in single if name in stacked]
    count = min(len(stacked[name]) for name in inputs)
    group = TOGETHER.get(kind or "", 1)
    numbers = np.arange(count)
    held = numbers if "calib" in stacked else numbers[numbers // group % 2 == 1]
    labels = {n: a[held] if a.ndim and len(a) == count else a for n, a in stacked.items() if n not in inputs}

    def sample(rows: Mapping[str, np.ndarray], i: int) -> Sample:
        made = dict(single)
        for name in inputs:
            row, dtype = rows[name][i : i + 1], single[name].dtype
            if row.dtype == np.uint8 and dtype.kind == "f":
                row = row * np.float32(stacked.get("scale", 1.0))
            made[name] = row.astype(dtype)
        return made

    if "calib" in stacked:
        seen = [sample({inputs[0]: stacked["calib"]}, i) for i in range(len(stacked["calib"]))]
    else:
        seen = [sample(stacked, i) for i in numbers if i not in held]
    output = about.get("output") or OUTPUT.get(kind or "")
    return Task(seen, [sample(stacked, i) for i in held], labels, kind, output)

"""What counts when a quantized model is judged: which outputs, with which weights, and along which axis classes lie.

Invariant: an output without a weight counts nowhere: not in SQNR, not in agreement, and so in no decision of a search.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.ir.errors import Entity, EntityKind, UsageError


@dataclass(frozen=True, slots=True)
class Criterion:
    """How one output is judged. `weight` is its share in means over outputs. Decisions are the indices of the largest
    elements along `axis`; with a `threshold` whether elements exceed it; with neither, and integers, the elements
    themselves; else there are none. `why` says where that is known from."""

    weight: float = 1.0
    axis: int | None = None
    threshold: float | None = None
    why: str = ""

    def decisions(self, array: np.ndarray) -> np.ndarray | None:
        """The decisions in an output; None if it holds none."""
        if array.dtype.kind in "biu":
            return array
        if self.threshold is not None:
            return array > self.threshold
        if self.axis is None or not -array.ndim <= self.axis < array.ndim or array.shape[self.axis] < 2:
            return None
        found: np.ndarray = array.argmax(self.axis)
        return found

    @property
    def text(self) -> str:
        """The decisions in words; "" without any."""
        if self.threshold is not None:
            return f"above {self.threshold:g}: {self.why}"
        return f"axis {self.axis}: {self.why}" if self.axis is not None else self.why


@dataclass(frozen=True, slots=True)
class Judging:
    """The user's choices: `outputs` as NAME or NAME=WEIGHT (none: all floating-point outputs, equally), `class_axes` as
    AXIS or OUTPUT=AXIS."""

    outputs: tuple[str, ...] = ()
    class_axes: tuple[str, ...] = ()

    def of_part(self, outputs: Mapping[str, str], results: Sequence[str], read: Collection[str]) -> Judging:
        """The choices for a part of a model, whose `results` are named as its tensors: `outputs` maps the model's
        outputs to theirs. Tensors `read` by other parts count as much as the largest weight, and where nothing else
        does, every result counts."""
        weights = chosen_weights(self.outputs, tuple(outputs))
        named = {tensor: weights.get(name, 0.0) for name, tensor in outputs.items()}
        most = max(weights.values(), default=1.0)
        own = {r: most if r in read else named.get(r, 0.0) for r in results}
        axes = [(outputs.get(name, ""), name, axis) for name, _, axis in (t.rpartition("=") for t in self.class_axes)]
        return Judging(
            tuple(f"{r}={weight}" for r, weight in own.items() if weight) if weights else (),
            tuple(f"{own}={axis}" if name else axis for own, name, axis in axes if not name or own in results),
        )

    def criteria(self, found: Mapping[str, Criterion], ranks: Mapping[str, int]) -> dict[str, Criterion]:
        """The criteria of all outputs by name: those `found` in the model, changed by the choices. `ranks` are the
        outputs' numbers of axes. Raises UsageError for names and axes that do not exist."""
        axes = _axes(self.class_axes, ranks)
        weights = chosen_weights(self.outputs, tuple(ranks))
        made = {}
        for name, own in found.items():
            axis = axes.get(name, axes.get(""))
            if axis is not None and (name in axes or -ranks[name] <= axis < ranks[name]):
                own = Criterion(own.weight, axis, None, "--class-axis")
            weight = own.weight if not weights else weights.get(name, 0.0)
            made[name] = Criterion(weight, own.axis, own.threshold, own.why)
        return made


def chosen_weights(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Weights by output from texts such as `boxes,scores=2`. Raises UsageError for unknown names, weights that are not
    positive, and names given twice."""
    found: dict[str, float] = {}
    for text in texts:
        for item in [text] if text in names else text.split(","):
            name, equals, number = item.rpartition("=") if item not in names else (item, "", "")
            if not equals:
                name, number = item, "1"
            known(name, names, "--outputs")
            weight = _number(number)
            if weight is None or not 0 < weight < math.inf:
                raise UsageError.of("--outputs", f"the weight of '{name}' is not a positive number", got=number)
            if name in found:
                raise UsageError.of("--outputs", f"names '{name}' twice")
            found[name] = weight
    return found


def known(name: str, names: Sequence[str], where: str) -> None:
    """Raise UsageError unless `name` is an output."""
    if name in names:
        return
    close = difflib.get_close_matches(name, names, 1)
    raise UsageError.of(
        where,
        f"the model has no output '{name}'",
        expected=", ".join(names),
        hint=f"did you mean '{close[0]}'?" if close else None,
        entities=(Entity(EntityKind.OUTPUT, name),),
    )


def _axes(texts: Sequence[str], ranks: Mapping[str, int]) -> dict[str, int]:
    """Axes by output; that of all others under ""."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if name:
            known(name, tuple(ranks), "--class-axis")
        if name in found:
            raise UsageError.of("--class-axis", f"is given twice for {name or 'all outputs'}")
        if not number.lstrip("-").isdecimal():
            raise UsageError.of(
                "--class-axis", "is not an axis", got=text, expected="AXIS or OUTPUT=AXIS, e.g. 1 or -1"
            )
        axis = int(number)
        fits = {n for n, rank in ranks.items() if -rank <= axis < rank} & ({name} if name else set(ranks))
        if not fits:
            have = f"{ranks[name]} axes" if name else ", ".join(f"{n}: {rank} axes" for n, rank in ranks.items())
            which = f"output '{name}' has no" if name else "no output has an"
            raise UsageError.of("--class-axis", f"{which} axis {axis}", expected=have)
        found[name] = axis
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

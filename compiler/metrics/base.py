"""What the built-in task metrics share: their parameters, the registry, and access to outputs and labels.

A metric is a frozen dataclass, registered under its name; its fields are the parameters, its docstring is the help. It
is called with the outputs of all samples, the samples (inputs and labels), and the outputs of the model in f32, which
are the truth where no labels are named.

Invariant: larger is better, for every metric.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppuc.ir.errors import UsageError

Sample = Mapping[str, np.ndarray]


class Metric(Protocol):
    """A task metric."""

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        """The figure of `outputs` on `samples`; `exact` are the outputs of the model in f32. Larger is better."""
        ...

    @property
    def against_f32(self) -> bool:
        """Whether the model in f32 is the truth."""
        ...


class ByLabels:
    """A metric whose field `labels` names its truth in the data; without it, the model in f32 is the truth."""

    __slots__ = ()
    labels: str | tuple[str, ...]

    @property
    def against_f32(self) -> bool:
        """As Metric says."""
        return not self.labels


M = typing.TypeVar("M", bound=type)
METRICS: dict[str, type[Metric]] = {}
"""Name -> dataclass."""


def metric(name: str) -> Callable[[M], M]:
    """Register a metric under `name`."""

    def register(kind: M) -> M:
        METRICS[name] = kind
        return kind

    return register


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a metric, for documents: its type and default as text ("" if it must be given)."""

    name: str
    type: str
    default: str


def parameters(kind: type) -> tuple[Parameter, ...]:
    """The parameters of a metric, in order."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in fields(kind):
        default = "" if field.default is MISSING else repr(field.default) if field.default != () else "()"
        found.append(Parameter(field.name, _type_text(hints[field.name]), default))
    return tuple(found)


def summary(kind: type) -> str:
    """The help of a metric as one paragraph."""
    return " ".join((inspect.getdoc(kind) or "").split())


def built(name: str, given: Mapping[str, Any], where: str) -> Metric:
    """The metric called `name` with the parameters `given`, which `where` they come from. Raises UsageError for unknown
    metrics and parameters, and for values of the wrong type."""
    if name not in METRICS:
        raise UsageError.of(
            where, f"there is no metric '{name}'", expected=", ".join(sorted(METRICS)), hint=_close(name, METRICS)
        )
    made: Metric = _made(METRICS[name], name, given, where)
    return made


def _made(kind: Any, name: str, given: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind`, called `name`."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    values = {}
    for key, value in given.items():
        if key not in known:
            hint = _close(key, known)
            raise UsageError.of(where, f"'{name}' has no parameter '{key}'", expected=", ".join(known), hint=hint)
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            values[key] = _made(hints[key], key, value, where)
        else:
            values[key] = _converted(value, hints[key], f"{where}: '{key}'")
    missing = [f.name for f in known.values() if f.default is MISSING and f.name not in values]
    if missing:
        raise UsageError.of(where, f"'{name}' needs '{missing[0]}'", expected=_type_text(hints[missing[0]]))
    return kind(**values)


def _close(name: str, known: Sequence[str] | Mapping[str, Any]) -> str | None:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{close[0]}'?" if close else None


def _converted(value: Any, wanted: Any, where: str) -> Any:
    """`value`, as TOML gives it, as an instance of the type `wanted`. One value stands for a tuple of one."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal and value in inner:
        return value
    if origin in (types.UnionType, typing.Union):
        return _converted(value, next(t for t in inner if t is not type(None)), where)
    if origin is tuple:
        each = inner[0]
        items = value if isinstance(value, list | tuple) else [value]
        length = None if inner[-1] is Ellipsis else len(inner)
        if length in (None, len(items)):
            return tuple(_converted(item, each, where) for item in items)
    elif wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif wanted is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    raise UsageError.of(where, "has the wrong type", got=repr(value), expected=_type_text(wanted))


def _type_text(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if is_dataclass(kind):
        return "a table"
    if origin in (types.UnionType, typing.Union):
        return _type_text(next(t for t in inner if t is not type(None)))
    if origin is tuple:
        length = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"{length}{_type_text(inner[0])}s" if typing.get_origin(inner[0]) is not tuple else "lists of numbers"
    return {str: "text", int: "integer", float: "number", bool: "true or false", Path: "file"}.get(kind, str(kind))


# Outputs and labels.


def output_of(sample: Sample, name: str, where: str) -> np.ndarray:
    """The output called `name` ("": the only floating-point one). Raises UsageError if there is none."""
    if not name:
        floats = [n for n, a in sample.items() if a.dtype.kind == "f"]
        names = floats or list(sample)
        if len(names) != 1:
            raise UsageError.of(where, "the model has several outputs", expected=f"output = one of {', '.join(names)}")
        name = names[0]
    if name not in sample:
        hint = _close(name, sample)
        raise UsageError.of(where, f"the model has no output '{name}'", expected=", ".join(sample), hint=hint)
    return np.asarray(sample[name])


def label_of(sample: Sample, name: str, where: str) -> np.ndarray:
    """The labels called `name` of a sample. Raises UsageError if the data hold none."""
    if name not in sample:
        hint = _close(name, sample)
        raise UsageError.of(where, f"the data hold no labels '{name}'", expected=", ".join(sample), hint=hint)
    return np.asarray(sample[name])


def numbers_of(sample: Sample, name: str, where: str) -> np.ndarray:
    """The labels called `name` of a sample, which are numbers. Raises UsageError if they are not."""
    labels = label_of(sample, name, where)
    if labels.dtype.kind not in "biuf":
        raise UsageError.of(where, f"the labels '{name}' are not numbers", got=_first_text(labels))
    return labels


def classes_of(sample: Sample, name: str, where: str) -> np.ndarray:
    """The labels called `name` of a sample as class numbers, i64, -1 for NaN. Raises UsageError if they are not whole
    numbers."""
    labels = numbers_of(sample, name, where)
    if labels.dtype.kind == "f":
        labels = np.where(np.isnan(labels), -1.0, labels)
        broken = labels[~(np.isfinite(labels) & (labels == np.round(labels)))]
        if broken.size:
            raise UsageError.of(where, f"the labels '{name}' are not class numbers", got=_first_text(broken))
    found: np.ndarray = labels.astype(np.int64)
    return found


def _first_text(labels: np.ndarray) -> str:
    return f"{labels.reshape(-1)[0]!s} of type {labels.dtype}" if labels.size else str(labels.dtype)


def check_axis(array: np.ndarray, axis: int, where: str) -> None:
    """Raise UsageError if an output has no such axis."""
    if not -array.ndim <= axis < array.ndim:
        raise UsageError.of(where, f"the output has no axis {axis}", got=f"{array.ndim} axes")


def numbered(*lists: Sequence[Sample]) -> Iterator[tuple[int, tuple[Sample, ...]]]:
    """The samples of several lists side by side, with their numbers."""
    yield from enumerate(zip(*lists, strict=True))

"""The metric that `--metric` names: a Python file, a TOML file, or NAME with parameters, as `top-k,k=5`.

A Python file defines `metric(outputs, inputs) -> float`, where larger is better. Both are lists of dicts of arrays by
ONNX name, one dict per sample, in the order of the data; `inputs` also holds the labels (arrays that are not inputs):
the sample's row of a label with one row per sample, and the whole array otherwise.

A TOML file has a key `metric`, the name, and one for each parameter; files named in it are relative to its folder.
"""

from __future__ import annotations

import importlib.util
import os
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppuc.compiler.metrics import classes, points, precision, text
from ppuc.compiler.metrics.base import METRICS, Metric, Sample, built
from ppuc.ir.errors import UsageError
from ppuc.ir.strict_toml import read_toml

BUILT_IN = (classes, precision, points, text)
"""The modules that register metrics."""

Function = Callable[[list[Sample], list[Sample]], float]
_WANTED = "metric(outputs, inputs) -> float"


@dataclass(frozen=True, slots=True)
class PythonMetric:
    """A user's function."""

    function: Function
    file: str

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        """As Metric says. Raises UsageError with the first sample that the function fails on alone, and its
        traceback."""
        try:
            return float(self.function(list(outputs), list(samples)))
        except Exception as error:  # the user's own code
            number = self._failing(outputs, samples)
            which = f" on sample {number}" if number is not None else " on the samples together, on none alone"
            raise UsageError.of(f"--metric {self.file}", f"fails{which}", got=self._told(error)) from error

    @property
    def against_f32(self) -> bool:
        """As Metric says: it is called without the model's outputs."""
        return False

    def _failing(self, outputs: Sequence[Sample], samples: Sequence[Sample]) -> int | None:
        for number, (output, sample) in enumerate(zip(outputs, samples, strict=True)):
            try:
                float(self.function([output], [sample]))
            except Exception:  # as above
                return number
        return None

    def _told(self, error: Exception) -> str:
        """The error, and the lines of the user's own code that it passed."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for i, f in enumerate(frames) if any(before.filename == self.file for before in frames[: i + 1])]
        lines = [f"{type(error).__name__}: {error}"]
        lines += [f"    {f.filename}, line {f.lineno}, in {f.name}: {f.line}" for f in own[:8]]
        return "\n".join(lines)


def chosen_metric(text: str) -> Metric:
    """The metric that `text` names. Raises UsageError if there is none, or it lacks parameters."""
    if text.endswith(".py"):
        return _of_file(Path(text))
    if text.endswith(".toml"):
        table = read_toml(Path(text), UsageError)
        name = table.pop("metric", None)
        if not isinstance(name, str):
            raise UsageError.of(text, "names no metric", expected=f"metric = one of {', '.join(sorted(METRICS))}")
        return built(name, _beside(table, Path(text).parent), text)
    name, *given = text.split(",")
    if not given and name not in METRICS and os.path.isfile(name):
        raise UsageError.of(name, "is no metric", expected="a .py or .toml file")
    return built(name, dict(_parameter(p, text) for p in given), "--metric")


def _beside(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`table` with files relative to `folder`."""
    return {k: str(folder / v) if k == "alphabet" and isinstance(v, str) else v for k, v in table.items()}


def _parameter(item: str, text: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals:
        raise UsageError.of("--metric", f"'{item}' is not of the form KEY=VALUE", got=text)
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:  # a name without quotes
        return key, value


def _of_file(path: Path) -> PythonMetric:
    there = os.path.isfile(path)
    spec = importlib.util.spec_from_file_location("ppuc_user_metric", path) if there else None
    if spec is None or spec.loader is None:
        raise UsageError.of(str(path), "cannot be read as a Python file", expected=_WANTED)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise UsageError.of(str(path), "fails when it is imported", got=f"{type(error).__name__}: {error}") from error
    found = getattr(module, "metric", None)
    if not callable(found):
        raise UsageError.of(str(path), "defines no function 'metric'", expected=_WANTED)
    return PythonMetric(found, str(path))


def value_of(metric: Metric, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
    """The metric of `outputs` on `samples`, of which `exact` are the outputs in f32. Raises UsageError when it gives no
    number."""
    number = metric(outputs, samples, exact)
    if not np.isfinite(number):
        raise UsageError.of("--metric", "gives no finite number", got=number)
    return number

"""Samples for calibration and measurement: read on demand, validated, and split into the model's batches.

A source is an .npz (arrays by input name, samples stacked along the first axis), a folder (folders.py), or any Python
iterable of dicts of arrays.

A task metric may need more than the inputs: with `labels`, arrays that are not inputs are kept as labels.

Invariant: `samples` yields exactly the names, types and shapes that the program declares (plus labels, if requested),
without NaN or infinity; anything else raises an InputError that names the sample and the input.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ppuc.compiler.inputs import InputSpec, checked_inputs, read_npz, without_fixed
from ppuc.compiler.quantization.batches import Batch, Stack, joined
from ppuc.compiler.quantization.folders import samples_of
from ppuc.compiler.quantization.images import Preprocessing
from ppuc.ir.errors import InputError, UsageError

Source = str | Path | Iterable[Stack]


FEW = 8
"""With fewer samples than this, ranges are uncertain."""


class Data:
    """A source of samples. `preprocessing` describes images; with `labels`, arrays that are not inputs are kept as
    labels. Iterables are read once and kept; files are read again on every pass."""

    def __init__(self, source: Source, preprocessing: Preprocessing | None = None, *, labels: bool = False) -> None:
        self.where = str(source) if isinstance(source, str | Path) else "calibration data"
        self._preprocessing, self._labels = preprocessing, labels
        self._path = Path(source) if isinstance(source, str | Path) else None
        self._stacks: list[Stack] = []
        if self._path is None:
            assert not isinstance(source, str | Path)
            self._stacks = [dict(s) for s in source]
        elif not os.path.exists(self._path):
            raise InputError.of(self.where, "no such file or folder", expected="an .npz, or a folder of samples")

    def with_source(self, source: Source) -> Data:
        """A second source of samples with the same preprocessing and labels."""
        return Data(source, self._preprocessing, labels=self._labels)

    def stacks(self, names: Sequence[str]) -> Iterator[Stack]:
        """The stacks (arrays by name) in the source, in order. Arrays in files without names belong to the only input
        in `names`."""
        if self._path is None:
            yield from self._stacks
        elif self._path.is_dir():
            yield from samples_of(self._path, names, self._preprocessing, labels=self._labels)
        else:
            yield read_npz(self._path)

    def shapes(
        self, declared: Mapping[str, Sequence[int | str | None] | None], dims: Mapping[str, int]
    ) -> dict[str, tuple[int, ...]]:
        """Shapes to bind the model's open dimensions to: those of the first stack, with the batch size from `dims` or
        the model (default 1) in place of the number of samples."""
        if self._pictured:
            self._check_inputs(tuple(declared))
            for name, shape in declared.items():
                self._preprocessing_of(name).check_fits(name, shape or ())
        first = next(iter(self.stacks(tuple(declared))), None)
        if first is None or any(np.shape(first[name])[:1] == (0,) for name in declared if name in first):
            raise InputError.of(self.where, "holds no samples")
        found = {}
        for name, array in first.items():
            shape = declared.get(name)
            if name in declared and (shape is None or len(shape) == np.ndim(array)) and np.ndim(array):
                batch = shape[0] if shape is not None else None
                size = batch if isinstance(batch, int) else dims.get(batch or "", dims.get(f"{name}:0", 1))
                found[name] = (size, *np.shape(array)[1:])
        return found

    @property
    def _pictured(self) -> bool:
        """Whether images become inputs."""
        return self._preprocessing is not None and self._path is not None and self._path.is_dir()

    def _check_inputs(self, names: Sequence[str]) -> None:
        """Raise UsageError if the preprocessing describes an input that is not one of `names`."""
        assert self._preprocessing is not None
        if unknown := sorted(set(self._preprocessing.inputs) - set(names)):
            what = f"[inputs.{unknown[0]}] is not an input of the model"
            raise UsageError.of(self._preprocessing.where, what, expected=", ".join(names))

    def _preprocessing_of(self, name: str) -> Preprocessing:
        assert self._preprocessing is not None
        return self._preprocessing.of(name)

    def first(
        self, declared: Mapping[str, Sequence[int | str | None] | None], dims: Mapping[str, int]
    ) -> dict[str, np.ndarray]:
        """The inputs of the first batch, for a model whose inputs are `declared` and whose batch is as in `shapes`."""
        shapes = self.shapes(declared, dims)
        stack = next(iter(self.stacks(tuple(declared))))
        return {n: np.resize(stack[n], shape) for n, shape in shapes.items() if np.size(stack[n])}

    def samples(
        self, specs: Sequence[InputSpec], fixed: Mapping[str, np.ndarray] | None = None
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """The arrays of `batches`."""
        return (batch.arrays for batch in self.batches(specs, fixed))

    def batches(self, specs: Sequence[InputSpec], fixed: Mapping[str, np.ndarray] | None = None) -> Iterator[Batch]:
        """Feeds by ONNX name with labels, one per batch; files of fewer samples than a batch are joined. The last batch
        is filled up with the first samples of its stack. Inputs that were `fixed` to a value may be present, once or
        per sample, with that value."""
        count = 0
        for inputs, labels in joined(self._given(specs, fixed or {}), {s.name: s.type.dims for s in specs}):
            for batch in _batches(inputs, labels, specs, self.where):
                _check_numbers({s.name: batch.arrays[s.name] for s in specs}, f"{self.where}: sample {count}")
                yield batch
                count += 1
        if not count:
            raise InputError.of(self.where, "holds no samples")

    def _given(self, specs: Sequence[InputSpec], fixed: Mapping[str, np.ndarray]) -> Iterator[tuple[Stack, Stack]]:
        """Inputs and labels of each stack, without `fixed` inputs."""
        if self._pictured:
            self._check_inputs([s.name for s in specs])
        for spec in specs if self._pictured else ():
            self._preprocessing_of(spec.name).check_fits(spec.name, spec.type.dims, str(spec.type.dtype))
        for held in self.stacks([s.name for s in specs]):
            yield self._parted(without_fixed(fixed, _fixed_once(held, fixed), self.where), specs)

    def _parted(self, stack: Stack, specs: Sequence[InputSpec]) -> tuple[Stack, Stack]:
        """A stack's inputs and labels; without `labels`, an unknown name stays an input, and is refused as one."""
        names = {s.name for s in specs} if self._labels else set(stack)
        return {n: a for n, a in stack.items() if n in names}, {n: a for n, a in stack.items() if n not in names}


def _fixed_once(stack: Stack, fixed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`stack` with `fixed` inputs that repeat their value per sample reduced to that value."""
    found = {name: np.asarray(array) for name, array in stack.items()}
    for name, value in fixed.items():
        array = found.get(name)
        if array is not None and array.size and array.size % max(value.size, 1) == 0 and array.shape != value.shape:
            each = array.reshape(-1, *value.shape)
            if array.shape[-value.ndim or array.ndim :][1:] == value.shape[1:] and np.all(each == each[:1]):
                found[name] = each[0]
    return found


def _batches(stack: Stack, labels: Stack, specs: Sequence[InputSpec], where: str) -> Iterator[Batch]:
    """Samples with their labels. A label with as many rows as there are samples is split by row; any other (an
    alphabet, names of classes) is passed whole to every sample."""
    shapes = {s.name: s.type.dims for s in specs}
    arrays = {n: np.asarray(a) for n, a in stack.items()}
    whole = {n for n, a in arrays.items() if a.shape == shapes.get(n)}
    stacked = [n for n in arrays if shapes.get(n) and n not in whole]
    if arrays.keys() != shapes.keys():
        checked_inputs(
            specs, {n: a[: shapes[n][0]] if n in stacked and a.ndim else a for n, a in arrays.items()}, where
        )
    if not stacked:
        first = {s[0] for s in shapes.values()} if all(len(s) > 1 for s in shapes.values()) else set()
        size = first.pop() if len(first) == 1 else 1
        yield Batch({**checked_inputs(specs, arrays, where), **labels}, size, size)
        return
    counts = {n: len(arrays[n]) if arrays[n].ndim else 0 for n in stacked}
    if len(set(counts.values())) > 1:
        raise InputError.of(where, "its inputs have different numbers of samples", got=counts)
    total, batch = counts[stacked[0]], shapes[stacked[0]][0] if shapes[stacked[0]] else 1
    if any(arrays[n].shape[1:] != shapes[n][1:] for n in stacked) or not batch:
        checked_inputs(specs, arrays, where)  # raises with the name of the wrong input
    if not total:
        raise InputError.of(where, "holds no samples")
    for start in range(0, total, batch):
        rows = np.arange(start, start + batch) % total
        sample = checked_inputs(specs, {n: a if n in whole else a[rows] for n, a in arrays.items()}, where)
        own = {n: a[rows] if a.shape[:1] == (total,) else a for n, a in labels.items()}
        yield Batch({**sample, **own}, batch, min(batch, total - start))


def _check_numbers(sample: Mapping[str, np.ndarray], where: str) -> None:
    for name, array in sample.items():
        if array.dtype.kind in "fV" and not np.isfinite(np.asarray(array, np.float32)).all():
            bad = "NaN" if np.isnan(np.asarray(array, np.float32)).any() else "an infinity"
            raise InputError.of(where, f"input '{name}' holds {bad}", expected="finite numbers")


def check_not_zero(samples: Sequence[Mapping[str, np.ndarray]], where: str) -> None:
    """Raise InputError when all floating-point inputs are zero in every sample: they determine no range."""
    names = [n for n, array in samples[0].items() if array.dtype.kind in "fV" and array.size]
    if names and not any(np.any(s[n]) for s in samples for n in names):
        which = f"input '{names[0]}' is" if len(names) == 1 else f"inputs {', '.join(names)} are"
        raise InputError.of(where, f"{which} zero in every sample", hint="calibrate with data that the model will see")

"""Elements that a model leaves undefined, as it does behind a sequence's length: they are not compared.

They are found by putting other numbers where ops leave them open: whatever changes in the oracle's answer depends on
undefined results, and everything else does not, however far from the op it is.

Invariant: which elements are undefined follows from the model and its inputs, never from what a program computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.frontend.undefined import disturb, leaves_undefined
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.oracle import Oracle

if TYPE_CHECKING:
    import onnx


def undefined_elements(
    source: str | Path | onnx.ModelProto,
    inputs: Mapping[str, Any],
    want: Mapping[str, Any],
    tensors: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """For the outputs and inner `tensors` of the oracle's answer `want` of which elements are undefined: which ones, as
    booleans. Raises ModelError when ONNX Runtime refuses."""
    if not leaves_undefined(source):
        return {}
    other, found = Oracle(source, tensors, disturb).run(inputs), dict[str, np.ndarray]()
    for name, array in want.items():
        if (
            isinstance(array, np.ndarray)
            and isinstance(other.get(name), np.ndarray)
            and array.shape == other[name].shape
        ):
            both_nan = (array != array) & (other[name] != other[name])  # NaN, of any dtype
            found[name] = (array != other[name]) & ~both_nan
    return {name: mask for name, mask in found.items() if mask.any()}


def defined(array: np.ndarray, undefined: np.ndarray | None) -> np.ndarray:
    """`array` with zeros for its `undefined` elements."""
    return array if undefined is None else np.where(undefined, np.zeros((), array.dtype), array)


def with_undefined_note(comparison: Comparison, undefined: np.ndarray | None) -> Comparison:
    """`comparison` of `defined` arrays, with what was left out."""
    if undefined is None:
        return comparison
    count = int(np.count_nonzero(undefined))
    why = "behind the length of a sequence, or normalised from equal numbers"
    note = f"{count} of {undefined.size} elements are undefined ({why}), and not compared"
    everything = "the model leaves all elements undefined" if count == undefined.size else ""
    return replace(comparison, note=note, unproven=comparison.unproven or everything)

"""Whether an agreement means anything: outputs that the inputs do not move agree whatever a program computes.

Invariant: it is the oracle's answers that are compared, to the inputs of a verification and to others; what a program
computed plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ppuc.compiler.frontend.expose import moved_by_inputs
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.ir.errors import ModelError

if TYPE_CHECKING:
    import onnx

Model: TypeAlias = "str | Path | onnx.ModelProto"
Arrays = Mapping[str, Any]
DRAWS = 2
"""Other inputs whose answers are asked for: an index or a flag may be the same for one by chance."""

FACTORS = (1 / 4, 1 / 32, 4.0)
"""Of the inputs that are tried where the given ones say nothing: saturated functions move again, or begin to."""

UNMOVED = "the model gives the same for other inputs, within what is allowed"


def other_inputs(arrays: Arrays, kept: Collection[str], seed: int) -> dict[str, Any] | None:
    """Inputs of the same types and like values: the elements of each in another order, floats that are all equal with
    noise. Those `kept`, by name, stay; None when all others stay too."""
    rng, found, changed = np.random.default_rng(seed), dict(arrays), False
    for name, array in arrays.items():
        if name in kept or not isinstance(array, np.ndarray) or array.dtype.kind not in "fiubVOSU" or not array.size:
            continue
        mixed = rng.permutation(array.reshape(-1)).reshape(array.shape)
        if array.dtype.kind in "fV" and np.all(array == array.reshape(-1)[0]):
            scale = max(float(np.abs(array.astype(np.float64)).max()), 1.0)
            mixed = (array.astype(np.float64) + scale * rng.standard_normal(array.shape)).astype(array.dtype)
        found[name], changed = mixed, changed or not np.array_equal(mixed, array)
    return found if changed else None


def scaled_inputs(arrays: Arrays, kept: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs that may say more, each with what it is: every float times one of FACTORS, one at a time."""
    floats = {n for n, a in arrays.items() if n not in kept and isinstance(a, np.ndarray) and a.dtype.kind in "fV"}
    for factor in FACTORS if floats else ():
        text = f"multiplied by {factor:g}" if factor > 1 else f"divided by {1 / factor:g}"
        scaled = {n: _times(arrays[n], factor) for n in floats}
        yield f"the inputs {text}", {**arrays, **scaled}


def _times(array: np.ndarray, factor: float) -> np.ndarray:
    """The product in the array's own type; an array of rank 0 stays one."""
    return np.asarray((array.astype(np.float32) * np.float32(factor)).astype(array.dtype))


def with_doubts(
    outputs: Sequence[Comparison], want: Arrays, others: Sequence[Arrays], dependent: Collection[str]
) -> tuple[Comparison, ...]:
    """`outputs`; those `dependent` on the inputs for which the oracle's answers to `others` would be accepted in place
    of its answer `want` are unproven."""
    found = []
    for c in outputs:
        answers = [other[c.name] for other in others if c.name in other]
        if c.ok and not c.unproven and c.name in dependent and answers:
            unmoved = all(_accepted(c, answer, want[c.name]) for answer in answers)
            c = replace(c, unproven=UNMOVED) if unmoved else c
        found.append(c)
    return tuple(found)


def doubted(
    source: Model, arrays: Arrays, kept: Collection[str], outputs: Sequence[Comparison]
) -> tuple[Comparison, ...]:
    """`outputs`, compared on `arrays`, with those unproven that the inputs do not move; inputs `kept` stay. As they are
    when ONNX Runtime does not run the model on other inputs."""
    dependent = moved_by_inputs(source, kept)
    if not any(c.name in dependent for c in outputs):
        return tuple(outputs)
    try:
        oracle = Oracle(source)
        want = oracle.run(arrays)
    except ModelError:
        return tuple(outputs)
    others = []
    for seed in range(DRAWS):
        other = other_inputs(arrays, kept, seed)
        with suppress(ModelError):  # numbers in another order may be no lengths or no indices
            others += [oracle.run(other)] if other is not None else []
    return with_doubts(outputs, want, others, dependent)


def proven_elsewhere(
    source: Model,
    arrays: Arrays,
    kept: Collection[str],
    outputs: Sequence[Comparison],
    verified: Callable[[Arrays], Sequence[Comparison]],
) -> tuple[Comparison, ...]:
    """`outputs`; those that are unproven on `arrays` as scaled inputs show them to be, `verified` there: right, where
    that is proven, or wrong. Scaled inputs for which the model has no answer, one of other sizes than the file may
    promise, or NaN or infinity elsewhere, show nothing."""
    try:
        oracle = Oracle(source)
        forms = _forms(oracle, arrays)
    except ModelError:
        return tuple(outputs)
    for what, scaled in scaled_inputs(arrays, kept):
        try:
            if _forms(oracle, scaled) != forms:
                continue
        except ModelError:  # another branch may make shapes that do not fit
            continue
        again = {c.name: c for c in doubted(source, scaled, kept, verified(scaled))}
        outputs = [_settled(c, again.get(c.name), what) for c in outputs]
        if not any(c.unproven for c in outputs):
            break
    return tuple(outputs)


def _forms(oracle: Oracle, arrays: Arrays) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Of the answers that are arrays, the shape and which elements are finite. Raises ModelError when there are
    none."""
    return {
        name: (found.shape, np.isfinite(found.astype(np.float64)).tobytes() if found.dtype.kind in "fV" else b"")
        for name, found in oracle.run(arrays).items()
        if isinstance(found, np.ndarray)
    }


def _settled(c: Comparison, again: Comparison | None, what: str) -> Comparison:
    if not c.unproven or again is None or again.verdict == "unproven":
        return c
    if not again.ok:
        return replace(c, ok=False, unproven="", reason=f"on {what}: {again.reason}")
    return replace(c, unproven="", note=f"proven on {what}, {again.sqnr_db:.0f} dB; here {c.unproven}")


def _accepted(c: Comparison, answer: Any, want: Any) -> bool:
    if not isinstance(answer, np.ndarray) or not isinstance(want, np.ndarray) or not want.size:
        return False
    if answer.dtype.kind not in "fV":
        return np.array_equal(answer, want)
    return compare(c.name, answer, want, Tolerance(c.tolerance)).ok

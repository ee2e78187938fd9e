"""A better check of outputs that a model amplifies rounding to: in parts, each on what the program gave the one before.

The tensors of the model that the program holds cut the model into parts. The oracle computes each of them from those
that the program computed, so that no error passes from one part to the next, and each part is allowed only what its own
sums and formats make. When all parts are right, each given what it was given, so is the whole.

Invariant: the oracle computes every part from the model's own nodes; the program gives the inputs and is compared with
the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.comparing.doubts import UNMOVED
from ppuc.compiler.comparing.layers import Layers, run_with_layers
from ppuc.compiler.comparing.undefined import defined, undefined_elements
from ppuc.compiler.frontend.altered import GIVEN, from_given
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.pipeline.layers import PREFIX, restored
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import LOOSE, Comparison
from ppuc.compiler.validation.conditioning import SMALLEST_CHANGE
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import PpucError
from ppuc.ir.types import DType

if TYPE_CHECKING:
    from ppuc.targets.simulator.run import Progress


def proven_in_parts(
    program: CompiledProgram,
    arrays: Mapping[str, Any],
    outputs: Sequence[Comparison],
    inner: Sequence[Comparison],
    progress: Progress | None,
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
    """`outputs` and `inner` tensors, compared on inputs `arrays`; those that are unproven because much is allowed are
    right when all parts are, and so are those that are wrong where the model amplifies rounding more than can be
    measured. They are wrong when a part is, except in 8 bits, where the rule for rounding errors does not know the
    scales. They stay as they are when a part proves nothing either, or when the model cannot be cut: the program holds
    nothing of it, or it is too large for one message."""
    before = tuple(outputs), tuple(inner)
    tensors = (*outputs, *inner)
    if not any(map(_loose, tensors)) or any(not c.ok and not _loose(c) for c in tensors):
        return before
    layers = run_with_layers(program, arrays, progress)
    try:
        parts = compared_in_parts(layers)
    except (PpucError, ValueError):  # a message of more than 2 GB, a type that no input has
        return before
    cut, exact = len(parts) > len(outputs), program.quantized is None
    return tuple(_settled(c, parts, cut, exact) for c in outputs), tuple(_settled(c, parts, cut, exact) for c in inner)


def _loose(c: Comparison) -> bool:
    """Whether an agreement, or a disagreement, of the whole says too little."""
    return _beyond_measure(c) or bool(c.unproven and c.unproven != UNMOVED)


def _settled(c: Comparison, parts: Sequence[Comparison], cut: bool, exact: bool) -> Comparison:
    """A tensor as `parts` of the model show it to be. `cut` says whether there are several, `exact` whether the rule
    for rounding errors knows all that the program rounds."""
    if not _loose(c):
        return c
    fault = next((part for part in parts if not part.ok), None)
    if fault is not None and exact:
        reason = f"{fault.name}, computed from what the program holds before it: {fault.reason}"
        return replace(c, ok=False, reason=reason, unproven="")
    wrong = fault or next((part for part in parts if part.unproven), None)
    if not cut or wrong is not None:
        what = f"; in parts, {wrong.name}: {wrong.reason or wrong.unproven}" if wrong is not None else ""
        return replace(c, unproven=c.unproven + what) if c.ok else c
    worst = max(part.tolerance for part in parts)
    note = f"right in {len(parts)} parts, of which each is allowed errors of {worst:.2g} at most; as a whole: "
    return replace(c, ok=True, reason="", unproven="", note=note + (c.unproven or c.reason))


def _beyond_measure(c: Comparison) -> bool:
    """Whether an output is off, and the smallest change by which conditioning is measured changes all of it: how far
    smaller ones move it, nobody knows."""
    return not c.ok and c.sensitivity is not None and c.sensitivity * SMALLEST_CHANGE >= LOOSE


def compared_in_parts(layers: Layers) -> tuple[Comparison, ...]:
    """Every tensor that the program holds, outputs included, against the oracle's on what the program holds before
    it."""
    return _compared(layers, _held(layers), {n: a for n, a in layers.outputs.items() if not n.startswith(PREFIX)})


def _compared(
    layers: Layers, held: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> tuple[Comparison, ...]:
    program = layers.program
    assert program.source is not None
    cut = from_given(program.source, held)
    arrays = {**layers.arrays, **{GIVEN + name: array for name, array in held.items()}}
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    imported = load_model(cut, shapes=shapes, values=program.fixed)
    feeds = {value.name: arrays[name] for name, value in imported.inputs}
    stored = {layers.tensors[node]: DType.of(layers.got[value].dtype) for value, node in layers.nodes.items()}
    given = {GIVEN + name: stored[name] for name in held}
    formats = {value.name: given[name] for name, value in imported.inputs if name in given}
    judge = Judge(imported.graph, program.options.precision, feeds, imported.transforms, formats)
    want, got = Oracle(cut).run(arrays), {**held, **outputs}
    undefined = undefined_elements(cut, arrays, want)

    def compared(name: str, value: str) -> Comparison:
        a, b = (defined(arrays[name], undefined.get(name)) for arrays in (got, want))
        return judge.compare(name, value, a, b, stored=stored.get(name) if name in held else None)

    return tuple(compared(name, value.name) for name, value in imported.outputs)


def _held(layers: Layers) -> dict[str, np.ndarray]:
    """Tensors of the model as the program computed them, in the model's layout and format, by name."""
    want, found = layers.wanted(*layers.nodes.values()), dict[str, np.ndarray]()
    for value, node in layers.nodes.items():
        tensor, got = layers.tensors[node], layers.got[value]
        reference = want.get(tensor)
        if not isinstance(reference, np.ndarray) or DType.of(got.dtype).is_float != DType.of(reference.dtype).is_float:
            continue
        back = restored(got, reference)
        if back is not None:
            found[tensor] = back.astype(reference.dtype)
    return found

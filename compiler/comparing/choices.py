"""What is computed from indices that a node chose is judged by the model's answer to the program's own choice.

Where two values differ by less than rounding does, either is a right choice, and what is gathered there may be any
other number. So where a program's choices differ from the model's, and choose values that agree, the oracle is asked
again, with the program's choices in place of its own: everything behind them has to agree with that answer.

Invariant: a choice is given to the oracle only if it is right by value, on the choices before it; the oracle computes
everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.comparing.indices import by_value
from ppuc.compiler.driver import compile_model
from ppuc.compiler.frontend.altered import GIVEN, from_given, with_indices
from ppuc.compiler.frontend.selections import Selection, choices
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import Tolerance, exact
from ppuc.ir.errors import PpucError

if TYPE_CHECKING:
    import onnx

    from ppuc.targets.simulator.run import Progress


@dataclass(frozen=True, slots=True)
class GivenChoices:
    """The model `source`, which reads the program's choices as inputs, `arrays` for all of its inputs by name, and how
    the choices compare with the model's, by tensor."""

    source: onnx.ModelProto
    arrays: Mapping[str, Any]
    choices: Mapping[str, Comparison]

    def better(
        self, before: Sequence[Comparison], again: Sequence[Comparison], tensors: Mapping[str, str]
    ) -> tuple[Comparison, ...]:
        """Tensors compared `before` with the model's own answer and `again` with the one to the program's choices, by
        name: the second where the first is off, or is right only by what the model makes of rounding. `tensors` maps
        names to tensors of the model, if they are others."""
        found = {c.name: c for c in again}
        found |= {name: self.choices[tensor] for name, tensor in tensors.items() if tensor in self.choices}
        return tuple(self._better(c, found.get(c.name, c)) for c in before)

    def _better(self, before: Comparison, again: Comparison) -> Comparison:
        if before.ok and (before.sensitivity is None or not again.ok):
            return before
        if again.ok:
            what = "; ".join(f"{c.name}: {c.note}" for c in self.choices.values() if c.note)
            note = again.note or f"computed from the program's own indices; {what}"
            return replace(again, name=before.name, note=note)
        return replace(before, reason=f"{before.reason}; from the program's own indices: {again.reason}")


def given_choices(
    program: CompiledProgram,
    arrays: Mapping[str, Any],
    tolerances: Callable[[str], list[Tolerance]],
    progress: Progress | None = None,
) -> GivenChoices | None:
    """The choices that `program` makes on inputs `arrays`, which are right by value, and some of which differ from the
    model's; `tolerances` are those of what the node of a name gives. None when there are none, when one is wrong, or
    when the model is too large for one message."""
    assert program.source is not None
    chosen = choices(program.source)
    if not chosen:
        return None
    try:
        got = _made(program, arrays, tuple(chosen), progress)
        source, given = from_given(program.source, got), {**arrays, **{GIVEN + n: a for n, a in got.items()}}
        want = Oracle(source, tuple(s.data for s in chosen.values() if s.data not in arrays)).run(given)
    except (PpucError, ValueError):  # a message of more than 2 GB
        return None
    found = {}
    for name, selection in chosen.items():
        found[name] = _judged(name, got[name], want[name], selection, {**want, **arrays}[selection.data], tolerances)
    different = any(c.mismatches for c in found.values())
    return GivenChoices(source, given, found) if different and all(c.ok for c in found.values()) else None


def _judged(
    name: str,
    got: np.ndarray,
    want: np.ndarray,
    selection: Selection,
    data: np.ndarray,
    tolerances: Callable[[str], list[Tolerance]],
) -> Comparison:
    before = compare(name, got, want, exact())
    return before if before.ok else by_value(before, got, want, selection, data, partial(tolerances, selection.node))


def _made(
    program: CompiledProgram, arrays: Mapping[str, Any], names: tuple[str, ...], progress: Progress | None
) -> dict[str, np.ndarray]:
    """The index tensors of these names as the program computes them, compiled once more with these as outputs."""
    assert program.source is not None
    model = with_indices(program.source, names)
    options = replace(program.options_keeping_layers, keep_layers=False)
    outputs = replace(program, artifact=compile_model(model, options).artifact).run(arrays, progress=progress).outputs
    return {name: np.asarray(outputs[name]) for name in names}

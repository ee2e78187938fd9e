"""The inputs of a run: options, and random values for the rest.

Invariant: random inputs are reported, and the same seed gives the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ppuc.compiler.commands.common import note, pairs
from ppuc.compiler.commands.program import is_artifact

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.program.compiled import CompiledProgram

F = TypeVar("F", bound=Callable[..., Any])


def input_options(function: F) -> F:
    """--inputs, --input and --seed."""
    function = click.option("--seed", default=0, show_default=True, help="Seed of random inputs.")(function)
    function = click.option(
        "--input",
        "single_inputs",
        metavar="NAME=FILE.npy|random|ones|zeros",
        multiple=True,
        help="One input. Repeatable.",
    )(function)
    return click.option(
        "--inputs", "inputs_file", metavar="FILE.npz", type=click.Path(path_type=Path), help="Inputs by name."
    )(function)


def read_inputs(inputs_file: Path | None, singles: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays given by options, and the fills (`random`, `ones`, `zeros`) of inputs to generate."""
    from ppuc.compiler.inputs import FILLS, read_npy, read_npz

    arrays = read_npz(inputs_file) if inputs_file is not None else {}
    fills: dict[str, str] = {}
    for name, value in pairs(singles, "--input").items():
        if value in FILLS:
            fills[name] = value
        else:
            arrays[name] = read_npy(value)
    return arrays, fills


def read_inputs_for(
    model: Path, inputs_file: Path | None, singles: Sequence[str], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `read_inputs`, with arrays instead of fills for initializers of `model` that are also inputs: those are inputs
    of a program only if they are given when it is compiled."""
    arrays, fills = read_inputs(inputs_file, singles)
    if not fills or is_artifact(model):
        return arrays, fills
    from ppuc.compiler.frontend.bind import default_types
    from ppuc.compiler.inputs import InputSpec, generate

    types = default_types(model)
    drawn = {n: generate(InputSpec(n, types[n]), fill, seed) for n, fill in fills.items() if n in types}
    return {**arrays, **drawn}, {n: fill for n, fill in fills.items() if n not in types}


_MISSING = "--input NAME=random draws random numbers for one"


def complete_inputs(
    program: CompiledProgram, arrays: dict[str, np.ndarray], fills: dict[str, str], seed: int, where: str
) -> dict[str, Any]:
    """The given inputs, with fills generated; without any, all inputs are random, with a note. Fixed inputs have their
    values; inputs that only the host holds must be given. Raises InputError if only some inputs are given."""
    from ppuc.compiler.inputs import checked_inputs, generate, without_fixed

    if program.variants is not None:  # inputs to be padded match no variant's shapes
        return dict(arrays)
    specs, fixed, nothing_given = program.inputs, program.fixed, not arrays and not fills
    foreign = dict(program.plan.host_inputs) if program.plan is not None else {}
    hosted = {name: arrays[name] for name in foreign if name in arrays}
    arrays = {name: a for name, a in without_fixed(fixed, arrays, where).items() if name not in foreign}
    by_name = {spec.name: spec for spec in specs}
    defaults = program.defaults
    drawn = [name for name in by_name if name not in defaults]
    if nothing_given and drawn:
        note(f"note: no inputs given; using random ones (seed {seed})")
        fills = dict.fromkeys(drawn, "random")
    given = {**defaults, **arrays, **{n: generate(by_name[n], fill, seed) for n, fill in fills.items() if n in by_name}}
    unknown = {n: _nothing() for n in fills if n not in by_name}
    return {**fixed, **hosted, **checked_inputs(specs, {**given, **unknown}, where, _MISSING)}


def _nothing() -> np.ndarray:
    import numpy as np

    return np.zeros(0)

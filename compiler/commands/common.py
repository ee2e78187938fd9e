"""What commands share: options, where output goes, progress.

Invariant: a command's result goes to stdout (one JSON object with --json, tables without), everything else to stderr.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ppuc.compiler.precisions import PRECISIONS

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from ppuc.compiler.pipeline.manager import Progress
    from ppuc.compiler.runtime import CompiledProgram
    from ppuc.targets.description import Target

F = TypeVar("F", bound=Callable[..., Any])

SCHEMA = 1
"""Version of the JSON that commands print; it changes when a field changes its meaning or goes."""

_PATIENCE_SECONDS = 3.0
"""Loading the simulator from numba's cache takes less."""

GIVE_ONNX = "give the .onnx file"


def json_option(function: F) -> F:
    """--json."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object instead of tables; docs/json.md describes it."
    )(function)


def target_options(function: F) -> F:
    """--target and --set."""
    function = click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change one number of the target, e.g. --set hbm.gbs=900. Repeatable; `ppuc targets NAME` lists the keys.",
    )(function)
    return click.option(
        "--target",
        "-t",
        default="",
        metavar="NAME|FILE",
        help="A built-in target or a .toml file. Default: zhenwu-m890.",
    )(function)


def compile_options(function: F) -> F:
    """--precision and --dim, with the target's options."""
    return target_options(model_options(function))


def model_options(function: F) -> F:
    """--precision and --dim."""
    function = click.option(
        "--dim",
        "dims",
        metavar="NAME=SIZE",
        multiple=True,
        help="Size of a symbolic dimension (N=1), or of one axis of an input (image:0=1). Repeatable.",
    )(function)
    return click.option(
        "--precision",
        "-p",
        type=click.Choice(list(PRECISIONS)),
        default="model",
        show_default=True,
        help="Format in which matrix products are computed; sums are always f32. "
        + "; ".join(f"{p.name}: {p.help}" for p in PRECISIONS.values())
        + ".",
    )(function)


def host_options(function: F) -> F:
    """--host-ops and --no-host."""
    function = click.option("--no-host", is_flag=True, help="Refuse a model of which a part would run on the host.")(
        function
    )
    return click.option(
        "--host-ops",
        metavar="FILE.py",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Python functions for ops that nobody else knows, marked @ppuc.host_op('domain::Op'). Repeatable.",
    )(function)


def alias_option(function: F) -> F:
    """--alias."""
    return click.option(
        "--alias",
        "alias",
        metavar="PAST=PRESENT",
        multiple=True,
        help="Output PRESENT is input PAST with something appended (a cache of keys or values): it shares the memory "
        "of PAST, and only the new part is written. Repeatable.",
    )(function)


def tune_option(function: F) -> F:
    """--tune."""
    return click.option(
        "--tune",
        metavar="N",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Measure the N best tilings of every matmul and convolution on the simulator and take the fastest; 1: the "
        "cost model decides. What was found is kept, so only the first compilation of a shape takes long.",
    )(function)


def quantization_options(function: F) -> F:
    """--calibrate, --preprocess, --policy, --method, --no-repair."""
    function = click.option(
        "--no-repair", is_flag=True, help="Calibrated weights are rounded to the nearest, and nothing is fitted."
    )(function)
    function = click.option(
        "--policy",
        metavar="FILE.toml",
        type=click.Path(path_type=Path),
        help="Formats and scales of layers, as `ppuc quantize` writes them.",
    )(function)
    function = click.option(
        "--method",
        type=click.Choice(("max", "percentile", "mse", "entropy")),
        default="max",
        show_default=True,
        help="How ranges seen in calibration become scales.",
    )(function)
    function = click.option(
        "--preprocess",
        metavar="FILE.toml",
        type=click.Path(path_type=Path),
        help="How the model wants the images of a --calibrate folder.",
    )(function)
    return click.option(
        "--calibrate",
        metavar="DATA",
        type=click.Path(path_type=Path),
        help="Samples for precisions fp8 and int8: an .npz, or a folder of .npz, .npy or image files. Without them, "
        "activation scales are computed at run time.",
    )(function)


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


def emit(command: str, record: dict[str, Any], as_json: bool, show: Callable[[Console, dict[str, Any]], None]) -> None:
    """Print the command's result."""
    if as_json:
        click.echo(json.dumps(_plain({"command": command, "schema": SCHEMA, **record}), ensure_ascii=False))
        return
    from ppuc.compiler.report.tables import console

    show(console(sys.stdout), record)


def _plain(value: Any) -> Any:
    """`value` as JSON has it: numpy scalars as numbers, paths as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float):
        return number if math.isfinite(number) else None
    return number if isinstance(number, bool | int | str) or number is None else str(number)


def note(text: str) -> None:
    """A remark for the person at the terminal."""
    click.echo(text, err=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A callback that drives a progress bar while stderr is a terminal, and does nothing otherwise."""
    if not sys.stderr.isatty():
        yield lambda name, number, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, step="")
        yield lambda name, number, total: bar.update(task, completed=number, total=total or None, step=name)


@contextmanager
def simulation_bar() -> Iterator[Callable[[str, float], None]]:
    """A callback for the simulator that drives a bar as `progress_bar` does. How long a run is, only its end shows. The
    first simulation on a machine compiles the simulator, and says so."""
    timer = Timer(_PATIENCE_SECONDS, _say_when_compiling)
    timer.daemon = True
    timer.start()
    try:
        with progress_bar("simulate") as progress:
            yield lambda segment, cycles: progress(f"{cycles:,.0f} cycles", 0, 0)
    finally:
        timer.cancel()


def _say_when_compiling() -> None:
    from ppuc.targets.simulator.run import compiled

    if not compiled():
        note("note: compiling the simulator for this machine; that takes about half a minute, and is kept")


def pairs(options: Sequence[str], name: str) -> dict[str, str]:
    """`KEY=VALUE` options as a dict. Raises UsageError for one without `=` or given twice."""
    from ppuc.ir.errors import UsageError

    found: dict[str, str] = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or not key or not value:
            raise UsageError.of(name, "is not of the form NAME=VALUE", got=option)
        if key in found:
            raise UsageError.of(name, f"gives '{key}' twice", got=f"{found[key]} and {value}")
        found[key] = value
    return found


def dim_sizes(options: Sequence[str]) -> dict[str, int]:
    """--dim options. Raises UsageError when a size is no positive number."""
    return {key: _size(key, text) for key, text in pairs(options, "--dim").items()}


def dim_choices(options: Sequence[str]) -> tuple[dict[str, int], ...]:
    """Every combination of the sizes in --dim options, which may give several: `batch=1,8`."""
    from ppuc.compiler.variants import combinations

    given = pairs(options, "--dim")
    return combinations({key: [_size(key, size) for size in text.split(",")] for key, text in given.items()})


def _size(key: str, text: str) -> int:
    from ppuc.ir.errors import UsageError

    if not text.isdecimal():
        raise UsageError.of("--dim", f"the size of '{key}' is not a whole number", got=text, hint=f"e.g. --dim {key}=1")
    return int(text)


def chosen_target(name: str, overrides: Sequence[str]) -> Target:
    """The target of --target with every --set applied."""
    from ppuc.targets.description import default_target, load_target, override

    return override(load_target(name or default_target()), *overrides)


def is_artifact(path: Path) -> bool:
    """Whether a MODEL argument means a compiled program, by its name."""
    return path.suffix == ".ppu"


def read_inputs(inputs_file: Path | None, singles: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays that the options give, and the fills (`random`, `ones`, `zeros`) of inputs to be generated."""
    from ppuc.compiler.inputs import FILLS, read_npy, read_npz

    arrays = read_npz(inputs_file) if inputs_file is not None else {}
    fills: dict[str, str] = {}
    for name, value in pairs(singles, "--input").items():
        if value in FILLS:
            fills[name] = value
        else:
            arrays[name] = read_npy(value)
    return arrays, fills


def complete_inputs(
    program: CompiledProgram, arrays: dict[str, np.ndarray], fills: dict[str, str], seed: int, where: str
) -> dict[str, Any]:
    """What the options give, with fills generated; everything random, and said so, when they give nothing. Inputs that
    were fixed have their value; those that only the host holds must be given."""
    from ppuc.compiler.inputs import checked_inputs, generate, without_fixed

    if program.variants is not None:  # inputs to be padded, whose shapes are nobody's
        return dict(arrays)
    specs, fixed = program.inputs, program.fixed
    foreign = dict(program.plan.host_inputs) if program.plan is not None else {}
    hosted = {name: arrays[name] for name in foreign if name in arrays}
    arrays = {name: a for name, a in without_fixed(fixed, arrays, where).items() if name not in foreign}
    by_name = {spec.name: spec for spec in specs}
    if not arrays and not fills and specs:
        note(f"note: no inputs given; using random ones (seed {seed})")
        fills = dict.fromkeys(by_name, "random")
    given = {**arrays, **{n: generate(by_name[n], fill, seed) for n, fill in fills.items() if n in by_name}}
    unknown = {n: _nothing() for n in fills if n not in by_name}
    return {**fixed, **hosted, **checked_inputs(specs, {**given, **unknown}, where)}


def _nothing() -> np.ndarray:
    import numpy as np

    return np.zeros(0)

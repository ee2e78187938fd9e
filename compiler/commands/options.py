"""The options of commands that compile, and the resulting compile options.

A command takes a set of them with a decorator (`compile_options`, `model_options`, or `compile_arguments` with a choice
of its own) and gets one argument, `arguments`. A new option is a `click.option` here, a field of CompileArguments, and
a line in `CompileArguments.options`.

Invariant: an option without effect is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ppuc.compiler.commands.common import pairs
from ppuc.compiler.precisions import PRECISIONS

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.options import CompileOptions, Quantization
    from ppuc.targets.description import Target

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Share(click.ParamType):  # type: ignore[type-arg]
    """A fraction, as `99%` or `0.99`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            self.fail(f"{text} is not a share: give 99% or 0.99")
        return number


TARGET: tuple[Decorator, ...] = (
    click.option(
        "--target",
        "-t",
        default="",
        metavar="NAME|FILE",
        help="A built-in target or a .toml file. Default: zhenwu-m890.",
    ),
    click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change one number of the target, e.g. --set hbm.gbs=900. Repeatable; `ppuc targets NAME` lists the keys.",
    ),
)

PRECISION = click.option(
    "--precision",
    "-p",
    type=click.Choice(list(PRECISIONS)),
    default="model",
    show_default=True,
    help="Format of matrix products' operands; sums are always f32. "
    + "; ".join(f"{p.name}: {p.help}" for p in PRECISIONS.values())
    + ".",
)

DIM = click.option(
    "--dim",
    "dims",
    metavar="NAME=SIZE",
    multiple=True,
    help="Size of a symbolic dimension (N=1), or of one axis of an input (image:0=1). Repeatable.",
)

CALIBRATE = click.option(
    "--calibrate",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help="Samples for precisions fp8 and int8: an .npz, or a folder of .npz, .npy or image files. Without them, "
    "activation scales are computed at run time.",
)

CALIBRATION: tuple[Decorator, ...] = (
    click.option(
        "--preprocess",
        metavar="FILE.toml",
        type=click.Path(path_type=Path),
        help="Preprocessing of images in the data (docs/data.md).",
    ),
    click.option(
        "--method",
        type=click.Choice(("max", "percentile", "mse", "entropy")),
        default="max",
        show_default=True,
        help="How calibrated ranges become scales.",
    ),
    click.option(
        "--headroom", type=click.FloatRange(1.0, 64.0), help="Headroom of f8 scales above the largest number seen."
    ),
    click.option("--power-of-two", is_flag=True, help="Restrict scales to powers of two."),
    click.option("--no-repair", is_flag=True, help="Round calibrated weights to nearest, without fitting them."),
    click.option("--force", is_flag=True, help="Accept 8 bits that ruin an output on held-out samples."),
)

JUDGING: tuple[Decorator, ...] = (
    click.option(
        "--outputs",
        metavar="NAME[=WEIGHT],...",
        multiple=True,
        help="Judge only these outputs, by weight: auxiliary heads and attention maps do not count. Repeatable.",
    ),
    click.option(
        "--class-axis",
        metavar="[OUTPUT=]AXIS",
        multiple=True,
        help="The axis of an output along which its classes lie, for agreement. Default: that of the model's softmax "
        "or argmax, or the channels. Repeatable.",
    ),
)

METRIC = click.option(
    "--metric",
    metavar="METRIC",
    help="What the task measures; larger is better. A built-in metric with parameters (top-k,k=5), a .toml file with "
    "both (docs/metrics.md), or a .py file with metric(outputs, inputs) -> float on lists of dicts of arrays, one per "
    "sample; arrays in the data other than inputs (labels) come with the inputs.",
)

POLICY = click.option(
    "--policy",
    metavar="FILE.toml",
    type=click.Path(path_type=Path),
    help="Formats and scales of layers, as written by `ppuc quantize`.",
)

ALIAS = click.option(
    "--alias",
    metavar="PAST=PRESENT",
    multiple=True,
    help="Output PRESENT is input PAST with elements appended (a key or value cache): it shares the memory of "
    "PAST, and only the new part is written. Repeatable.",
)

TUNE = click.option(
    "--tune",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Measure the N best tilings of every matmul and convolution on the simulator and take the fastest; 1: the "
    "cost model decides. Results are cached, so only the first compilation of a shape is slow.",
)

PIPELINE: tuple[Decorator, ...] = (
    click.option(
        "--pipeline",
        metavar="NAME|PASS,PASS",
        default="default",
        show_default=True,
        help="The passes to run: a pipeline (`ppuc passes` lists them; none is the shortest that runs), or passes as "
        "`ppuc opt -p` takes them.",
    ),
    click.option(
        "--disable-pass",
        metavar="NAME",
        multiple=True,
        help="Disable a pass. Repeatable; required passes cannot be disabled.",
    ),
)

LENIENT = click.option(
    "--lenient",
    is_flag=True,
    help="Accept a model that violates ONNX, with its most likely meaning, and warn about each violation.",
)

HOST: tuple[Decorator, ...] = (
    click.option(
        "--host-ops",
        metavar="FILE.py",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Python functions for custom ops, marked @ppuc.host_op('domain::Op'). Repeatable.",
    ),
    click.option("--no-host", is_flag=True, help="Refuse a model if part of it would run on the host."),
)


@dataclass(frozen=True, slots=True)
class CompileArguments:
    """The compile options of a command line; `explicit` maps the fields of given ones to their spelling. A command that
    takes only some of them leaves the others at their defaults. `data` are samples to run, of `ppuc evaluate`."""

    target: str = ""
    overrides: tuple[str, ...] = ()
    precision: str = "model"
    dims: tuple[str, ...] = ()
    calibrate: Path | None = None
    preprocess: Path | None = None
    method: str = "max"
    headroom: float | None = None
    power_of_two: bool = False
    no_repair: bool = False
    force: bool = False
    outputs: tuple[str, ...] = ()
    class_axis: tuple[str, ...] = ()
    policy: Path | None = None
    alias: tuple[str, ...] = ()
    tune: int = 1
    pipeline: str = "default"
    disable_pass: tuple[str, ...] = ()
    host_ops: tuple[Path, ...] = ()
    no_host: bool = False
    lenient: bool = False
    data: Path | None = None
    explicit: Mapping[str, str] = field(default_factory=dict)

    @property
    def names_target(self) -> bool:
        """Whether a target was given."""
        return bool(self.target or self.overrides)

    def machine(self, default: str = "") -> Target:
        """The target of --target (else the one called `default`) with every --set applied."""
        return chosen_target(self.target or default, self.overrides)

    def sizes(self) -> dict[str, int]:
        """--dim, one size each."""
        return dim_sizes(self.dims)

    def choices(self) -> tuple[dict[str, int], ...]:
        """Every combination of the sizes in --dim, which may give several: `batch=1,8`."""
        from ppuc.compiler.program.variants import combinations

        given = pairs(self.dims, "--dim")
        return combinations({key: [_size(key, size) for size in text.split(",")] for key, text in given.items()})

    def options(
        self,
        arrays: Mapping[str, np.ndarray] | None = None,
        *,
        target: Target | None = None,
        dims: Mapping[str, int] | None = None,
        labels: bool = False,
    ) -> CompileOptions:
        """The options for a model with input `arrays`, whose shapes bind open dimensions and whose values may be fixed.
        `target` and `dims` override those of the command line; `labels`: samples hold more than inputs. Raises
        PpucError for contradictory options."""
        from ppuc.compiler.options import CompileOptions, HostPolicy

        arrays = arrays or {}
        return CompileOptions(
            target or self.machine(),
            self.precision,
            self.sizes() if dims is None else dims,
            {name: array.shape for name, array in arrays.items()},
            arrays,
            pairs(self.alias, "--alias"),
            self.tune,
            self.pipeline,
            self.disable_pass,
            self._quantization(labels),
            HostPolicy(not self.no_host, self.host_ops),
            lenient=self.lenient,
        )

    def _quantization(self, labels: bool) -> Quantization:
        from ppuc.compiler.options import Calibration, Quantization
        from ppuc.compiler.quantization.criteria import Judging
        from ppuc.compiler.quantization.data import Data
        from ppuc.compiler.quantization.images import read_preprocessing

        data = None
        if self.calibrate is not None:
            how = read_preprocessing(self.preprocess) if self.preprocess is not None else None
            data = Data(self.calibrate, how, labels=labels)
        else:
            calibrating = ("method", "headroom", "power_of_two", "force")
            images = ("preprocess",) if self.data is None else ()
            self.refuse((*calibrating, *images), "has no effect without --calibrate")
        calibration = Calibration(self.method, self.headroom, self.power_of_two)
        judging = Judging(self.outputs, self.class_axis)
        return Quantization(data, self.policy, calibration, not self.no_repair, judging, self.force)

    def refuse(
        self, names: Collection[str], what: str, got: object = None, expected: object = None, hint: str | None = None
    ) -> None:
        """Raise UsageError about the first option of these names that was given."""
        from ppuc.ir.errors import UsageError

        for name, written in self.explicit.items():
            if name in names:
                raise UsageError.of(written, what, got=got, expected=expected, hint=hint)

    def refuse_all_but(self, names: Collection[str], what: str, got: object = None, hint: str | None = None) -> None:
        """Raise UsageError about the first given option that is not one of these."""
        self.refuse({f.name for f in fields(self)} - set(names), what, got, hint=hint)


def compile_arguments(*options: Decorator) -> Decorator:
    """A decorator that passes these options, and the command's own that are fields of CompileArguments, as one
    argument."""
    names = [f.name for f in fields(CompileArguments) if f.name != "explicit"]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**given: Any) -> Any:
            context = click.get_current_context()
            written = {p.name: next(o for o in p.opts if o.startswith("--")) for p in _options_of(context)}
            own = {name: given.pop(name) for name in names if name in given}
            default = ParameterSource.DEFAULT
            explicit = {n: written[n] for n in own if context.get_parameter_source(n) is not default}
            return function(arguments=CompileArguments(**own, explicit=explicit), **given)

        return together(options)(command)

    return decorate


def together(options: Sequence[Decorator]) -> Decorator:
    """Give a command `options`, which its help lists in their order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _options_of(context: click.Context) -> Sequence[click.Parameter]:
    return [p for p in context.command.params if isinstance(p, click.Option)]


QUANTIZATION: tuple[Decorator, ...] = (CALIBRATE, *CALIBRATION, POLICY)
MODEL: tuple[Decorator, ...] = (PRECISION, DIM, *QUANTIZATION, ALIAS, TUNE, *PIPELINE, *HOST, LENIENT)

model_options = compile_arguments(*MODEL)
"""All compile options except the target."""

compile_options = compile_arguments(*TARGET, *MODEL)
"""All compile options."""


def chosen_target(name: str, overrides: Sequence[str]) -> Target:
    """The target of that name or file ("": the default one) with every --set applied."""
    from ppuc.targets.description import override, resolve_target

    return override(resolve_target(name), *overrides)


def dim_sizes(options: Sequence[str]) -> dict[str, int]:
    """Parse --dim options. Raises UsageError unless sizes are positive integers."""
    return {key: _size(key, text) for key, text in pairs(options, "--dim").items()}


def _size(key: str, text: str) -> int:
    from ppuc.ir.errors import UsageError

    if not text.isdecimal():
        raise UsageError.of("--dim", f"the size of '{key}' is not a whole number", got=text, hint=f"e.g. --dim {key}=1")
    return int(text)

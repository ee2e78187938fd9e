"""Compile options: one record that the API, the commands and all parts of the compiler pass on whole.

`CompileOptions`, with the model, determines every byte of the program. `Instrumentation` observes the compilation.

Invariants: a CompileOptions is consistent: everything that does not depend on the model is validated on construction.
No byte of a program depends on instrumentation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.alias import aliases_of
from ppuc.compiler.precisions import PRECISIONS, Precision, named_precision
from ppuc.compiler.quantization.criteria import Judging
from ppuc.compiler.quantization.data import FEW
from ppuc.ir.errors import UsageError
from ppuc.targets.description import Target, resolve_target

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.quantization.data import Data
    from ppuc.ir.module import Module

FEW_HEADROOM = 4.0
"""Of f8 scales from fewer than FEW samples; a power of two leaves the rounding errors as they are."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a starting step, its number and the total (0: unknown)."""

PIPELINE = "pipeline"
"""Key of an artifact's metadata: the specs of the passes that made the program, unless they are the default ones."""

_PRECISION, _TUNE = "precision", "tune"


@dataclass(frozen=True, slots=True)
class Calibration:
    """How ranges become scales. `method` is max, percentile, mse or entropy (quantization/scales.py); `headroom` widens
    the range of floating-point formats (None: as the number of samples asks for); scales become powers of two on
    request."""

    method: str = "max"
    headroom: float | None = None
    power_of_two: bool = False

    def for_samples(self, count: int) -> Calibration:
        """With the headroom decided: few samples say little about ranges."""
        if self.headroom is not None:
            return self
        return replace(self, headroom=FEW_HEADROOM if count < FEW else 1.0)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How layers are quantized, at precisions that quantize. The file `policy` decides all layers; else `data` gives
    scales, found as `calibration` says, and with `repair` weights are changed where the outputs gain; else scales are
    computed at run time. `judging` says what counts when outputs are compared; with `force` a result that ruins them
    is accepted."""

    data: Data | None = None
    policy: Path | None = None
    calibration: Calibration = field(default_factory=Calibration)
    repair: bool = True
    judging: Judging = field(default_factory=Judging)
    force: bool = False

    def check(self, precision: Precision) -> None:
        """Raise UsageError for contradictions, and for options without effect at `precision`."""
        if not precision.quantized:
            for name, given in (("--calibrate", self.data), ("--policy", self.policy)):
                if given is not None:
                    quantized = ", ".join(p.name for p in PRECISIONS.values() if p.quantized)
                    raise UsageError.of(name, "has no effect at this precision", got=precision.name, expected=quantized)
        if self.data is not None and self.policy is not None:
            what = "decides the scales, so there is nothing to calibrate"
            raise UsageError.of("--policy", what, hint="leave out one")
        if not self.repair and (self.data is None or precision.weights_only):
            got = f"precision {precision.name}" + ("" if self.data is not None else " without --calibrate")
            wanted = "fp8 or int8 with --calibrate"
            raise UsageError.of("--no-repair", "has no effect where nothing is repaired", got=got, expected=wanted)


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Whether nodes that the PPU cannot run may go to the host, and the Python files with functions for custom
    `ops`."""

    allowed: bool = True
    ops: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for file in self.ops:
            if not os.path.isfile(file):
                raise UsageError.of("--host-ops", "there is no such file", got=file, expected="a Python file")


@dataclass(frozen=True, slots=True, eq=False)
class CompileOptions:
    """Everything that determines a program, besides the model.

    `target` is the machine, `precision` one of PRECISIONS. `dims` binds symbols (`N`) or single axes (`input:axis`),
    `shapes` whole inputs; `values` are those of inputs that may be fixed: the ones that sizes depend on are. `aliases`
    maps an input to the output that extends it and shares its memory. `tune` is the number of tilings of each matmul
    and convolution to measure on the simulator. `pipeline` is a pipeline's name, or a list of pass specs, and
    `disabled` are passes to disable. With `keep_layers`, every kernel's result is also an output. `lenient` accepts a
    model that violates ONNX, with its most likely meaning. Raises UsageError for invalid or contradictory options."""

    target: Target = field(default_factory=resolve_target)
    precision: str = "model"
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    tune: int = 1
    pipeline: str = "default"
    disabled: tuple[str, ...] = ()
    quantization: Quantization = field(default_factory=Quantization)
    host: HostPolicy = field(default_factory=HostPolicy)
    keep_layers: bool = False
    lenient: bool = False

    def __post_init__(self) -> None:
        self.quantization.check(named_precision(self.precision))
        if self.tune < 1:
            raise UsageError.of("--tune", "is no number of tilings", got=self.tune, expected="1 or more")

    def recorded(self) -> dict[str, str]:
        """The options that modules and artifacts record, for run-time compilation."""
        return {_PRECISION: self.precision, **({_TUNE: str(self.tune)} if self.tune > 1 else {})}

    @staticmethod
    def of_record(meta: Mapping[str, str], target: Target, host: HostPolicy | None = None) -> CompileOptions:
        """The options in an artifact's metadata. Raises UsageError for invalid ones."""
        tries = meta.get(_TUNE, "1")
        if not tries.isdecimal():
            raise UsageError.of("--tune", "is no number of tilings", got=tries, expected="1 or more")
        return CompileOptions(
            target,
            precision=meta.get(_PRECISION, "model"),
            aliases=aliases_of(meta),
            tune=int(tries),
            pipeline=meta.get(PIPELINE, "default"),
            host=host or HostPolicy(),
        )


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """What watches a compilation. `progress` is told what starts. `dump` is a folder for the module after every pass.
    With `check_passes` the module is executed after every pass and compared, on `inputs` by ONNX name (None: random
    ones). `studied` is called with the record of a quantization's accuracy and speed-up, which is measured only if it
    is set. `warn` receives the violations that a lenient compilation accepts (None: Python's warnings). `seen` is
    called with the name of every step that changes the module, and the module after it."""

    progress: Progress | None = None
    dump: Path | None = None
    check_passes: bool = False
    inputs: Mapping[str, np.ndarray] | None = None
    studied: Callable[[dict[str, Any]], None] | None = None
    warn: Callable[[str], object] | None = None
    seen: Callable[[str, Module], None] | None = None

    def quantizing(self, what: str) -> None:
        """Report a step of quantization."""
        if self.progress is not None:
            self.progress(f"quantize: {what}", 0, 0)

    def within(self, folder: str) -> Instrumentation:
        """The same instrumentation, with the dump in a subfolder."""
        return replace(self, dump=self.dump / folder) if self.dump is not None else self


UNWATCHED = Instrumentation()
"""No instrumentation."""

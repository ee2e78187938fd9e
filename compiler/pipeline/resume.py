"""Resumes from a dump: reads a module back and finds its remaining passes.

Invariant: a module read back from a dump compiles to the same bytes as the one that was dumped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.chosen import named_pipeline, recorded, without
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.dump import read_constants
from ppuc.compiler.pipeline.pass_options import build_pass, specs_of
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.ir.errors import TextError, UsageError
from ppuc.ir.files import read_text
from ppuc.ir.module import Module
from ppuc.targets.description import Target


def read_module(path: str | Path) -> Module:
    """Parse and verify a `.ppir` file, with constants from the `constants` folder beside it. Raises TextError."""
    from ppuc.ir.text import parse_module
    from ppuc.ir.verify import VerificationError, verify_module

    file = Path(path)
    text = read_text(file, TextError, "a .ppir text")
    module = parse_module(text, read_constants(file.parent), str(file))
    try:
        verify_module(module)
    except VerificationError as error:
        raise TextError.of(str(file), "breaks the rules of the IR", got=str(error)) from error
    return module


def recorded_pipeline(module: Module, where: str) -> tuple[Pass, ...]:
    """The full pipeline that `module`, read from `where`, records. Raises UsageError for an unknown pass."""
    return tuple(build_pass(spec, where) for spec in module.pipeline) or PIPELINE


def rerouted(module: Module, where: str, pipeline: str = "", disabled: Sequence[str] = ()) -> Module:
    """`module`, read from `where`, with its pipeline set to `pipeline` ("" keeps the recorded one) without the
    `disabled` passes. Raises UsageError."""
    passes = own = recorded_pipeline(module, where)
    if pipeline:
        passes = (*(step for step in own if isinstance(step, Quantize)), *named_pipeline(pipeline))
    return replace(module, pipeline=recorded(without(passes, disabled, pipeline or "as recorded")))


def remaining_passes(module: Module, where: str) -> tuple[Pass, ...]:
    """The passes of its pipeline that `module` has yet to run. Raises UsageError if the passes it has run are not a
    prefix of the pipeline."""
    passes = recorded_pipeline(module, where)
    specs, count = specs_of(passes), len(module.done)
    if specs[:count] != module.done:
        raise UsageError.of(
            where,
            "the recorded passes are not a prefix of the pipeline, so the remaining passes are unknown",
            got=", ".join(module.done),
            expected=", ".join(specs[:count]),
            hint="name the passes to run with -p",
        )
    return passes[count:]


def check_target(module: Module, target: Target, where: str) -> None:
    """Raise UsageError when `module` was made for another machine than `target`."""
    if module.target_hash != target.hash:
        raise UsageError.of(
            where,
            "was made for another target",
            got=f"{module.target} {module.target_hash}",
            expected=f"{target.name} {target.hash}",
            hint="give the same --target and --set as when it was compiled",
        )

"""The program of a .ppu or .ppir file beside the model it was compiled from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppuc.compiler.commands.common import progress_bar
from ppuc.compiler.commands.options import CompileArguments
from ppuc.compiler.commands.program import program_of
from ppuc.compiler.precisions import PRECISIONS

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.program.compiled import CompiledProgram

MADE = (".ppu", ".ppir")
"""Extensions of what is compiled, wholly or in part."""


def program_beside(
    path: Path, model: Path, arguments: CompileArguments, arrays: dict[str, np.ndarray]
) -> CompiledProgram:
    """The program in a .ppu, or a .ppir after the rest of its passes, to be compared with `model`. Raises UsageError if
    it was compiled from another file, or if layers are quantized: what that allows is known only while compiling."""
    from dataclasses import replace

    from ppuc.compiler.frontend.enter import model_digest
    from ppuc.compiler.frontend.source import read_source
    from ppuc.ir.errors import UsageError

    program = program_of(path, arguments, arrays) if path.suffix == ".ppu" else _finished(path, arguments)
    read_source(model)
    digest, made_from = model_digest(model, None), program.artifact.meta.get("model_sha256", "")
    if digest != made_from:
        raise UsageError.of(
            str(path),
            f"was not compiled from {model}",
            got=f"sha256 {digest}",
            expected=made_from or "a program that was compiled from a file",
            hint="give the file as it was when it was compiled",
        )
    if PRECISIONS[program.options.precision].quantized:
        what = "has quantized layers, whose errors are known only while compiling"
        hint = f"`ppuc verify {model}` with the options that it was compiled with"
        raise UsageError.of(str(path), what, got=f"precision {program.options.precision}", hint=hint)
    return replace(program, source=model)


def _finished(path: Path, arguments: CompileArguments) -> CompiledProgram:
    """The program of a dumped step, after the rest of its passes."""
    from ppuc.compiler.options import CompileOptions
    from ppuc.compiler.pipeline.link import link
    from ppuc.compiler.pipeline.manager import Run
    from ppuc.compiler.pipeline.quantize_step import Quantize
    from ppuc.compiler.pipeline.resume import check_target, read_module, remaining_passes
    from ppuc.compiler.program.compiled import CompiledProgram
    from ppuc.ir.errors import UsageError

    arguments.refuse_all_but(("target", "overrides"), "has no effect on a dumped program", got=path)
    module = read_module(path)
    machine = arguments.machine(module.target)
    check_target(module, machine, str(path))
    steps = remaining_passes(module, str(path))
    if steps and isinstance(steps[0], Quantize):
        hint = "take a step after it"
        raise UsageError.of(str(path), "is not quantized yet", hint=hint)
    with progress_bar("compile") as progress:
        artifact = link(Run(machine, steps, progress=progress).run(module), machine)
    return CompiledProgram(artifact, CompileOptions.of_record(artifact.meta, machine))

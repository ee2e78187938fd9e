"""ppuc inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option
from ppuc.compiler.commands.options import (
    ALIAS,
    DIM,
    PRECISION,
    QUANTIZATION,
    TARGET,
    CompileArguments,
    compile_arguments,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.report.memory import MemoryPlan


@click.command(
    "inspect",
    short_help="What an .onnx, .ppir or .ppu file holds.",
    epilog="Examples:\n\n  ppuc inspect net.ppu\n\n  ppuc inspect steps/12-tile.ppir --json\n\n"
    "  ppuc inspect net.onnx --fusion --dim N=1\n\n  ppuc inspect net.onnx --memory plan.svg -t ppu-tiny",
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--fusion",
    is_flag=True,
    help="Say for each tensor of FILE.onnx whether it stays inside a kernel, and why not; compile options apply.",
)
@click.option(
    "--memory",
    "drawing",
    type=click.Path(path_type=Path),
    metavar="OUT.svg",
    help="Draw which tensor holds which bytes of l2 and hbm, and when; compile options apply to an .onnx.",
)
@compile_arguments(*TARGET, PRECISION, DIM, *QUANTIZATION, ALIAS)
@json_option
def inspect_command(
    file: Path,
    fusion: bool,
    drawing: Path | None,
    arguments: CompileArguments,
    as_json: bool,
) -> None:
    """Describe FILE: a model (.onnx), a dumped step (.ppir) or a compiled program (.ppu)."""
    from ppuc.compiler.report import contents
    from ppuc.ir.errors import UsageError

    if fusion:
        from ppuc.compiler.report.fusion import fusion_record, show

        if file.suffix != ".onnx":
            raise UsageError.of("--fusion", "explains what is done to a model", got=str(file), expected="an .onnx file")
        found = fusion_record(file, arguments.options())
        emit("inspect", {"file": str(file), **found}, as_json, show)
        return
    if drawing is not None:
        plan = _memory_plan(file, arguments)
        from ppuc.compiler.report.memory import show as show_memory
        from ppuc.compiler.report.memory_svg import memory_svg

        drawing.write_text(memory_svg(plan), encoding="utf-8")
        emit("inspect", {"file": str(file), "drawing": str(drawing), **plan.record()}, as_json, show_memory)
        return
    if arguments.explicit:
        hint = "compile options go with --fusion or --memory"
        raise UsageError.of("inspect", "describes the file as it is", hint=hint)
    readers = {".onnx": contents.model_record, ".ppir": contents.module_record, ".ppu": contents.artifact_record}
    if file.suffix not in readers:
        raise UsageError.of(str(file), "has a name that says nothing of its kind", expected=", ".join(readers))
    emit("inspect", {"file": str(file), **readers[file.suffix](file)}, as_json, _show)


def _memory_plan(file: Path, arguments: CompileArguments) -> MemoryPlan:
    """The plan in a dump or a program, or the one that compiling a model would make."""
    from ppuc.compiler.report import memory
    from ppuc.ir.errors import UsageError

    if file.suffix == ".onnx":
        return memory.plan_of_model(file, arguments.options())
    if file.suffix not in (".ppir", ".ppu"):
        raise UsageError.of(str(file), "has a name that says nothing of its kind", expected=".onnx, .ppir, .ppu")
    late = "has no effect: --memory shows a compiled plan as it is"
    arguments.refuse_all_but(("target", "overrides"), late, got=file, hint="give the .onnx file")
    if file.suffix == ".ppir":
        from ppuc.compiler.pipeline.resume import read_module

        return memory.plan_of_dump(file, arguments.machine(read_module(file).target))
    from ppuc.compiler.runtime import load_program

    program = load_program(file, arguments.machine() if arguments.names_target else None)
    return memory.plan_of_program(program.artifact.program, program.target)


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.contents import show

    show(out, record)

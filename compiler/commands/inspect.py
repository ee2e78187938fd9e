"""ppuc inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import chosen_target, compile_options, dim_sizes, emit, json_option

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
@compile_options
@json_option
def inspect_command(
    file: Path,
    fusion: bool,
    drawing: Path | None,
    target: str,
    overrides: tuple[str, ...],
    precision: str,
    dims: tuple[str, ...],
    as_json: bool,
) -> None:
    """Describe FILE: a model (.onnx), a dumped step (.ppir) or a compiled program (.ppu)."""
    from ppuc.compiler.report import contents
    from ppuc.ir.errors import UsageError

    if fusion:
        from ppuc.compiler.report.fusion import fusion_record, show

        if file.suffix != ".onnx":
            raise UsageError.of("--fusion", "explains what is done to a model", got=str(file), expected="an .onnx file")
        found = fusion_record(file, chosen_target(target, overrides), precision, dim_sizes(dims))
        emit("inspect", {"file": str(file), **found}, as_json, show)
        return
    if drawing is not None:
        plan = _memory_plan(file, target, overrides, precision, dims)
        from ppuc.compiler.report.memory import show as show_memory
        from ppuc.compiler.report.memory_svg import memory_svg

        drawing.write_text(memory_svg(plan), encoding="utf-8")
        emit("inspect", {"file": str(file), "drawing": str(drawing), **plan.record()}, as_json, show_memory)
        return
    if target or overrides or dims or precision != "model":
        hint = "compile options go with --fusion or --memory"
        raise UsageError.of("inspect", "describes the file as it is", hint=hint)
    readers = {".onnx": contents.model_record, ".ppir": contents.module_record, ".ppu": contents.artifact_record}
    if file.suffix not in readers:
        raise UsageError.of(str(file), "has a name that says nothing of its kind", expected=", ".join(readers))
    emit("inspect", {"file": str(file), **readers[file.suffix](file)}, as_json, _show)


def _memory_plan(
    file: Path, target: str, overrides: tuple[str, ...], precision: str, dims: tuple[str, ...]
) -> MemoryPlan:
    """The plan in a dump or a program, or the one that compiling a model would make."""
    from ppuc.compiler.report import memory
    from ppuc.ir.errors import UsageError

    if file.suffix == ".onnx":
        return memory.plan_of_model(file, chosen_target(target, overrides), precision, dim_sizes(dims))
    if file.suffix not in (".ppir", ".ppu"):
        raise UsageError.of(str(file), "has a name that says nothing of its kind", expected=".onnx, .ppir, .ppu")
    if dims or precision != "model":
        raise UsageError.of("--memory", "shows a compiled plan as it is", got=str(file), hint="give the .onnx file")
    if file.suffix == ".ppir":
        from ppuc.compiler.pipeline.resume import read_module

        named = target or read_module(file).target
        return memory.plan_of_dump(file, chosen_target(named, overrides))
    from ppuc.compiler.runtime import load_program

    program = load_program(file, chosen_target(target, overrides) if target or overrides else None)
    return memory.plan_of_program(program.artifact.program, program.target)


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.contents import show

    show(out, record)

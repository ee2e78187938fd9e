"""ppuc inspect."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, remarks_option
from ppuc.compiler.commands.options import (
    ALIAS,
    DIM,
    PIPELINE,
    PRECISION,
    QUANTIZATION,
    TARGET,
    CompileArguments,
    compile_arguments,
)
from ppuc.compiler.commands.outputs import OutputFile, keep_input

if TYPE_CHECKING:
    from ppuc.compiler.passes.remarks import Remark
    from ppuc.compiler.report.memory import MemoryPlan


@click.command(
    "inspect",
    short_help="Describe an .onnx, .ppir or .ppu file, and compiler decisions.",
    epilog="Examples:\n\n  ppuc inspect net.ppu\n\n  ppuc inspect steps/24-tile.ppir --json\n\n"
    "  ppuc inspect net.onnx --fusion --dim N=1\n\n  ppuc inspect net.ppu --remarks missed\n\n"
    "  ppuc inspect net.onnx --memory plan.svg -t ppu-tiny",
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--fusion",
    is_flag=True,
    help="Show for each tensor whether it stays inside a kernel, and if not, why; compile options apply to an .onnx.",
)
@click.option(
    "--memory",
    "drawing",
    type=OutputFile(),
    metavar="OUT.svg",
    help="Draw the memory plan: live ranges and addresses in l2 and hbm; compile options apply to an .onnx.",
)
@click.option("--check", "whole", is_flag=True, help="Read all of FILE.ppu, including weights, and verify its program.")
@remarks_option
@compile_arguments(*TARGET, PRECISION, DIM, *QUANTIZATION, ALIAS, *PIPELINE)
@json_option
def inspect_command(
    file: Path,
    fusion: bool,
    drawing: Path | None,
    remarks: str | None,
    whole: bool,
    arguments: CompileArguments,
    as_json: bool,
) -> None:
    """Describe FILE: a model (.onnx), a dumped step (.ppir) or a compiled program (.ppu).

    Remarks come from the program, from the manifest of the dump (FILE may be its folder), or from compiling the model.
    """
    from ppuc.compiler.report import contents
    from ppuc.ir.errors import UsageError

    if sum((fusion, drawing is not None, remarks is not None)) > 1:
        raise UsageError.of("inspect", "gives one report at a time", expected="--fusion, --memory or --remarks")
    if whole and (fusion or drawing is not None or remarks is not None or file.suffix != ".ppu"):
        raise UsageError.of("--check", "reads all of a compiled program", got=str(file), expected="a .ppu file alone")
    if fusion or remarks is not None:
        _report(file, arguments, remarks, as_json)
    elif drawing is not None:
        _draw(file, arguments, drawing, as_json)
    elif arguments.explicit:
        hint = "compile options go with --fusion, --memory or --remarks"
        raise UsageError.of("inspect", "describes the file as it is", hint=hint)
    else:
        readers: dict[str, Callable[[Path], dict[str, Any]]] = {
            ".onnx": contents.model_record,
            ".ppir": contents.module_record,
            ".ppu": partial(contents.artifact_record, whole=whole),
        }
        if file.suffix not in readers:
            raise UsageError.of(str(file), "unsupported file extension", expected=", ".join(readers))
        emit("inspect", {"file": str(file), **readers[file.suffix](file)}, as_json, contents.show)


def _report(file: Path, arguments: CompileArguments, filter: str | None, as_json: bool) -> None:
    """Print the report on fusion, or the remarks that match `filter`."""
    from ppuc.compiler.driver import compile_model
    from ppuc.compiler.report import fusion, remarks

    if file.suffix == ".onnx":
        options = arguments.options()
        found = remarks.RecordedRemarks(options.target.name, options.precision, compile_model(file, options).remarks)
    else:
        own = ("dims",) if file.suffix == ".ppu" else ()  # they select one of its variants
        _refuse_all_but(own, arguments, file, "--fusion" if filter is None else "--remarks")
        found = remarks.recorded_remarks(file, arguments.sizes())
    about = {"file": str(file), "target": found.target, "precision": found.precision}
    if filter is None:
        emit("inspect", {**about, **fusion.fusion_record(found.remarks)}, as_json, fusion.show)
    else:
        emit("inspect", {**about, **remarks.remarks_record(found.remarks, filter)}, as_json, remarks.show)


def _draw(file: Path, arguments: CompileArguments, drawing: Path, as_json: bool) -> None:
    """Draw the memory plan, and print it with the tensors that did not fit l2."""
    from ppuc.compiler.report import memory
    from ppuc.compiler.report.memory_svg import memory_svg
    from ppuc.ir.files import write_file

    keep_input(file, drawing)
    plan, remarks = _memory_plan(file, arguments)
    write_file(drawing, memory_svg(plan).encode())
    record = {"file": str(file), "drawing": str(drawing), **plan.record(), "refused": memory.refused(remarks)}
    emit("inspect", record, as_json, memory.show)


def _memory_plan(file: Path, arguments: CompileArguments) -> tuple[MemoryPlan, tuple[Remark, ...]]:
    """The plan in a dump or a program, or from compiling a model, and the passes' remarks."""
    from ppuc.compiler.report import memory
    from ppuc.ir.errors import UsageError

    if file.suffix == ".onnx":
        from ppuc.compiler.driver import compile_model

        options = arguments.options()
        made = compile_model(file, options)
        if len(made.modules) > 1 or made.module is None:
            return memory.plan_of_program(made.artifact.program, options.target), made.remarks
        return memory.plan_of_module(made.module, options.target), made.remarks
    if file.suffix not in (".ppir", ".ppu"):
        raise UsageError.of(str(file), "unsupported file extension", expected=".onnx, .ppir, .ppu")
    _refuse_all_but(("target", "overrides"), arguments, file, "--memory")
    if file.suffix == ".ppir":
        from ppuc.compiler.pipeline.dump import read_manifest
        from ppuc.compiler.pipeline.resume import read_module

        manifest = read_manifest(file.parent)
        remarks = manifest.remarks_until(file.name) if manifest is not None else ()
        return memory.plan_of_dump(file, arguments.machine(read_module(file).target)), remarks
    from ppuc.compiler.program.compiled import load_program

    program = load_program(file, arguments.machine if arguments.names_target else None)
    return memory.plan_of_program(program.artifact.program, program.target), program.remarks


def _refuse_all_but(names: tuple[str, ...], arguments: CompileArguments, file: Path, report: str) -> None:
    """Raise UsageError about compile options given for a file that is already compiled."""
    late = f"has no effect: {report} shows a compiled plan as it is"
    arguments.refuse_all_but(names, late, got=file, hint="give the .onnx file")

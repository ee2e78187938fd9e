"""ppuc inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import chosen_target, compile_options, dim_sizes, emit, json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "inspect",
    short_help="What an .onnx, .ppir or .ppu file holds.",
    epilog="Examples:\n\n  ppuc inspect net.ppu\n\n  ppuc inspect steps/12-tile.ppir --json\n\n"
    "  ppuc inspect net.onnx --fusion --dim N=1",
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--fusion",
    is_flag=True,
    help="Say for each tensor of FILE.onnx whether it stays inside a kernel, and why not; compile options apply.",
)
@compile_options
@json_option
def inspect_command(
    file: Path,
    fusion: bool,
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
    if target or overrides or dims or precision != "model":
        raise UsageError.of("inspect", "describes the file as it is", hint="compile options go with --fusion")
    readers = {".onnx": contents.model_record, ".ppir": contents.module_record, ".ppu": contents.artifact_record}
    if file.suffix not in readers:
        raise UsageError.of(str(file), "has a name that says nothing of its kind", expected=", ".join(readers))
    emit("inspect", {"file": str(file), **readers[file.suffix](file)}, as_json, _show)


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.contents import show

    show(out, record)

"""ppuc inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "inspect",
    short_help="What an .onnx, .ppir or .ppu file holds.",
    epilog="Examples:\n\n  ppuc inspect net.ppu\n\n  ppuc inspect steps/12-tile.ppir --json",
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@json_option
def inspect_command(file: Path, as_json: bool) -> None:
    """Describe FILE: a model (.onnx), a dumped step (.ppir) or a compiled program (.ppu)."""
    from ppuc.compiler.report import contents
    from ppuc.ir.errors import UsageError

    readers = {".onnx": contents.model_record, ".ppir": contents.module_record, ".ppu": contents.artifact_record}
    if file.suffix not in readers:
        raise UsageError.of(str(file), "has a name that says nothing of its kind", expected=", ".join(readers))
    emit("inspect", {"file": str(file), **readers[file.suffix](file)}, as_json, _show)


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.contents import show

    show(out, record)

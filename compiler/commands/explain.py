"""ppuc explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.recorded import recorded_run, refuse_options_on_records

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "explain",
    short_help="Show what became of one ONNX node, pass by pass.",
    epilog="Examples:\n\n  ppuc explain net.onnx Conv_12\n\n  ppuc explain run.json /layer1/conv1/Conv",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.argument("node", metavar="NODE")
@compile_options
@json_option
def explain_command(model: Path, node: str, arguments: CompileArguments, as_json: bool) -> None:
    """Show NODE of MODEL at every level: its ops after each pass that changed them, what the passes decided about it,
    and its kernel: tiles, vector programs, time.

    MODEL is an .onnx, which is compiled and timed, or the record of a run (--record). NODE is the name of a node, or of
    a tensor that it computes; a node without a name is called OpType_<index>.
    """
    from ppuc.compiler.recording.explain import explained

    refuse_options_on_records((model,), arguments)
    found = explained(recorded_run(model, arguments), node)

    def show(out: Console, shown: dict[str, Any]) -> None:
        from ppuc.compiler.report.explain import show as show_node

        show_node(out, shown)

    emit("explain", found, as_json, show)

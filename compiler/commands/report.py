"""ppuc report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.compiler.commands.recorded import is_recorded, recorded_run, refuse_options_on_records

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "report",
    short_help="Write a run as one HTML page.",
    epilog="Examples:\n\n  ppuc report net.onnx -p bf16 -o report.html\n\n"
    "  ppuc verify net.onnx --layers --record run.json; ppuc report run.json",
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("-o", "--output", type=OutputFile(), metavar="FILE.html", help="Default: RUN.html here.")
@compile_options
@json_option
def report_command(run: Path, output: Path | None, arguments: CompileArguments, as_json: bool) -> None:
    """Write RUN as one HTML file that any browser opens without a server or network: what matters and what to do next,
    the waterfall, a roofline, the graph, every pass with what it changed, the memory plan, a timeline.

    RUN is the record of a run (--record of compile, run, verify, profile and quantize), or a model (.onnx) or program
    (.ppu), which is timed.
    """
    from ppuc.compiler.recording.record import read_record
    from ppuc.compiler.report.page.page import page
    from ppuc.ir.files import write_file

    refuse_options_on_records((run,), arguments)
    destination = output or Path(run.name.removesuffix(".gz")).with_suffix(".html")
    keep_input(run, destination)
    record = read_record(run) if is_recorded(run) else recorded_run(run, arguments)
    data = page(record).encode()
    write_file(destination, data)

    def show(out: Console, shown: dict[str, Any]) -> None:
        from ppuc.compiler.report.tables import quantity

        out.print(f"{shown['output']}: {quantity(shown['bytes'], 'B')}; open it in a browser")

    found = {"run": str(run), "output": str(destination), "bytes": len(data)}
    emit("report", found, as_json, show)

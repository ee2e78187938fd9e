"""ppuc profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import (
    compile_options,
    complete_inputs,
    emit,
    input_options,
    json_option,
    note,
    obtain_program,
    read_inputs,
)

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "profile",
    short_help="Where the time goes, per kernel and per ONNX node.",
    epilog="Examples:\n\n  ppuc profile net.ppu --timing-only --top 10\n\n"
    "  ppuc profile net.onnx --dim N=1 --trace trace.json --set tensor.ii.bf16=32",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@compile_options
@input_options
@click.option("--timing-only", is_flag=True, help="Simulate time without values; needs no inputs and no weights.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write every instruction as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the N costliest rows of each table.")
@json_option
def profile_command(
    model: Path,
    target: str,
    overrides: tuple[str, ...],
    precision: str,
    dims: tuple[str, ...],
    inputs_file: Path | None,
    single_inputs: tuple[str, ...],
    seed: int,
    timing_only: bool,
    trace: Path | None,
    top: int | None,
    as_json: bool,
) -> int:
    """Simulate MODEL (.ppu, or .onnx, which is compiled first) and print what each kernel and each ONNX node costs.

    Kernels overlap: each is charged the time by which it moves the end of the run on. Utilisation is over a kernel's
    own span, of the whole chip's peak.
    """
    from ppuc.compiler.report.profile import profile_record
    from ppuc.compiler.report.trace import write_trace

    arrays, fills = read_inputs(inputs_file, single_inputs)
    program = obtain_program(model, target, overrides, precision, dims, arrays)
    if timing_only:
        result = program.time(trace=trace is not None)
    else:
        feeds = complete_inputs(program.inputs, arrays, fills, seed, str(model))
        result = program.run(feeds, trace=trace is not None)
    if trace is not None and result.trace is not None:
        count = write_trace(trace, result.trace, program.nodes)
        note(f"note: {count} events in {trace}; open it at ui.perfetto.dev")
    record = {"model": str(model), **profile_record(result.profile, program.target, program.nodes)}

    def show(out: Console, shown: dict[str, Any]) -> None:
        from ppuc.compiler.report.tables import profile_tables

        profile_tables(out, shown, top)

    emit("profile", record, as_json, show)
    return 1 if result.profile.hazards else 0

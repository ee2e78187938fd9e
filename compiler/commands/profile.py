"""ppuc profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import json_option, note, progress_bar, simulation_bar
from ppuc.compiler.commands.formats import format_option, print_result
from ppuc.compiler.commands.inputs import complete_inputs, input_options, read_inputs_for
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.compiler.commands.program import program_of
from ppuc.compiler.commands.recording import Recorder, record_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "profile",
    short_help="Break down where the time of a model goes.",
    epilog="Examples:\n\n  ppuc profile net.ppu --timing-only --top 10\n\n"
    "  ppuc profile net.onnx --dim N=1 --trace trace.json --set tensor.ii.bf16=32\n\n"
    "  ppuc profile net.onnx --timing-only --json | jq .waterfall.parts",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@compile_options
@input_options
@click.option("--timing-only", is_flag=True, help="Simulate time without values; needs no inputs and no weights.")
@click.option(
    "--trace",
    type=OutputFile(),
    metavar="FILE.json",
    help="Write the run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing; compressed if the name ends in "
    ".gz.",
)
@click.option(
    "--trace-limit",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="Maximum instructions in the trace; beyond it, whole units are omitted.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="Show the N costliest rows of each table; 0 shows all, in the order of the run.",
)
@click.option(
    "--interval/--no-interval",
    default=None,
    help="Time the program again with each estimated number of the target varied, and print the resulting interval. "
    "Default: if that takes only seconds.",
)
@format_option("csv and markdown hold the kernels; junit, github and sarif whether there is a hazard.")
@record_option
@json_option
def profile_command(
    model: Path,
    arguments: CompileArguments,
    inputs_file: Path | None,
    single_inputs: tuple[str, ...],
    seed: int,
    timing_only: bool,
    trace: Path | None,
    trace_limit: int,
    top: int,
    interval: bool | None,
    form: str,
    recorded: Path | None,
    as_json: bool,
) -> int:
    """Simulate MODEL (.ppu, or .onnx, which is compiled first) and print where its time goes.

    The waterfall starts from the time of a perfect machine and adds losses step by step: silicon, compiler, launches
    and host. Its parts sum to the total.

    Kernels overlap: each is charged the time by which it delays the end of the run, and that time is split into
    engines, bandwidth, latency and waiting. Utilisation is relative to the chip's peak over a kernel's own span. An
    ONNX node is charged for the kernels that do most of their work for it.
    """
    from ppuc.compiler.host.transfer import host_rows
    from ppuc.compiler.recording.gate import hazard_check
    from ppuc.compiler.report.deferred import deferred_rows, show_deferred
    from ppuc.compiler.report.host import show_host
    from ppuc.compiler.report.interval import interval as time_interval
    from ppuc.compiler.report.profile import profile_record
    from ppuc.compiler.report.trace import write_trace

    keep_input(model, trace)
    keep_input(model, recorded)
    arrays, fills = read_inputs_for(model, inputs_file, single_inputs, seed)
    recorder = Recorder(recorded, model)
    program = program_of(model, arguments, arrays, recorder)
    feeds = None if timing_only else complete_inputs(program, arrays, fills, seed, str(model))
    with simulation_bar() as simulated:
        if feeds is None:
            result = program.time(trace=trace is not None, progress=simulated)
        else:
            result = program.run(feeds, trace=trace is not None, progress=simulated)
    if trace is not None and result.trace is not None:
        summary = write_trace(trace, result.trace, program.nodes, trace_limit)
        note(f"note: {trace} shows {summary}; open it at ui.perfetto.dev")
    record = profile_record(result.profile, program.target, result.nodes, result.program, result.launches)
    found = None
    deferred = deferred_rows(program.plan, result.deferred) if program.plan is not None else []
    if deferred and interval:
        note("note: no interval, because a part of the program was compiled at run time")
    if deferred and trace is not None:
        note("note: the trace omits programs compiled at run time")
    if trace is not None and program.plan is not None and program.plan.nodes:
        note("note: the trace omits host steps: it shows simulated time")
    if interval is not False and not deferred:
        with progress_bar("interval") as progress:
            found = time_interval(program, result.profile, always=bool(interval), progress=progress)
    host = []
    if program.plan is not None:
        host = host_rows(program.plan, program.target, result.host_seconds, result.moves)
    measured = {"host_measured_seconds": result.host_measured_seconds}
    record = {"model": str(model), **record, **measured, "host": host, "later": deferred, "interval": found}

    recorder.write("profile", program, {"profile": record})

    def show(out: Console, shown: dict[str, Any]) -> None:
        from ppuc.compiler.report.profile_tables import profile_tables

        profile_tables(out, shown, top or None)
        show_host(out, shown["host"])
        show_deferred(out, shown["later"])

    def rows() -> list[dict[str, Any]]:
        kernels = result.profile.rows()
        return sorted(kernels, key=lambda k: -k["cycles"])[:top] if top and form == "markdown" else kernels

    print_result("profile", record, "json" if as_json else form, show, rows, lambda: [hazard_check(record)])
    return 1 if result.profile.hazards else 0

"""ppuc verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note, simulation_bar
from ppuc.compiler.commands.inputs import complete_inputs, input_options, read_inputs_for
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import keep_input
from ppuc.compiler.commands.program import is_artifact, program_of
from ppuc.compiler.commands.recording import Recorder, record_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "verify",
    short_help="Compile, simulate, and compare with ONNX Runtime.",
    epilog="Examples:\n\n  ppuc verify net.onnx --inputs sample.npz\n\n"
    "  ppuc verify net.onnx --dim N=1 -p bf16 --layers",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@compile_options
@input_options
@click.option(
    "--layers",
    is_flag=True,
    help="Also compare inner tensors, and name the first node that is off. Of bodies: of their last run.",
)
@click.option("--strict", is_flag=True, help="Exit code 1 also if an output or, with --layers, a layer is unproven.")
@record_option
@json_option
def verify_command(
    model: Path,
    arguments: CompileArguments,
    inputs_file: Path | None,
    single_inputs: tuple[str, ...],
    seed: int,
    layers: bool,
    strict: bool,
    recorded: Path | None,
    as_json: bool,
) -> int:
    """Compile MODEL.onnx, run it on the simulator, and compare its outputs with ONNX Runtime's.

    Tolerances follow from number formats and reduction lengths in the model. Exit code 1 if an output is out of
    tolerance or the run has a hazard.

    A tensor is unproven if its match proves little: wrong numbers would be within tolerance, or the model returns the
    same output for other inputs. It is first checked again in parts, an output also on scaled inputs. --strict makes
    exit code 1 of an unproven output, and of an unproven inner tensor if --layers compares those.
    """
    from ppuc.compiler.report.deferred import deferred_rows
    from ppuc.compiler.verification import verify_program
    from ppuc.ir.errors import UsageError

    if is_artifact(model):
        raise UsageError.of(str(model), "is a compiled program", expected="its .onnx model, for ONNX Runtime to run")
    arrays, fills = read_inputs_for(model, inputs_file, single_inputs, seed)
    keep_input(model, recorded)
    recorder = Recorder(recorded, model)
    program = program_of(model, arguments, arrays, recorder)
    feeds = complete_inputs(program, arrays, fills, seed, str(model))
    with simulation_bar() as progress:
        verification = verify_program(program, feeds, layers, progress)
    if layers and not verification.layers:
        note("note: no inner tensor of the program is one of the model's: nodes are fused")
    if empty := [c.name for c in verification.outputs if c.empty]:
        note(f"note: {', '.join(empty)} has no elements: nothing of it is compared")
    if verification.uncompared:
        nodes = ", ".join(verification.uncompared)
        note(f"note: layers within {nodes} are not compared: ONNX Runtime gives inner tensors of the main graph only")
    record = {
        "model": str(model),
        "target": program.target.name,
        "precision": program.options.precision,
        **verification.record(),
        "later": deferred_rows(program.plan, verification.deferred) if program.plan is not None else [],
    }
    recorder.write_run("verify", program, record, verification.profile, verification.deferred)
    emit("verify", record, as_json, _show)
    return 0 if verification.verdict == "ok" or (verification.ok and not strict) else 1


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.deferred import show_deferred
    from ppuc.compiler.report.host import beside
    from ppuc.compiler.report.tables import comparison_table, duration

    comparison_table(out, "outputs", record["outputs"])
    if record["layers"]:
        comparison_table(out, "\nlayers", record["layers"])
    show_deferred(out, record["later"])
    for hazard in record["hazards"]:
        out.print(hazard)
    first = f"; first offender: {record['first_offender']}" if record["first_offender"] else ""
    verdict = "DISAGREES with ONNX Runtime" if first else "agrees with ONNX Runtime"
    if record["verdict"] == "unproven":
        verdict += f", which proves nothing about {', '.join(record['unproven'])},"
    if record["hazards"]:
        verdict += f", and its program has {len(record['hazards'])} HAZARDS"
    out.print(
        f"\n{record['model']} {verdict} on {record['target']} at precision {record['precision']}{first} "
        f"({duration(record['seconds'])} simulated{beside(record['host_measured_seconds'])})"
    )

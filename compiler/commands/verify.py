"""ppuc verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import json_option, note, simulation_bar
from ppuc.compiler.commands.formats import format_option, print_result
from ppuc.compiler.commands.inputs import complete_inputs, input_options, read_inputs_for
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.compiler.commands.program import program_of
from ppuc.compiler.commands.recording import Recorder, record_option
from ppuc.compiler.commands.references import read_reference, write_reference
from ppuc.compiler.commands.resumed import MADE, program_beside

if TYPE_CHECKING:
    from rich.console import Console


COLUMNS = ("name", "type", "verdict", "max_abs", "max_rel", "cosine", "sqnr_db", "tolerance", "reason", "unproven")
"""Of a tensor, in CSV and Markdown."""


@click.command(
    "verify",
    short_help="Compile, simulate, and compare with ONNX Runtime.",
    epilog="Examples:\n\n  ppuc verify net.onnx --inputs sample.npz\n\n"
    "  ppuc verify net.onnx --dim N=1 -p bf16 --layers\n\n"
    "  ppuc verify net.ppu --model net.onnx --reference torch.npz --format junit",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@compile_options
@input_options
@click.option(
    "--layers",
    is_flag=True,
    help="Also compare inner tensors, and name the first node that is off. Of bodies: of their last run.",
)
@click.option("--strict", is_flag=True, help="Exit code 1 also if an output or, with --layers, a layer is unproven.")
@click.option(
    "--model",
    "source",
    type=click.Path(path_type=Path),
    metavar="MODEL.onnx",
    help="With a .ppu or .ppir: the model that it was compiled from.",
)
@click.option(
    "--save-reference",
    type=OutputFile(),
    metavar="FILE.npz",
    help="Write the inputs and ONNX Runtime's outputs by name.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Compare with the outputs in this file in place of ONNX Runtime's; it may hold the inputs too. Whether they "
    "would be the same for other inputs is not examined.",
)
@format_option("csv and markdown hold the tensors; junit, github and sarif a check for each, and one for hazards.")
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
    source: Path | None,
    save_reference: Path | None,
    reference: Path | None,
    form: str,
    recorded: Path | None,
    as_json: bool,
) -> int:
    """Compile MODEL.onnx, run it on the simulator, and compare its outputs with ONNX Runtime's. MODEL may also be a
    program (.ppu), or a dumped step (.ppir), whose other passes are then run, with its --model.

    Tolerances follow from number formats and reduction lengths in the model. Exit code 1 if an output is out of
    tolerance or the run has a hazard.

    A tensor is unproven if its match proves little: wrong numbers would be within tolerance, or the model returns the
    same output for other inputs. It is first checked again in parts, an output also on scaled inputs. --strict makes
    exit code 1 of an unproven output, and of an unproven inner tensor if --layers compares those.
    """
    from ppuc.compiler.recording.gate import verified_checks
    from ppuc.compiler.report.deferred import deferred_rows
    from ppuc.compiler.verification import verify_program

    _refuse_mistakes(model, source, layers, reference, save_reference)
    arrays, fills = read_inputs_for(source or model, inputs_file, single_inputs, seed)
    expected = read_reference(reference, source or model, arrays) if reference is not None else None
    for output in (recorded, save_reference):
        keep_input(model, output)
        keep_input(source or model, output)
    recorder = Recorder(recorded, model)
    if source is None:
        program = program_of(model, arguments, arrays, recorder)
    else:
        program = program_beside(model, source, arguments, arrays)
    feeds = complete_inputs(program, arrays, fills, seed, str(model))
    with simulation_bar() as progress:
        verification = verify_program(program, feeds, layers, progress, expected)
    if save_reference is not None:
        write_reference(save_reference, program, feeds)
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
        "reference": str(reference) if reference is not None else None,
        **verification.record(),
        "later": deferred_rows(program.plan, verification.deferred) if program.plan is not None else [],
    }
    recorder.write_run("verify", program, record, verification.profile, verification.deferred)

    def rows() -> list[dict[str, Any]]:
        found = (("output", verification.outputs), ("layer", verification.layers))
        return [{"what": what, **{key: c.record()[key] for key in COLUMNS}} for what, cs in found for c in cs]

    form = "json" if as_json else form
    print_result("verify", record, form, _show, rows, lambda: verified_checks(record, strict))
    return 0 if verification.verdict == "ok" or (verification.ok and not strict) else 1


def _refuse_mistakes(
    model: Path, source: Path | None, layers: bool, reference: Path | None, save_reference: Path | None
) -> None:
    """Raise UsageError for options that do not fit each other, or the kind of MODEL."""
    from ppuc.ir.errors import UsageError

    made = model.suffix in MADE
    if made and source is None:
        hint = "give it with --model"
        expected = "its .onnx model, for ONNX Runtime to run"
        raise UsageError.of(str(model), "is a compiled program", expected=expected, hint=hint)
    if not made and source is not None:
        raise UsageError.of("--model", "goes with a program", got=str(model), expected=" or ".join(MADE))
    if layers and made:
        hint = "give the .onnx file, which is compiled so that inner tensors can be read"
        raise UsageError.of("--layers", "has no effect on a compiled program", got=str(model), hint=hint)
    if reference is not None and (layers or save_reference is not None):
        other = "--layers" if layers else "--save-reference"
        raise UsageError.of("--reference", f"cannot be combined with {other}", hint=f"{other} asks ONNX Runtime")


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
    other = record["reference"] or "ONNX Runtime"
    verdict = f"DISAGREES with {other}" if first else f"agrees with {other}"
    if record["verdict"] == "unproven":
        verdict += f", which proves nothing about {', '.join(record['unproven'])},"
    if record["hazards"]:
        verdict += f", and its program has {len(record['hazards'])} HAZARDS"
    out.print(
        f"\n{record['model']} {verdict} on {record['target']} at precision {record['precision']}{first} "
        f"({duration(record['seconds'])} simulated{beside(record['host_measured_seconds'])})"
    )

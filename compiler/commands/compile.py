"""ppuc compile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note, progress_bar, remarks_option
from ppuc.compiler.commands.inputs import read_inputs
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.compiler.commands.program import note_compromises, note_dynamic_scales
from ppuc.compiler.commands.recording import Recorder, record_option
from ppuc.ir.errors import counted

if TYPE_CHECKING:
    from rich.console import Console


NOISIEST = 3
"""Number of layers named in the summary of quantization error."""


@click.command(
    "compile",
    short_help="Compile an ONNX model into a .ppu program.",
    epilog="Examples:\n\n  ppuc compile net.onnx --dim N=1\n\n"
    "  ppuc compile net.onnx -p bf16 -t ppu-edge -o net.ppu --dump steps",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("-o", "--output", type=OutputFile(), metavar="FILE.ppu", help="Default: MODEL.ppu here.")
@compile_options
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the program after every pass as text, with constants and a manifest; `ppuc opt` resumes from it.",
)
@click.option(
    "--check-passes",
    is_flag=True,
    help="Execute the program after every pass and report the first pass and tensor with wrong values (exit code 1).",
)
@click.option(
    "--inputs",
    "inputs_file",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Inputs for --check-passes (default: random); their shapes bind open dimensions, and values that shapes "
    "depend on are fixed.",
)
@click.option(
    "--pad",
    metavar="NAME",
    multiple=True,
    help="With several sizes of dimension NAME: inputs of sizes in between are padded with zeros to the next "
    "one, and outputs are cropped. Safe if results do not depend on later elements. Repeatable.",
)
@remarks_option
@record_option
@json_option
def compile_command(
    model: Path,
    output: Path | None,
    arguments: CompileArguments,
    dump: Path | None,
    check_passes: bool,
    inputs_file: Path | None,
    pad: tuple[str, ...],
    remarks: str | None,
    recorded: Path | None,
    as_json: bool,
) -> None:
    """Compile MODEL.onnx for a target and write the program as FILE.ppu.

    Give sizes of open dimensions with --dim. Several sizes (--dim batch=1,8) produce one program per combination in the
    same file, with shared weights stored once; `ppuc run` selects the one that matches its inputs.
    """
    from ppuc.compiler.entry import compile_program
    from ppuc.compiler.options import Instrumentation
    from ppuc.compiler.report.remarks import ALL, chosen, remarks_record, show
    from ppuc.compiler.report.tables import console

    arrays, _ = read_inputs(inputs_file, ())
    destination = output or Path(model.with_suffix(".ppu").name)
    keep_input(model, destination)
    keep_input(model, recorded)
    recorder = Recorder(recorded, model)
    choices = arguments.choices()
    options = arguments.options(arrays, dims=choices[0])
    note_dynamic_scales(options)
    studies: list[dict[str, Any]] = []
    with progress_bar("compile") as progress:
        watch = Instrumentation(progress, dump, check_passes, arrays or None, studies.append, note)
        compiled = compile_program(model, options, recorder.watching(watch, options), choices, pad)
    compiled.save(destination)
    note_compromises(compiled)
    if options.quantization.data is not None:
        _note_samples(studies)
    if dump is not None:
        note(f"note: every pass is in {dump}")
    artifact, variants = compiled.artifact, compiled.variants.every if compiled.variants is not None else ()
    record = {
        "model": str(model),
        "output": str(destination),
        "bytes": destination.stat().st_size,
        "target": options.target.name,
        "target_hash": options.target.hash,
        "precision": options.precision,
        "kernels": sum(len(s.kernels) for s in artifact.program.segments),
        "seconds": sum(p.seconds for made in variants or (compiled,) for p in made.passes),
        "quantization": _cost(studies[0]) if studies else None,
        "variants": [dict(v.dims) for v in variants],
        "passes": [
            {**p.record(), "remarks": [r.record() for r in chosen(p.remarks, remarks or ALL)]} for p in compiled.passes
        ],
        "inputs": {s.name: str(s.type) for s in artifact.inputs},
        "outputs": {s.name: str(s.type) for s in artifact.outputs},
    }
    recorder.write("compile", compiled, {"compile": record} | ({"quantize": studies[0]} if studies else {}))
    emit("compile", record, as_json, _show)
    if remarks is not None and not as_json:
        show(console(sys.stdout), remarks_record(compiled.remarks, remarks))


def _note_samples(studies: list[dict[str, Any]]) -> None:
    """Print notes on what the measured quantization error does not cover."""
    if not studies:
        note("note: quantization error is not measured for models with host parts; `ppuc verify` compares outputs")
    elif not studies[0]["samples"]["apart"]:
        note("note: so few samples leave ranges uncertain: f8 scales get fourfold headroom, and weights are not fitted")


def _cost(study: dict[str, Any]) -> dict[str, Any]:
    """Summary of a study's record: quantization error and speed-up."""
    measured = [row for row in study["layers"] if row["isolated_sqnr_db"] is not None]
    noisiest = sorted(measured, key=lambda row: row["isolated_sqnr_db"])[:NOISIEST]
    return {
        **{key: study[key] for key in ("samples", "repair", "repair_refused", "share", "time")},
        **{key: study["accuracy"][key] for key in ("sqnr_db", "agreement")},
        "noisiest": [{key: row[key] for key in ("layer", "isolated_sqnr_db")} for row in noisiest],
    }


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import duration, quantity

    if record["quantization"] is not None:
        cost = record["quantization"]
        count = cost["samples"]["report"]
        apart = "kept apart" if cost["samples"]["apart"] else "that it was calibrated on"
        out.print(
            f"{cost['share']:.1%} of the multiply-accumulates in 8 bits: {cost['sqnr_db']:.1f} dB and agreement "
            f"{cost['agreement']:.2%} on {counted(count, 'sample')} {apart} (repair: {cost['repair']}); "
            f"{cost['time']['speedup']:.2f} x the speed of bf16, {duration(cost['time']['seconds'])} simulated"
        )
        if (refused := cost["repair_refused"]) is not None:
            out.print(f"not repaired: '{refused['method']}' {refused['reason']}")
        names = ", ".join(f"{row['layer']} ({row['isolated_sqnr_db']:.1f} dB alone)" for row in cost["noisiest"])
        if names:
            out.print(f"noisiest: {names}; `ppuc quantize` lists all layers, and keeps some in bf16 with -p mixed")

    out.print(
        f"{record['output']}: {counted(record['kernels'], 'kernel')} for {record['target']} "
        f"at precision {record['precision']}, "
        f"{quantity(record['bytes'], 'B')}, compiled in {duration(record['seconds'])}"
    )
    for sizes in record["variants"]:
        out.print("  variant " + ", ".join(f"{name}={size}" for name, size in sizes.items()))
    for direction in ("inputs", "outputs"):
        for name, type in record[direction].items():
            out.print(f"  {direction[:-1]} {name}: {type}")

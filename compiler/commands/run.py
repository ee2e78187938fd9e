"""ppuc run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note, simulation_bar
from ppuc.compiler.commands.inputs import complete_inputs, input_options, read_inputs_for
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.compiler.commands.program import program_of
from ppuc.compiler.commands.recording import Recorder, record_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "run",
    short_help="Run a model on the simulator: values and cycles.",
    epilog="Examples:\n\n  ppuc run net.ppu --input image=cat.npy --output out.npz\n\n"
    "  ppuc run net.onnx --dim N=1 --input image=random",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@compile_options
@input_options
@click.option(
    "--output",
    type=OutputFile(),
    metavar="FILE.npz",
    help="Write the outputs by name; bf16 and f8 as bytes, as ml_dtypes does.",
)
@record_option
@json_option
def run_command(
    model: Path,
    arguments: CompileArguments,
    inputs_file: Path | None,
    single_inputs: tuple[str, ...],
    seed: int,
    output: Path | None,
    recorded: Path | None,
    as_json: bool,
) -> int:
    """Run MODEL (.ppu, or .onnx, which is compiled first) and print its outputs and simulated time.

    Without --inputs and --input, inputs are random. Exit code 1 when the run shows a hazard.
    """
    from ppuc.compiler.inputs import write_npz
    from ppuc.compiler.report.deferred import deferred_rows

    keep_input(model, output)
    keep_input(model, recorded)
    arrays, fills = read_inputs_for(model, inputs_file, single_inputs, seed)
    recorder = Recorder(recorded, model)
    program = program_of(model, arguments, arrays, recorder)
    feeds = complete_inputs(program, arrays, fills, seed, str(model))
    with simulation_bar() as progress:
        result = program.run(feeds, progress=progress)
    if output is not None:
        write_npz(output, result.outputs)
        note(f"note: outputs are in {output}")
    profile = result.profile
    record = {
        "model": str(model),
        "target": profile.target,
        "cycles": profile.cycles,
        "seconds": profile.seconds,
        "host_measured_seconds": result.host_measured_seconds,
        "outputs": {name: summary(array) for name, array in result.outputs.items()},
        "hazards": [str(h) for h in profile.hazards],
        "later": deferred_rows(program.plan, result.deferred) if program.plan is not None else [],
    }
    recorder.write_run("run", program, record, profile, result.deferred)
    emit("run", record, as_json, _show)
    return 1 if profile.hazards else 0


def summary(array: Any) -> dict[str, Any]:
    """Type, range and first elements of an output, as JSON-able values (NaN and infinities as text)."""
    import numpy as np

    from ppuc.ir.types import DType

    if not isinstance(array, np.ndarray):
        kind = f"sequence of {len(array)}" if isinstance(array, list) else "nothing"
        return {"type": kind, "min": None, "max": None, "mean": None, "first": []}
    if array.dtype.kind in "OUS" or array.dtype.name not in _known_names():
        first = [str(x) for x in array.reshape(-1)[:5]]
        kind = "string" if array.dtype.kind in "OUS" else array.dtype.name
        shape = ", ".join(map(str, array.shape))
        return {"type": f"{kind}[{shape}]", "min": None, "max": None, "mean": None, "first": first}
    plain = array.astype(np.float64) if DType.of(array.dtype).is_float else array
    flat = plain.reshape(-1)
    numbers = (flat.min(), flat.max(), flat.mean(dtype=np.float64)) if flat.size else (0, 0, 0)
    low, high, mean = (_number(x) for x in numbers)
    return {
        "type": f"{DType.of(array.dtype)}[{', '.join(map(str, array.shape))}]",
        "min": low,
        "max": high,
        "mean": mean,
        "first": [_number(x) for x in flat[:5]],
    }


def _known_names() -> set[str]:
    from ppuc.ir.types import DType

    return {d.numpy.name for d in DType}


def _number(value: Any) -> float | int | str:
    import math

    number = value.item() if hasattr(value, "item") else value
    return number if not isinstance(number, float) or math.isfinite(number) else str(number)


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.deferred import show_deferred
    from ppuc.compiler.report.host import beside
    from ppuc.compiler.report.tables import duration, table

    simulated = f"{duration(record['seconds'])} simulated ({record['cycles']:,.0f} cycles)"
    out.print(f"{record['target']}: {simulated}{beside(record['host_measured_seconds'])}")
    rows = [
        (name, r["type"], _short(r["min"]), _short(r["max"]), _short(r["mean"]), _first(r["first"]))
        for name, r in record["outputs"].items()
    ]
    table(out, "", ("output", "type", "min", "max", "mean", "first elements"), rows, left=(0, 1, 5))
    show_deferred(out, record["later"])
    for hazard in record["hazards"]:
        out.print(hazard)


def _first(elements: Sequence[float | int | str]) -> str:
    """The first elements of an array, shortened for a table."""
    return " ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in elements)


def _short(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)

"""ppuc rebatch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option
from ppuc.compiler.commands.options import dim_sizes
from ppuc.compiler.commands.outputs import OutputFile, keep_input

if TYPE_CHECKING:
    from rich.console import Console

MOST_SHOWN = 12
"""Changes that the table lists; `--json` has all."""


@click.command(
    "rebatch",
    short_help="Change the batch size of a model that was exported for a fixed one.",
    epilog="Examples:\n\n  ppuc rebatch net.onnx --batch 8 -o net8.onnx\n\n"
    "  ppuc rebatch net.onnx --batch 8 -o net8.onnx --input image --input lidar:1",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("-b", "--batch", required=True, type=click.IntRange(min=1), help="Samples of the new batch.")
@click.option("-o", "--output", required=True, type=OutputFile(), metavar="OUT.onnx", help="File to write.")
@click.option(
    "--input",
    "inputs",
    metavar="NAME[:AXIS]",
    multiple=True,
    help="An input that holds samples, and the axis of the batch (default: 0). Repeatable. Default: all inputs whose "
    "first axis is as long as that of the first input.",
)
@click.option(
    "--dim",
    "dims",
    metavar="NAME=SIZE",
    multiple=True,
    help="Fix an open dimension before (seq=128), or one axis of an input (image:2=640). Repeatable.",
)
@click.option("--no-check", is_flag=True, help="Do not compare the samples of both models with ONNX Runtime.")
@click.option("--seed", default=0, show_default=True, help="Seed of the check's random inputs.")
@json_option
def rebatch_command(
    model: Path,
    batch: int,
    output: Path,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    no_check: bool,
    seed: int,
    as_json: bool,
) -> int:
    """Write MODEL.onnx for another number of samples.

    The samples are followed through the graph, and the constants that fix their number are changed: shapes of Reshape
    and Expand, sizes of Resize, states of recurrent layers, numbers of gathered elements, whatever is concatenated with
    a batch. ONNX Runtime then compares every sample with what the original makes of it, on random inputs; if they
    disagree, the exit code is 1 and nothing is written. A node that cannot take another number of samples is an error
    that names it.
    """
    from ppuc.compiler.simplify.convert import save_model
    from ppuc.compiler.simplify.rebatch import rebatch

    keep_input(model, output)
    result = rebatch(model, batch, _axes(inputs), dim_sizes(dims), verify=not no_check, seed=seed)
    if result.ok:
        save_model(result.model, output)
    record = {
        "model": str(model),
        "output": str(output) if result.ok else None,
        "ok": result.ok,
        "checked": result.comparisons is not None,
        "batch_before": result.before,
        "batch_after": result.after,
        "inputs": dict(result.inputs),
        "batch_outputs": dict(result.outputs),
        "changes": [{"node": c.node, "op": c.op, "what": c.what} for c in result.changes],
        "outputs": [c.record() for c in result.comparisons or ()],
    }
    emit("rebatch", record, as_json, _show)
    return 0 if result.ok else 1


def _axes(inputs: tuple[str, ...]) -> dict[str, int]:
    """Axis by input. Raises UsageError for an axis that is missing."""
    from ppuc.ir.errors import UsageError

    found = {}
    for text in inputs:
        name, colon, axis = text.rpartition(":")
        if not colon or not axis.isdecimal():
            if colon and not axis:
                raise UsageError.of("--input", "the axis is missing", got=text, hint=f"e.g. --input {name}:0")
            name, axis = text, "0"
        found[name] = int(axis)
    return found


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import comparison_table, table

    changes = record["changes"]
    shown = [(c["node"], c["op"], c["what"]) for c in changes[:MOST_SHOWN]]
    if shown:
        table(out, "", ("node", "op", "change"), shown)
    if len(changes) > MOST_SHOWN:
        out.print(f"... and {len(changes) - MOST_SHOWN} more; --json lists all")
    if record["outputs"]:
        comparison_table(out, "\noutputs", record["outputs"])
    if not record["ok"]:
        out.print(f"\n{record['model']}: samples DISAGREE with those of the model; nothing is written")
        return
    checked = f"every sample agrees with {record['model']}" if record["checked"] else "not checked"
    batch = f"batch {record['batch_before']} -> {record['batch_after']}"
    out.print(f"\n{record['output']}: {batch}, {checked}")

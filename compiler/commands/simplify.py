"""ppuc simplify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note
from ppuc.compiler.commands.options import dim_sizes
from ppuc.compiler.commands.outputs import OutputFile, keep_input

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "simplify",
    short_help="Simplify an ONNX model: the same function with fewer nodes.",
    epilog="Examples:\n\n  ppuc simplify net.onnx -o small.onnx\n\n"
    "  ppuc simplify net.onnx -o small.onnx --dim batch=1 --json",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("-o", "--output", required=True, type=OutputFile(), metavar="OUT.onnx", help="File to write.")
@click.option(
    "--dim",
    "dims",
    metavar="NAME=SIZE",
    multiple=True,
    help="Fix a symbolic dimension (N=1), or one axis of an input (image:0=1). Repeatable; others stay symbolic.",
)
@click.option(
    "--fold-defaults",
    is_flag=True,
    help="Treat initializers that are also inputs as constants; otherwise they remain overridable.",
)
@click.option("--no-check", is_flag=True, help="Do not run both models with ONNX Runtime.")
@click.option("--seed", default=0, show_default=True, help="Seed of the check's random inputs.")
@json_option
def simplify_command(
    model: Path,
    output: Path,
    dims: tuple[str, ...],
    fold_defaults: bool,
    no_check: bool,
    seed: int,
    as_json: bool,
) -> int:
    """Simplify MODEL.onnx: fold constants and shape arithmetic, remove duplicate and redundant nodes, and fold scales,
    biases and normalisations into adjacent weights.

    The result has the same inputs, outputs, opset and standard ops. ONNX Runtime compares both models on random inputs;
    if they disagree, the exit code is 1 and nothing is written.
    """
    from ppuc.compiler.simplify.convert import save_model
    from ppuc.compiler.simplify.driver import simplify

    keep_input(model, output)
    result = simplify(model, dim_sizes(dims), fold_defaults=fold_defaults, verify=not no_check, seed=seed)
    if result.defaults:
        which = ", ".join(result.defaults[:3]) + (", ..." if len(result.defaults) > 3 else "")
        note(f"note: {which}: initializers that are also inputs, so not constant; --fold-defaults makes them constant")
    if result.ok:
        save_model(result.model, output)
    record = {
        "model": str(model),
        "output": str(output) if result.ok else None,
        "ok": result.ok,
        "nodes_before": sum(result.before.values()),
        "nodes_after": sum(result.after.values()),
        "before": dict(result.before),
        "after": dict(result.after),
        "checked_with": None if result.sizes is None else dict(result.sizes),
        "outputs": [c.record() for c in result.comparisons or ()],
    }
    emit("simplify", record, as_json, _show)
    return 0 if result.ok else 1


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import comparison_table, table

    before, after = record["before"], record["after"]
    changed = [op for op in sorted({*before, *after}) if before.get(op, 0) != after.get(op, 0)]
    table(out, "", ("op", "before", "after"), [(op, before.get(op, 0), after.get(op, 0)) for op in changed])
    if record["outputs"]:
        comparison_table(out, "\noutputs", record["outputs"])
    counts = f"{record['nodes_before']} -> {record['nodes_after']} nodes"
    if not record["ok"]:
        out.print(f"\n{record['model']}: the result DISAGREES with the model; nothing is written")
        return
    checked = "not checked" if record["checked_with"] is None else f"agrees with {record['model']}"
    sizes = ", ".join(f"{k} = {v}" for k, v in (record["checked_with"] or {}).items())
    out.print(f"\n{record['output']}: {counts}, {checked}{f' ({sizes})' if sizes else ''}")

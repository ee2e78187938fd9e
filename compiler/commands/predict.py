"""ppuc predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, progress_bar
from ppuc.compiler.commands.options import TARGET, chosen_target, together
from ppuc.compiler.commands.outputs import OutputFile, keep_input

if TYPE_CHECKING:
    from ppuc.compiler.predict.table import Row

INTERVALS = 20
"""Maximum rows with an interval by default: each takes several simulations."""


@click.command(
    "predict",
    short_help="Predict times of single operators from a list of shapes.",
    epilog="Examples:\n\n  ppuc predict -t h100-class --gemm 4096,4096,4096 --gemm 16,4096,4096:f8e4m3\n\n"
    "  ppuc predict --attention 1,32,8,2048,2048,128:causal --conv 8,56,56,64,256,1,1,0\n\n"
    "  ppuc predict -t a100-class --csv gemms.csv --plot errors.svg --json",
)
@together(TARGET)
@click.option(
    "--gemm", "gemms", metavar="M,N,K[:DTYPE]", multiple=True, help="y[m, n] = x[m, k] . w[n, k]^T. Repeatable."
)
@click.option(
    "--attention",
    "attentions",
    metavar="BATCH,HEADS,KV_HEADS,QUERY,KEY,DIM[:causal]",
    multiple=True,
    help="Scaled dot-product attention. Repeatable.",
)
@click.option(
    "--conv",
    "convs",
    metavar="N,H,W,C,K,R,STRIDE,PAD",
    multiple=True,
    help="R x R convolution from C to K channels, channels last. Repeatable.",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help="A row a case: columns as the sizes of --gemm, --attention or --conv, and dtype, measured_us where known.",
)
@click.option("--dtype", metavar="DTYPE", default="bf16", show_default=True, help="Default element type of operands.")
@click.option(
    "--interval/--no-interval",
    default=None,
    help=f"How far each time may be off, given the target's estimates. Default: for up to {INTERVALS} rows.",
)
@click.option(
    "--plot",
    type=OutputFile(),
    metavar="FILE.svg",
    help="Plot predicted against measured times by class; also .png and .html.",
)
@json_option
def predict_command(
    target: str,
    overrides: tuple[str, ...],
    gemms: tuple[str, ...],
    attentions: tuple[str, ...],
    convs: tuple[str, ...],
    table: Path | None,
    dtype: str,
    interval: bool | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Predict times and bottlenecks of operators of given sizes on a target.

    Each operator is compiled for the target like part of a model, and simulated for timing only. Rows follow the order
    of the options --gemm, --attention, --conv and --csv. With measured times, errors are summarised by class.
    """
    from ppuc.compiler.predict.accuracy import accuracy, class_of
    from ppuc.compiler.predict.case import attention, conv, dtype_of, gemm
    from ppuc.compiler.predict.prediction import Predictor
    from ppuc.compiler.predict.show import show, write_plot
    from ppuc.compiler.predict.table import Row, read_table
    from ppuc.compiler.report.charts import require_chart_file
    from ppuc.ir.errors import UsageError

    element = dtype_of(dtype, f"--dtype {dtype}")
    machine = chosen_target(target, overrides)
    given = (("--gemm", gemm, gemms), ("--attention", attention, attentions), ("--conv", conv, convs))
    rows = [
        Row(make(text, element, f"{option} {text}"), None, f"{option} {text}")
        for option, make, texts in given
        for text in texts
    ]
    if table is not None:
        keep_input(table, plot)
        rows += read_table(table, element)
    if not rows:
        raise UsageError.of("predict", "needs an operator", hint="e.g. --gemm 4096,4096,4096, or --csv FILE.csv")
    if plot is not None:
        require_chart_file(plot, "--plot")
        if all(row.measured_us is None for row in rows):
            raise UsageError.of("--plot", "draws measured times", expected="a table with a column measured_us")
    predictor = Predictor(machine, len(rows) <= INTERVALS if interval is None else interval)
    predicted = []
    with progress_bar("predict") as progress:
        for i, row in enumerate(rows):
            progress(row.case.name, i, len(rows))
            predicted.append(predictor.predict(row.case, row.where))
    record = {
        "target": machine.name,
        "target_hash": machine.hash,
        "rows": [_record(row, found, class_of(row.case)) for row, found in zip(rows, predicted, strict=True)],
        "accuracy": accuracy([r.case for r in rows], [p["us"] for p in predicted], [r.measured_us for r in rows]),
    }
    emit("predict", record, as_json, show)
    if plot is not None:
        write_plot(record, plot)


def _record(row: Row, predicted: dict[str, Any], belongs: str) -> dict[str, Any]:
    measured = row.measured_us
    return {
        "case": row.case.name,
        "kind": row.case.kind,
        "dims": list(row.case.dims),
        "dtype": row.case.dtype,
        "class": belongs,
        **predicted,
        "measured_us": measured,
        "error": predicted["us"] / measured - 1 if measured is not None else None,
    }

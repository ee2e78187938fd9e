"""ppuc evaluate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, progress_bar
from ppuc.compiler.commands.options import METRIC, CompileArguments, Share, compile_options
from ppuc.compiler.commands.program import is_artifact, program_of

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from ppuc.compiler.quantization.data import Data


@click.command(
    "evaluate",
    short_help="Measure a task on data, beside ONNX Runtime in f32.",
    epilog="Examples:\n\n  ppuc evaluate net.onnx --data test.npz --metric top-k,labels=label -p bf16\n\n"
    "  ppuc evaluate net.onnx --data images --preprocess how.toml --metric boxes.toml -p mixed --policy policy.toml\n\n"
    "  ppuc evaluate net.ppu --reference net.onnx --data test.npz --metric mine.py",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.option(
    "--data",
    metavar="DATA",
    required=True,
    type=click.Path(path_type=Path),
    help="Samples and labels: an .npz, or a folder (docs/data.md).",
)
@METRIC
@click.option(
    "--reference",
    metavar="MODEL.onnx",
    type=click.Path(path_type=Path),
    help="The model that ONNX Runtime runs in f32. Default: MODEL, if it is an .onnx.",
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Use the first N samples (batches) only.")
@click.option("--max-drop", type=Share(), metavar="SHARE", help="Exit code 1 if the metric drops by more from f32.")
@compile_options
@json_option
def evaluate_command(
    model: Path,
    arguments: CompileArguments,
    metric: str | None,
    reference: Path | None,
    samples: int | None,
    max_drop: float | None,
    as_json: bool,
) -> int:
    """Run MODEL (.ppu, or .onnx, which is compiled first) on data and measure a task metric, beside the model in f32.

    The simulator computes the program's values; time and hazards are those of `ppuc profile` and `ppuc verify`. Without
    a metric, only the outputs' errors are reported. The batch is the model's, or that of --dim.
    """
    from ppuc.compiler.evaluation import evaluate
    from ppuc.compiler.metrics.choose import chosen_metric
    from ppuc.compiler.quantization.data import Data
    from ppuc.compiler.quantization.images import read_preprocessing
    from ppuc.compiler.validation.oracle import Oracle
    from ppuc.ir.errors import UsageError

    chosen = chosen_metric(metric) if metric is not None else None
    source = reference if reference is not None else None if is_artifact(model) else model
    if max_drop is not None and (source is None or chosen is None):
        raise UsageError.of("--max-drop", "needs a metric and the model in f32", hint="--metric and --reference")
    if chosen is None and source is None:
        raise UsageError.of("--metric", "is needed: there is no model in f32 to compare with", hint="or --reference")
    how = read_preprocessing(arguments.preprocess) if arguments.preprocess is not None else None
    assert arguments.data is not None
    given = Data(arguments.data, how, labels=True)
    program = program_of(model, arguments, _first(model, given, arguments))
    oracle = Oracle(source) if source is not None else None
    began = time.process_time()
    with progress_bar("evaluate") as progress:
        made = evaluate(program, given, chosen, oracle, samples, lambda done: progress(f"{done} samples", 0, 0))
    record: dict[str, Any] = {
        "model": str(model),
        "data": str(arguments.data),
        "metric": metric,
        "target": program.target.name,
        "precision": program.options.precision,
        "samples": made.samples,
        "fp32": made.exact,
        "score": made.score,
        "drop": made.drop,
        "outputs": {name: {"sqnr_db": d.sqnr, "cosine": d.cosine} for name, d in made.differences.items()},
        "cpu_seconds": time.process_time() - began,
    }
    emit("evaluate", record, as_json, _show)
    return 1 if max_drop is not None and made.drop is not None and made.drop > max_drop else 0


def _first(model: Path, data: Data, arguments: CompileArguments) -> dict[str, np.ndarray]:
    """The first batch of the data, whose shapes bind open dimensions; nothing for a compiled program."""
    if is_artifact(model):
        return {}
    from ppuc.compiler.frontend.bind import declarations_of
    from ppuc.compiler.frontend.source import read_source

    declared = {d.name: d.shape for d in declarations_of(read_source(model), overridable=True)}
    return data.first(declared, arguments.sizes())


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import table

    if record["outputs"]:
        rows = [(n, f"{d['sqnr_db']:.1f}", f"{d['cosine']:.6f}") for n, d in record["outputs"].items()]
        table(out, "outputs, against fp32", ("output", "SQNR dB", "cosine"), rows)
        out.print()
    if record["score"] is not None:
        rows = [("fp32, ONNX Runtime", f"{record['fp32']:.6g}", "")] if record["fp32"] is not None else []
        drop = "" if record["drop"] is None else f"{0.0 - record['drop']:+.2%}"
        rows.append((f"{record['precision']}, {record['target']}", f"{record['score']:.6g}", drop))
        table(out, record["metric"], ("", "metric", "change"), rows)
    each = record["cpu_seconds"] / max(record["samples"], 1)
    out.print(f"\n{record['samples']} samples, {each:.2g} CPU-s each")

"""ppuc quantize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note, progress_bar
from ppuc.compiler.commands.options import (
    ALIAS,
    CALIBRATION,
    DIM,
    HOST,
    JUDGING,
    LENIENT,
    METRIC,
    PIPELINE,
    TARGET,
    TUNE,
    CompileArguments,
    Share,
    compile_arguments,
)
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.compiler.commands.recording import record_option
from ppuc.compiler.precisions import PRECISIONS, PURPOSES

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.frontend.source import Source
    from ppuc.compiler.options import CompileOptions
    from ppuc.compiler.quantization.prepare import Prepared
    from ppuc.compiler.quantization.study import Study, Subject


@click.command(
    "quantize",
    short_help="Quantize a model's layers: accuracy and speed of 8-bit formats.",
    epilog="Examples:\n\n  ppuc quantize net.onnx --calibrate data.npz\n\n"
    "  ppuc quantize net.onnx --calibrate images --preprocess how.toml -p mixed --min-sqnr 25 -o policy.toml\n\n"
    "  ppuc compile net.onnx -p mixed --policy policy.toml",
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--calibrate",
    metavar="DATA",
    required=True,
    type=click.Path(path_type=Path),
    help="Samples: an .npz, or a folder of .npz, .npy or image files.",
)
@click.option(
    "--evaluate",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help="Samples to report on. Default: a held-out quarter of --calibrate.",
)
@click.option(
    "--precision",
    "-p",
    type=click.Choice([p.name for p in PRECISIONS.values() if p.scales_activations]),
    default="8bit",
    show_default=True,
    help="All layers in one format, each in the better one (8bit), or as many as the goal allows (mixed).",
)
@click.option("--min-sqnr", type=float, metavar="DB", help="Mixed: least signal-to-noise ratio of the outputs.")
@click.option("--min-agreement", type=Share(), metavar="SHARE", help="Mixed: least share of equal decisions.")
@click.option("--min-share", type=Share(), metavar="SHARE", help="Mixed: least share of MACs in 8 bits.")
@click.option(
    "--goal",
    "purpose",
    type=click.Choice(PURPOSES),
    help="What 8 bits are for. time: layers that would make the model slower than bf16 stay in bf16; the others keep "
    "them in 8 bits. Default: time, or macs with --min-share.",
)
@click.option("--max-drop", type=Share(), metavar="SHARE", help="Mixed: largest relative drop of --metric.")
@METRIC
@click.option(
    "--attention",
    is_flag=True,
    help="Also quantize recognised attention to f8: worthwhile for long sequences and wide heads.",
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Use the first N samples only.")
@click.option("--state", type=OutputFile(), metavar="FILE", help="Store measurements, to resume after an interruption.")
@click.option("-o", "--output", type=OutputFile(), metavar="FILE.toml", help="Write the policy.")
@click.option("--plot", type=OutputFile(), metavar="FILE.svg", help="Draw accuracy against the share in 8 bits.")
@click.option("--top", type=click.IntRange(min=0), default=0, metavar="N", help="Show the N noisiest layers (0: all).")
@compile_arguments(*TARGET, DIM, *CALIBRATION, *JUDGING, ALIAS, TUNE, *PIPELINE, *HOST, LENIENT)
@record_option
@json_option
def quantize_command(
    model: Path,
    arguments: CompileArguments,
    evaluate: Path | None,
    min_sqnr: float | None,
    min_agreement: float | None,
    min_share: float | None,
    max_drop: float | None,
    purpose: str | None,
    metric: str | None,
    attention: bool,
    samples: int | None,
    state: Path | None,
    output: Path | None,
    plot: Path | None,
    top: int,
    recorded: Path | None,
    as_json: bool,
) -> int:
    """Quantize MODEL.onnx on data and report accuracy loss and simulated speed-up by layer.

    With -p mixed, as few layers as possible stay in bf16 to meet the goal. Exit code 1 if the goal is missed on the
    reported samples, 2 if these show an output to be ruined (docs/quantization.md).
    """
    from ppuc.compiler.metrics.choose import chosen_metric
    from ppuc.compiler.quantization.data import FEW
    from ppuc.compiler.quantization.policy import arrays_path, write_policy
    from ppuc.compiler.quantization.search import Goal
    from ppuc.compiler.quantization.study import Aim

    goal = Goal(min_sqnr, min_agreement, max_drop, min_share)
    _check_goal(goal, arguments.precision, metric)
    keep_input(model, recorded)
    if output is not None:
        for read in filter(None, (model, arguments.calibrate, evaluate)):
            keep_input(read, output)
            keep_input(read, arrays_path(output))
    options = arguments.options(labels=metric is not None)
    data = options.quantization.data
    assert data is not None
    judge = chosen_metric(metric) if metric is not None else None
    aim = Aim(goal, judge, state, purpose or ("time" if min_share is None else "macs"))

    def studied(subject: Subject) -> Study:
        given = list(subject.samples(data))[:samples]
        _check_samples(given, data.where)
        if len(given) < FEW:
            room = "; f8 scales get fourfold headroom" if arguments.headroom is None else ""
            note(f"note: {len(given)} samples leave ranges uncertain{room}; weights are not fitted")
        evaluation = subject.samples(data.with_source(evaluate)) if evaluate is not None else []
        with progress_bar("quantize") as progress:
            return subject.run(given, evaluation, aim, lambda what: progress(what, 0, 0))

    made = _with_help_of_host(model, options, attention, studied)
    target = options.target.name
    record = {"model": str(model), "target": target, **made.record, "policy": str(output or "") or None}
    record["goal"] = asdict(goal) if goal != Goal() else None
    if output is not None:
        about = {"model": model.name, "target": target, "precision": options.precision}
        write_policy(output, made.plan, about)
    if recorded is not None:
        from ppuc.compiler.recording.record import study_record, write_record

        write_record(recorded, study_record("quantize", model, options.target, options.precision, record))
    if plot is not None:
        from ppuc.compiler.report.quantization import pareto_svg
        from ppuc.ir.files import write_file

        write_file(plot, pareto_svg(record).encode())

    def show(out: Console, shown: dict[str, Any]) -> None:
        from ppuc.compiler.report.quantization import quantization_tables

        quantization_tables(out, shown, top or None)

    emit("quantize", record, as_json, show)
    return 0 if made.met else 1


def _check_goal(goal: Any, precision: str, metric: str | None) -> None:
    from ppuc.ir.errors import UsageError

    wanted = [getattr(goal, f) for f in ("min_sqnr", "min_agreement", "max_drop", "min_share")]
    if PRECISIONS[precision].per_layer and all(w is None for w in wanted):
        options = "--min-sqnr, --min-agreement, --min-share or --max-drop"
        raise UsageError.of(f"--precision {precision}", "needs a goal", expected=options)
    if (goal.max_drop is None) != (metric is None) and (goal.max_drop is not None):
        raise UsageError.of("--max-drop", "needs a task metric", hint="give --metric METRIC")


def _check_samples(samples: Any, where: str) -> None:
    from ppuc.compiler.quantization.data import check_not_zero
    from ppuc.ir.errors import InputError

    check_not_zero(samples, where)
    if len(samples) == 1:
        raise InputError.of(
            where,
            "holds a single sample",
            expected="eight or more",
            hint="`ppuc compile --calibrate` takes one",
        )


def _with_help_of_host(
    model: Path, options: CompileOptions, attention: bool, studied: Callable[[Subject], Study]
) -> Study:
    """What `studied` makes of the model on the PPU alone, else, where that is allowed, of its parts on the PPU."""
    from ppuc.compiler.driver import with_shapes_of_data
    from ppuc.compiler.frontend.conformance.check import conforming
    from ppuc.compiler.frontend.inlining import ExpansionError
    from ppuc.compiler.frontend.source import read_source
    from ppuc.compiler.host.study import HostedStudy
    from ppuc.compiler.quantization.study import WholeModel
    from ppuc.ir.errors import ModelError

    source = read_source(conforming(model, options.lenient, note))
    options = with_shapes_of_data(options, source)
    try:
        return studied(WholeModel(_prepared(source, options, attention)))
    except ModelError as error:
        if not options.host.allowed or isinstance(error, ExpansionError):
            raise
        return studied(HostedStudy.of(source, options, error, attention))


def _prepared(source: Source, options: CompileOptions, attention: bool) -> Prepared:
    from ppuc.compiler.alias import aliased
    from ppuc.compiler.driver import initial_module
    from ppuc.compiler.frontend.load import load_model
    from ppuc.compiler.quantization.prepare import prepare

    module = initial_module(load_model(source, dims=options.dims, shapes=options.shapes), options)
    aliased(module, options.aliases)  # refuse impossible aliases before measuring
    prepared = prepare(module, options)
    return prepared.with_attention() if attention else prepared

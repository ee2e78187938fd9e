"""ppuc compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, note, pairs
from ppuc.compiler.commands.formats import OF_CHECKS, checks_text, format_option
from ppuc.compiler.commands.options import CompileArguments, compile_options
from ppuc.compiler.commands.outputs import OutputFile
from ppuc.compiler.commands.recorded import recorded_run, refuse_options_on_records

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "compare",
    short_help="Compare two runs, models, programs, targets or precisions.",
    epilog="Examples:\n\n  ppuc compare before.json after.json\n\n"
    "  ppuc compare net.onnx --to precision=fp8\n\n  ppuc compare net.onnx --to target=zhenwu-810e\n\n"
    "  ppuc compare --baseline base.json net.onnx --max-slower 2% --format github",
)
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="A [B]")
@click.option(
    "--to",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="With one model: what is different in the second run: target=NAME, precision=NAME, or a number of the target "
    "such as hbm.gbs=4000. Repeatable.",
)
@click.option(
    "--baseline",
    type=OutputFile(),
    metavar="RUN.json",
    help="The run to compare with, in place of A.",
)
@click.option("--update-baseline", is_flag=True, help="Write the new run to --baseline if every check holds.")
@click.option("--max-slower", metavar="SHARE", help="Exit code 1 if B takes longer by more, as in 2%.")
@click.option(
    "--max-drop",
    metavar="DB",
    help="Exit code 1 if the signal-to-noise ratio of an output falls by more, as in 1dB, or an output is wrong.",
)
@format_option("junit, github and sarif hold the checks of --max-slower and --max-drop; the others also the numbers.")
@click.option(
    "--top", type=click.IntRange(min=0), default=12, show_default=True, metavar="N", help="Show N rows (0: all)."
)
@compile_options
@json_option
def compare_command(
    runs: tuple[Path, ...],
    changes: tuple[str, ...],
    baseline: Path | None,
    update_baseline: bool,
    max_slower: str | None,
    max_drop: str | None,
    form: str,
    top: int,
    arguments: CompileArguments,
    as_json: bool,
) -> int:
    """Show what changes from A to B: time by node and kernel, traffic, energy, accuracy, passes.

    A and B are records (--record), results (--json), programs (.ppu) or models (.onnx), which are compiled and timed.
    With a single model, --to says what is different in the second run. --max-slower and --max-drop make it a check:
    exit code 1 if one does not hold.
    """
    from ppuc.compiler.recording.difference import difference
    from ppuc.compiler.recording.gate import checks, decibels, percentage
    from ppuc.compiler.recording.record import write_record
    from ppuc.ir.errors import UsageError

    form = "json" if as_json else form
    slower = percentage(max_slower, "--max-slower") if max_slower is not None else None
    drop = decibels(max_drop, "--max-drop") if max_drop is not None else None
    if form in OF_CHECKS and slower is None and drop is None:
        raise UsageError.of(f"--format {form}", "holds checks", hint="give --max-slower or --max-drop")
    if update_baseline and baseline is None:
        raise UsageError.of("--update-baseline", "has no file to write", hint="give --baseline RUN.json")
    first, second = _operands(runs, baseline, bool(changes), update_baseline)
    refuse_options_on_records(runs, arguments)
    other = _changed(arguments, changes)
    made = recorded_run(second, other, verified=drop is not None)
    before = recorded_run(first, arguments, verified=drop is not None) if first is not None else made
    record = difference(before, made)
    found = checks(record, slower, drop) if first is not None else []
    record["checks"] = [check.record() for check in found]
    held = all(check.ok for check in found)
    _print(record, found, form, top or None)
    if update_baseline and held:
        assert baseline is not None
        write_record(baseline, made)
        note(f"note: {baseline} is now this run")
    return 0 if held else 1


def _operands(runs: tuple[Path, ...], baseline: Path | None, changed: bool, updates: bool) -> tuple[Path | None, Path]:
    """The first and the second run; None for a baseline that is yet to be written. Raises UsageError for a number of
    runs that does not fit the options."""
    from ppuc.ir.errors import UsageError

    wanted = 1 if baseline is not None or changed else 2
    if len(runs) != wanted or (baseline is not None and changed):
        how = "--baseline and --to exclude each other" if baseline is not None and changed else f"{wanted} to compare"
        hint = "`ppuc compare A B`, `ppuc compare MODEL --to KEY=VALUE` or `ppuc compare --baseline RUN.json B`"
        raise UsageError.of("ppuc compare", "takes two runs", got=f"{len(runs)}", expected=how, hint=hint)
    if baseline is not None:
        if not baseline.exists() and not updates:
            hint = "--update-baseline writes it"
            raise UsageError.of(str(baseline), "no such file", hint=hint)
        return (baseline if baseline.exists() else None), runs[0]
    return runs[0], runs[-1]


def _changed(arguments: CompileArguments, changes: tuple[str, ...]) -> CompileArguments:
    """The compile options of the second run."""
    from ppuc.compiler.precisions import named_precision

    overrides, explicit = list(arguments.overrides), dict(arguments.explicit)
    for key, value in pairs(changes, "--to").items():
        if key == "target":
            arguments = replace(arguments, target=value)
        elif key == "precision":
            named_precision(value, "--to precision")
            arguments, explicit["precision"] = replace(arguments, precision=value), "--to precision"
        else:
            overrides.append(f"{key}={value}")
    return replace(arguments, overrides=tuple(overrides), explicit=explicit)


def _print(record: dict[str, Any], found: list[Any], form: str, top: int | None) -> None:
    from ppuc.compiler.report import difference

    def show(out: Console, shown: dict[str, Any]) -> None:
        difference.show(out, shown, top)

    if form in ("table", "json"):
        emit("compare", record, form == "json", show)
    elif form in ("csv", "markdown"):
        click.echo(difference.csv_text(record) if form == "csv" else difference.markdown(record, top), nl=False)
    else:
        click.echo(checks_text("compare", found, form), nl=False)

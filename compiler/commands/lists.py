"""ppuc targets and ppuc ops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, progress_bar
from ppuc.compiler.commands.options import CompileArguments, chosen_target, model_options
from ppuc.compiler.commands.outputs import OutputFile
from ppuc.compiler.commands.program import program_for

if TYPE_CHECKING:
    from rich.console import Console

    from ppuc.compiler.program.compiled import CompiledProgram
    from ppuc.targets.description import Target


@click.command(
    "targets",
    short_help="List the targets, or every number of one.",
    epilog="Examples:\n\n  ppuc targets\n\n  ppuc targets zhenwu-m890 --set hbm.gbs=900\n\n"
    "  ppuc targets zhenwu-m890 --sweep hbm.gbs=2000:4000:500 --model net.onnx --dim N=1\n\n"
    "  ppuc targets --new my-npu --like tpuv3-core\n\n"
    "  ppuc targets zhenwu-m890 --sweep hbm.gbs=2000:6000:1000 --sweep cu=32,64 --model net.ppu --plot sweep.svg",
)
@click.argument("name", required=False, default="", metavar="[NAME|FILE]")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Show it with this number changed.")
@click.option(
    "--new",
    metavar="NAME",
    help="Write NAME.toml, a new target based on --like, with the numbers from datasheets first.",
)
@click.option("--like", metavar="NAME|FILE", help="With --new: the most similar known target.")
@click.option(
    "--sweep",
    "sweeps",
    metavar="KEY=FROM:TO:STEP",
    multiple=True,
    help="Show the machine's peaks, or the time of --model, for each value of a number; KEY=A,B,C lists values. "
    "Repeatable: sweeps all combinations.",
)
@click.option("--csv", "csv_file", type=OutputFile(), metavar="FILE.csv", help="Write the rows of a sweep.")
@click.option(
    "--plot",
    type=OutputFile(),
    metavar="FILE.svg",
    help="Plot a sweep over its first key, with a line for each value of the others; also .png and .html.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="With --sweep: an .onnx, compiled for every value, or a .ppu, which runs unchanged at every value.",
)
@model_options
@json_option
def targets_command(
    name: str,
    new: str | None,
    like: str | None,
    sweeps: tuple[str, ...],
    csv_file: Path | None,
    plot: Path | None,
    model: Path | None,
    arguments: CompileArguments,
    as_json: bool,
) -> None:
    """List the known targets, or print every number of one with its unit, mark and source.

    Marks: F official, M measured, E estimate, E-cal estimate fitted to measurements, D design choice of this model.
    """
    from ppuc.compiler.report.sweep import show
    from ppuc.ir.errors import UsageError
    from ppuc.targets.description import default_target, known_targets, load_target, validation_targets

    if new is not None:
        if name or sweeps or arguments.explicit:
            raise UsageError.of("--new", "goes with --like alone", hint="change numbers in the file that it writes")
        emit("targets", _new(new, like), as_json, _show_new)
        return
    if sweeps:
        record = _sweep(name, sweeps, csv_file, plot, model, arguments)
        emit("targets", {"sweep": record}, as_json, lambda out, shown: show(out, shown["sweep"]))
        return
    if like is not None:
        raise UsageError.of("--like", "has an effect with --new only", hint="e.g. --new my-npu --like zhenwu-m890")
    unused = {"--model": model, "--csv": csv_file, "--plot": plot, **dict.fromkeys(_compiling(arguments), True)}
    for option, given in unused.items():
        if given is not None:
            raise UsageError.of(option, "has an effect with --sweep only", hint="e.g. --sweep hbm.gbs=900:1800:100")
    if name or arguments.overrides:
        target = chosen_target(name, arguments.overrides)
        numbers = [
            {
                "key": leaf.path,
                "value": leaf.value,
                "unit": leaf.unit,
                "mark": leaf.mark,
                "informational": leaf.informational,
                "source": leaf.source,
            }
            for leaf in target.leaves()
        ]
        record = {"name": target.name, "hash": target.hash, "description": target.description, "numbers": numbers}
        emit("targets", record, as_json, _show_target)
        return
    listed = [load_target(known) for known in known_targets()]
    rows = [
        {
            "name": t.name,
            "hash": t.hash,
            "default": t.name == default_target(),
            "validation": t.name in validation_targets(),
            "description": t.description,
            "cu": t.cu,
            "max_mhz": t.clock.max_mhz,
            "peak_tops": {dtype: t.peak_tops(dtype) for dtype in t.tensor.ii_clk},
            "l2_bytes": t.l2.bytes,
            "hbm_gbs": t.hbm.gbs,
        }
        for t in listed
    ]
    emit("targets", {"targets": rows}, as_json, _show_targets)


def _new(name: str, like: str | None) -> dict[str, Any]:
    """Write a new target's file in the current folder."""
    from ppuc.ir.errors import UsageError
    from ppuc.ir.files import write_file
    from ppuc.targets.description import default_target, known_targets, load_target
    from ppuc.targets.template import template

    like = default_target() if like is None else like
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError.of(
            f"--new {name}", "is not a valid target name", expected="up to 100 letters, digits and . _ -, as in my-npu"
        )
    if name in known_targets():
        raise UsageError.of(f"--new {name}", "is already a target", hint=f"ppuc targets {name}")
    file = Path(f"{name}.toml")
    if file.exists():
        raise UsageError.of(str(file), "exists already", hint="give another name, or move the file")
    reference = f"./{like}" if like.endswith(".toml") and not like.startswith((".", "/")) else like
    write_file(file, template(name, load_target(like), reference).encode())
    return {"file": str(file), "name": name, "like": like}


def _show_new(out: Console, record: dict[str, Any]) -> None:
    out.print(f"{record['file']}: based on {record['like']}; the first part has the numbers of a datasheet")
    out.print(f"next: edit it, then `ppuc targets {record['file']}`, and use it as --target {record['file']}")


def _compiling(arguments: CompileArguments) -> list[str]:
    """The given compile options."""
    return [written for name, written in arguments.explicit.items() if name != "overrides"]


def _sweep(
    name: str,
    sweeps: Sequence[str],
    csv_file: Path | None,
    plot: Path | None,
    model: Path | None,
    arguments: CompileArguments,
) -> dict[str, Any]:
    from ppuc.compiler.report.charts import require_chart_file
    from ppuc.compiler.report.sweep import sweep, write_csv, write_plot
    from ppuc.ir.errors import UsageError

    if plot is not None:
        require_chart_file(plot, "--plot")
    if model is None:
        if plot is not None:
            raise UsageError.of("--plot", "draws the time of a model", hint="give one with --model")
        arguments.refuse_all_but(("overrides",), "has no effect without --model")

    def made(machine: Target) -> CompiledProgram:
        assert model is not None
        return program_for(model, arguments, machine)

    with progress_bar("sweep") as progress:
        target = chosen_target(name, arguments.overrides)
        record = sweep(target, sweeps, made if model is not None else None, progress)
    if csv_file is not None:
        write_csv(record, csv_file)
    if plot is not None:
        write_plot(record, plot)
    return record


def _show_targets(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import table

    columns = ("target", "CUs", "MHz", "bf16 TOPS", "l2 MiB", "hbm GB/s", "description")
    for title, validation in (("", False), ("accelerators whose published measurements validate the timing", True)):
        rows = [
            (
                t["name"] + (" *" if t["default"] else ""),
                t["cu"],
                f"{t['max_mhz']:g}",
                f"{t['peak_tops'].get('bf16', 0):.4g}",
                f"{t['l2_bytes'] / 2**20:g}",
                f"{t['hbm_gbs']:g}",
                t["description"],
            )
            for t in record["targets"]
            if t["validation"] == validation
        ]
        table(out, title, columns, rows, left=(0, 6))
    out.print("* default. `ppuc targets NAME` prints every number with its source.")


def _show_target(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import table

    out.print(f"{record['name']} ({record['hash']}): {record['description']}")
    rows = [
        (n["key"] + " *" * n["informational"], n["value"], n["unit"], n["mark"], n["source"]) for n in record["numbers"]
    ]
    table(out, "", ("key", "value", "unit", "mark", "source"), rows, left=(0, 2, 3, 4))
    out.print("* informational: describes the machine, but no program, time or energy depends on it.")


@click.command("ops", short_help="List the ops of the graph level, or the supported ONNX ops.")
@click.option("--onnx", "onnx_ops", is_flag=True, help="List the ONNX ops that can be imported instead.")
@json_option
def ops_command(onnx_ops: bool, as_json: bool) -> None:
    """List the ops of the graph level with their formulas.

    Other ONNX ops than those listed by --onnx are expanded by their ONNX function definition if they have one.
    """
    if onnx_ops:
        from ppuc.compiler.frontend.registry import importable_ops

        record: dict[str, Any] = {"onnx": importable_ops()}
        emit("ops", record, as_json, lambda out, shown: out.print("\n".join(shown["onnx"])))
        return
    from ppuc.ir.ops import OPS

    rows = [
        {"op": o.name, "kind": o.kind.value, "operands": o.operands, "formula": o.formula}
        for o in OPS.complete().values()
    ]
    emit("ops", {"ops": rows}, as_json, _show_ops)


def _show_ops(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import table

    rows = [(r["op"], r["kind"], r["operands"], r["formula"]) for r in record["ops"]]
    table(out, "", ("op", "kind", "operands", "formula"), rows, left=(0, 1, 2, 3))

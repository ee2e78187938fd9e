"""ppuc opt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option, progress_bar
from ppuc.compiler.commands.options import PIPELINE, TARGET, CompileArguments, compile_arguments
from ppuc.compiler.commands.outputs import OutputFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ppuc.compiler.passes.remarks import Remark
    from ppuc.compiler.pipeline.manager import Run
    from ppuc.ir.module import Module
    from ppuc.targets.description import Target


@click.command(
    "opt",
    short_help="Run passes on a dumped program, or finish its compilation.",
    epilog="Examples:\n\n  ppuc opt steps/00-import.ppir -p canonicalise,fold\n\n"
    "  ppuc opt steps/24-tile.ppir --to-end -o net.ppu",
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.ppir")
@click.option("-p", "--passes", metavar="PASS[,PASS]", help="Passes to run, in order; options as tile{tries=8}.")
@click.option("--to-end", is_flag=True, help="Run the remaining passes of the pipeline of FILE.ppir.")
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    metavar="FILE",
    help="Write here: a .ppir text, or a .ppu program. Default: the text goes to stdout.",
)
@compile_arguments(*PIPELINE, *TARGET)
@json_option
def opt_command(
    file: Path,
    passes: str | None,
    to_end: bool,
    output: Path | None,
    arguments: CompileArguments,
    as_json: bool,
) -> None:
    """Read FILE.ppir, run passes, and write the result.

    Resuming from any dump with --to-end gives the same bytes as the original compilation, unless --pipeline or
    --disable-pass change the passes. Without -p and --to-end the file is parsed, verified and printed again.
    """
    from ppuc.compiler.lowering.tiling.body import NotFusable
    from ppuc.compiler.pipeline.dump import read_manifest
    from ppuc.compiler.pipeline.manager import Run, all_remarks
    from ppuc.compiler.pipeline.pass_options import build_passes
    from ppuc.compiler.pipeline.quantize_step import Quantize
    from ppuc.compiler.pipeline.resume import check_target, read_module, remaining_passes, rerouted
    from ppuc.ir.errors import TextError, UsageError
    from ppuc.ir.verify import VerificationError

    if passes is not None and to_end:
        raise UsageError.of("--to-end", "cannot be combined with -p")
    module = read_module(file)
    if to_end:
        pipeline = arguments.pipeline if "pipeline" in arguments.explicit else ""
        module = rerouted(module, str(file), pipeline, arguments.disable_pass)
    else:
        arguments.refuse(("pipeline", "disable_pass"), "has no effect without --to-end")
    machine = arguments.machine(module.target)
    check_target(module, machine, str(file))
    steps = remaining_passes(module, str(file)) if to_end else build_passes(passes or "")
    through = file.name
    if steps and isinstance(steps[0], Quantize):
        from ppuc.compiler.quantization.requantize import requantized

        module, steps = requantized(module, steps[0], file, machine), steps[1:]
        through = Quantize.name
    with progress_bar("opt") as progress:
        run = Run(machine, steps, progress=progress, listening=True)
        try:
            after = run.run(module)
        except (VerificationError, NotFusable) as error:  # texts are edited by hand; some mistakes surface only here
            raise TextError.of(
                str(file),
                "leads to a program that breaks the rules of the IR",
                got=error,
                hint="if ppuc wrote this text and it was not edited, please report a bug",
            ) from error
    manifest = read_manifest(file.parent)
    before = manifest.remarks_until(through) if manifest is not None else ()
    text = _write(after, machine, output, (*before, *all_remarks(run.records)))
    if as_json or output is not None:
        emit("opt", _record(file, output, run, after), as_json, _show)
    else:
        click.echo(text, nl=False)


def _write(module: Module, target: Target, output: Path | None, remarks: Sequence[Remark]) -> str:
    """Write the result to `output`, a program with its `remarks`; without `output`, print the text."""
    from ppuc.ir.errors import UsageError

    if output is None:
        from ppuc.ir.text import print_module

        return print_module(module)
    if output.suffix == ".ppu":
        from ppuc.compiler.pipeline.link import link
        from ppuc.targets.artifact import save

        save(link(module, target, remarks), output)
    elif output.suffix == ".ppir":
        from ppuc.compiler.pipeline.dump import write_ppir

        write_ppir(output, module)
    else:
        raise UsageError.of("-o", "unsupported output extension", got=output, expected=".ppir or .ppu")
    return ""


def _record(file: Path, output: Path | None, run: Run, module: Module) -> dict[str, Any]:
    return {
        "file": str(file),
        "output": str(output) if output is not None else None,
        "passes": [r.record() for r in run.records],
        "done": list(module.done),
    }


def _show(out: Console, record: dict[str, Any]) -> None:
    for step in record["passes"]:
        out.print(f"{step['pass']}: {'changed' if step['changed'] else 'nothing to do'} ({step['ms']:.1f} ms)")
    out.print(f"written: {record['output']}")

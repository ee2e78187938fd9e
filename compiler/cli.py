"""The command `ppuc`: its subcommands, and error handling.

Exit codes: 0 success; 1 a check failed; 2 invalid input or usage; 3 internal error. Invariant: a user's mistake is a
message, never a traceback; an internal error is always a traceback with instructions for a report.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NoReturn

import click

from ppuc.compiler.commands.assembly import asm_command, disasm_command
from ppuc.compiler.commands.check import check_command
from ppuc.compiler.commands.common import note
from ppuc.compiler.commands.compare import compare_command
from ppuc.compiler.commands.compile import compile_command
from ppuc.compiler.commands.evaluate import evaluate_command
from ppuc.compiler.commands.explain import explain_command
from ppuc.compiler.commands.inspect import inspect_command
from ppuc.compiler.commands.lists import ops_command, targets_command
from ppuc.compiler.commands.opt import opt_command
from ppuc.compiler.commands.passes import passes_command
from ppuc.compiler.commands.predict import predict_command
from ppuc.compiler.commands.profile import profile_command
from ppuc.compiler.commands.quantize import quantize_command
from ppuc.compiler.commands.rebatch import rebatch_command
from ppuc.compiler.commands.report import report_command
from ppuc.compiler.commands.run import run_command
from ppuc.compiler.commands.simplify import simplify_command
from ppuc.compiler.commands.streams import StreamError, checked_streams, discard_unwritten
from ppuc.compiler.commands.verify import verify_command
from ppuc.compiler.pipeline.collection import rare_collections
from ppuc.compiler.version import VERSION
from ppuc.ir.errors import CapacityError, Diagnostic, PpucError, UsageError
from ppuc.ir.jit import store

INTERNAL_ERROR = 3
ATTACH = """
This is a fault of ppuc, not of your model or call. Please report it with the lines above, the command you typed,
the output of `ppuc --version`, and the model, or its dump up to the failure: `ppuc compile MODEL --dump DIR`.
"""


class PpucGroup(click.Group):
    """A group that turns exceptions into messages and exit codes, and lists its commands in the order they were
    added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        arguments = list(sys.argv[1:] if args is None else args)
        announced = store.announced(lambda text: note(f"note: {text}"))
        with rare_collections(), checked_streams(), announced, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's: overflow and NaN are results like others
            try:
                code = self._outcome(arguments, prog_name, {**extra, "standalone_mode": False})
            except StreamError as error:
                code = 2
                with suppress(StreamError):
                    click.echo(f"error: {error}", err=True)
            except BrokenPipeError:
                code = 141
        discard_unwritten()
        sys.exit(code)

    def _outcome(self, arguments: list[str], prog_name: str | None, extra: dict[str, Any]) -> int:
        """Run a command, report errors, and return the exit code."""
        try:
            result = super().main(arguments, prog_name, **extra)
            code = result if isinstance(result, int) else 0
        except click.ClickException as error:
            error.show()
            if _wants_json(arguments):
                _show_json("UsageError", [Diagnostic("", error.format_message())])
            code = error.exit_code if error.exit_code != 1 else 2
        except click.Abort:
            click.echo("interrupted", err=True)
            code = 130
        except PpucError as error:
            _show_error(error, _wants_json(arguments))
            code = getattr(error, "exit_code", 2)
        except MemoryError as error:
            _show_error(_too_large(error), _wants_json(arguments))
            code = 2
        except (BrokenPipeError, StreamError):
            raise
        except Exception as error:
            nul = next((a for a in arguments if "\0" in a), None)
            if nul is not None and isinstance(error, ValueError) and "null byte" in str(error):
                refusal = UsageError.of(repr(nul), "cannot be a path", got="a NUL character in its name")
                _show_error(refusal, _wants_json(arguments))
                return 2
            click.echo(traceback.format_exc() + ATTACH, err=True, nl=False)
            code = INTERNAL_ERROR
        return code


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command was asked for JSON, even if its options were not understood."""
    return "--json" in arguments or "--format=json" in arguments or ("--format", "json") in pairwise(arguments)


def _too_large(error: MemoryError) -> PpucError:
    hint = "`ppuc check` and `ppuc profile --timing-only` compute no values"
    return CapacityError.of("this computer", "has too little memory for the model's values", got=error, hint=hint)


def _show_error(error: PpucError, as_json: bool) -> None:
    for diagnostic in error.diagnostics:
        click.echo(f"error: {diagnostic}", err=True)
    if as_json:
        _show_json(type(error).__name__, error.diagnostics)


def _show_json(error: str, diagnostics: Sequence[Diagnostic]) -> None:
    click.echo(json.dumps({"error": error, "diagnostics": [asdict(d) for d in diagnostics]}, ensure_ascii=False))


@click.group(
    cls=PpucGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `ppuc check MODEL.onnx`, then `ppuc verify MODEL.onnx`. Every command takes --help and --json.",
)
@click.version_option(VERSION, prog_name="ppuc")
def cli() -> None:
    """Compile ONNX models for a PPU-class accelerator and simulate them.

    Does the model run, is it correct, how fast is it, and what limits it: without hardware.
    """


for _command in (
    compile_command,
    run_command,
    verify_command,
    profile_command,
    report_command,
    compare_command,
    explain_command,
    predict_command,
    check_command,
    quantize_command,
    evaluate_command,
    simplify_command,
    rebatch_command,
    opt_command,
    inspect_command,
    disasm_command,
    asm_command,
    targets_command,
    ops_command,
    passes_command,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Entry point of the `ppuc` executable."""
    try:
        cli.main(prog_name="ppuc")
    finally:
        gc.freeze()  # the interpreter's last collections need not visit a whole model

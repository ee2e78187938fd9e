"""The record of a run that a command shows: read from a file, or of a model or program compiled and timed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppuc.compiler.commands.common import simulation_bar
from ppuc.compiler.commands.options import CompileArguments
from ppuc.compiler.commands.program import is_artifact, program_of
from ppuc.compiler.commands.recording import Recorder, ran


def is_recorded(path: Path) -> bool:
    """Whether a file holds the record of a run, or what a command printed: it is neither a model nor a program."""
    return path.suffix not in (".onnx", ".ppu")


def refuse_options_on_records(paths: Sequence[Path], arguments: CompileArguments) -> None:
    """Raise UsageError about a compile option that has no effect, because all files are recorded runs."""
    if all(map(is_recorded, paths)):
        hint = "give the .onnx file"
        arguments.refuse_all_but((), "has no effect on a recorded run", got=" ".join(map(str, paths)), hint=hint)


def recorded_run(path: Path, arguments: CompileArguments, *, verified: bool = False) -> dict[str, Any]:
    """The record of a file that holds one, or of a .onnx or .ppu that is timed here, and with `verified` also verified
    if it is an .onnx. Raises PpucError."""
    from ppuc.compiler.recording.difference import read_run
    from ppuc.compiler.report.profile import profile_record
    from ppuc.compiler.verification import verify_program

    if is_recorded(path):
        return read_run(path)
    recorder = Recorder(None, path, keeps=True)
    program = program_of(path, arguments, {}, recorder)
    if verified and not is_artifact(path):
        with simulation_bar() as progress:
            made = verify_program(program, progress=progress)
        found = {"model": str(path), "target": program.target.name, **made.record()}
        return recorder.record("verify", program, ran("verify", program, found, made.profile, made.deferred))
    with simulation_bar() as progress:
        result = program.time(progress=progress)
    times = profile_record(result.profile, program.target, result.nodes, result.program, result.launches)
    return recorder.record("profile", program, {"profile": times})

"""--record: the run of a command as one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ppuc.compiler.commands.outputs import OutputFile

if TYPE_CHECKING:
    from ppuc.compiler.host.deferred import DeferredRun
    from ppuc.compiler.options import CompileOptions, Instrumentation
    from ppuc.compiler.program.compiled import CompiledProgram
    from ppuc.compiler.recording.passes import PassWatch
    from ppuc.targets.simulator.result import Profile

F = TypeVar("F", bound=Callable[..., Any])


def record_option(function: F) -> F:
    """--record."""
    return click.option(
        "--record",
        "recorded",
        type=OutputFile(),
        metavar="RUN.json",
        help="Write what was found, with the passes and kernels, for `ppuc report` and `ppuc compare`; compressed if "
        "the name ends in .gz.",
    )(function)


@dataclass
class Recorder:
    """Watches the compilation of `model`, to record it: in the file `path`, if there is one, or for a caller that
    `keeps` the record. Does nothing otherwise."""

    path: Path | None
    model: Path
    keeps: bool = False
    _watch: PassWatch | None = field(default=None, init=False)

    def watching(self, watch: Instrumentation, options: CompileOptions) -> Instrumentation:
        """`watch`, which also watches the passes if there is something to record."""
        if self.path is None and not self.keeps:
            return watch
        from ppuc.compiler.recording.passes import PassWatch

        self._watch = PassWatch(options.target)
        return replace(watch, seen=self._watch)

    def record(
        self, command: str, program: CompiledProgram, sections: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The record of `command` on `program`; `sections` are the JSON of what it found, by the command that prints
        such JSON."""
        from ppuc.compiler.recording.record import run_record

        return run_record(command, self.model, program, sections, self._watch)

    def write_run(
        self,
        command: str,
        program: CompiledProgram,
        found: Mapping[str, Any],
        profile: Profile,
        deferred: Sequence[DeferredRun],
    ) -> None:
        """Write the record of a command that ran the program and printed `found` as JSON (see `ran`)."""
        if self.path is not None:
            self.write(command, program, ran(command, program, found, profile, deferred))

    def write(self, command: str, program: CompiledProgram, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the record, if one is wanted. Raises UsageError when that is not possible."""
        if self.path is not None:
            from ppuc.compiler.recording.record import write_record

            write_record(self.path, self.record(command, program, sections))


def ran(
    command: str, program: CompiledProgram, found: Mapping[str, Any], profile: Profile, deferred: Sequence[DeferredRun]
) -> dict[str, Mapping[str, Any]]:
    """The sections of a command that ran the program: what it found, and the run's profile, without a waterfall if a
    part of what ran was compiled meanwhile."""
    from ppuc.compiler.report.profile import profile_record

    whole = None if deferred else program.artifact.program
    return {command: found, "profile": profile_record(profile, program.target, program.nodes, whole)}

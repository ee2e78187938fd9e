"""Options that name a file to write.

Invariant: a place that cannot be written is refused before any work is done, and no command writes over the file that
it was given to read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class OutputFile(click.Path):
    """A file to write: in a folder that exists, and not a folder itself. Raises UsageError otherwise."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from ppuc.ir.errors import UsageError

        path = Path(value)
        where = str(value) or (param.opts[-1] if param is not None else "")
        if not str(value):
            raise UsageError.of(where, "the name of the file to write is empty")
        try:
            folder, parent = path.is_dir(), path.parent.is_dir()
        except OSError as error:  # the name is too long, or a folder on the way may not be entered
            raise UsageError.of(where, "cannot be written", got=error.strerror) from None
        if folder:
            raise UsageError.of(where, "cannot be written", got="a folder", expected="the name of a file")
        if not parent:
            raise UsageError.of(
                where, "cannot be written", got=f"there is no folder {path.parent}", hint="make it first"
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError.of(where, "cannot be written", got="permission denied")
        return path


def keep_input(given: Path, output: Path | None) -> None:
    """Raise UsageError when `output` is the very file that a command reads."""
    from ppuc.ir.errors import UsageError

    if output is not None and os.path.exists(output) and os.path.exists(given) and output.samefile(given):
        raise UsageError.of(str(output), "would be written over the file that is read", hint="give another name")

"""Options that name a file to write.

Invariant: an unwritable path is refused before any work is done, and no command overwrites its own input file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class OutputFile(click.Path):
    """A file to write, in an existing folder. Raises UsageError otherwise."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from ppuc.ir.errors import UsageError

        path = Path(value)
        where = str(value) or (param.opts[-1] if param is not None else "")
        if not str(value):
            raise UsageError.of(where, "the name of the file to write is empty")
        try:
            folder, parent = path.is_dir(), path.parent.is_dir()
        except OSError as error:  # the name is too long, or a parent folder is not accessible
            raise UsageError.of(where, "cannot be written", got=error.strerror) from None
        if folder:
            raise UsageError.of(where, "cannot be written", got="a folder", expected="the name of a file")
        if not parent:
            raise UsageError.of(
                where, "cannot be written", got=f"there is no folder {path.parent}", hint="create it first"
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError.of(where, "cannot be written", got="permission denied")
        return path


def keep_input(given: Path, output: Path | None) -> None:
    """Raise UsageError if `output` is the file that a command reads."""
    from ppuc.ir.errors import UsageError

    if output is not None and os.path.exists(output) and os.path.exists(given) and output.samefile(given):
        raise UsageError.of(str(output), "would overwrite the input file", hint="give another name")

"""Going on from a dump: a module read back, and the passes that it has yet to go through.

Invariant: a module read back from a dump ends in the same bytes as the one that was dumped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.dump import read_constants
from ppuc.ir.errors import TextError, UsageError
from ppuc.ir.module import Module
from ppuc.targets.description import Target


def read_module(path: str | Path) -> Module:
    """Parse and verify a `.ppir` file, its constants taken from the `constants` folder beside it. Raises TextError."""
    from ppuc.ir.text import parse_module
    from ppuc.ir.verify import VerificationError, verify_module

    file = Path(path)
    if not file.is_file():
        raise TextError.of(str(file), "no such file" if not file.exists() else "is not a file", expected="a .ppir text")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError.of(str(file), "is not text", got=str(error), expected="a .ppir text in UTF-8") from error
    module = parse_module(text, read_constants(file.parent), str(file))
    try:
        verify_module(module)
    except VerificationError as error:
        raise TextError.of(str(file), "breaks the rules of the IR", got=str(error)) from error
    return module


def remaining_passes(module: Module, where: str) -> tuple[Pass, ...]:
    """The part of the pipeline that `module` has not been through. Raises UsageError when what it has been through is
    not a beginning of the pipeline."""
    from ppuc.compiler.pipeline.default import PIPELINE

    names = tuple(p.name for p in PIPELINE)
    if names[: len(module.done)] != module.done:
        raise UsageError.of(
            where,
            "has been through other passes than the pipeline's, so there is no rest of it to run",
            got=", ".join(module.done),
            expected=", ".join(names[: len(module.done)]),
            hint="name the passes to run with -p",
        )
    return PIPELINE[len(module.done) :]


def check_target(module: Module, target: Target, where: str) -> None:
    """Raise UsageError when `module` was made for another machine than `target`."""
    if module.target_hash != target.hash:
        raise UsageError.of(
            where,
            "was made for another target",
            got=f"{module.target} {module.target_hash}",
            expected=f"{target.name} {target.hash}",
            hint="give the same --target and --set as when it was compiled",
        )


def named_passes(names: Sequence[str]) -> tuple[Pass, ...]:
    """Passes by name with their default options; `name:option=value` sets one. Raises UsageError for an unknown one."""
    from ppuc.compiler.pipeline.pass_options import build_pass

    return tuple(build_pass(name) for name in names)

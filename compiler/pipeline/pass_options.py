"""Text form of passes: a spec is a pass's name and its non-default options, such as `tile{tries=8}`.

Invariant: `build_pass(spec_of(step))` equals `step`, and equal passes have equal specs: options follow field order,
defaults are omitted.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.registry import PASSES
from ppuc.ir.errors import UsageError
from ppuc.ir.text.literals import LiteralError, convert, format_literal, no_resources
from ppuc.ir.text.nodes import Spec
from ppuc.ir.text.syntax import LineSyntaxError, parse_line


def spec_of(step: Pass) -> str:
    """The spec of a pass."""
    shown = options_text(step)
    return f"{step.name}{{{shown}}}" if shown else step.name


def specs_of(passes: Sequence[Pass]) -> tuple[str, ...]:
    """The specs of passes."""
    return tuple(spec_of(step) for step in passes)


def options_text(step: Pass) -> str:
    """The options of a pass that differ from their defaults, as `name=value, ...`."""
    values = ((f, getattr(step, f.name)) for f in _fields(type(step)))
    return ", ".join(f"{f.name}={format_literal(value)}" for f, value in values if value != f.default)


def build_pass(text: str, where: str = "-p") -> Pass:
    """The pass that a spec describes. Raises UsageError, located at `where`, for a malformed spec, an unknown pass or
    option, or a value of the wrong type."""
    steps = build_passes(text, where)
    if len(steps) != 1:
        raise UsageError.of(where, f"names {len(steps)} passes", got=repr(text), expected="one pass")
    return steps[0]


def build_passes(text: str, where: str = "-p") -> tuple[Pass, ...]:
    """The passes of a list such as `fold,tile{tries=8}`. Raises UsageError as `build_pass` does."""
    try:
        specs = parse_line(text, "specs") if text.strip() else ()
    except LineSyntaxError as error:
        raise UsageError.of(
            where,
            f"cannot be read as passes at column {error.column}: {error.what}",
            got=error.got or text,
            expected=error.expected,
            hint="passes are separated by commas, options follow in braces: fold,tile{tries=8}",
        ) from None
    return tuple(_built(spec, where) for spec in specs)


def _built(spec: Spec, where: str) -> Pass:
    kind = pass_named(str(spec.name), where)
    known, hints = {f.name: f for f in _fields(kind)}, get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, literal in spec.options:
        if key not in known:
            raise UsageError.of(
                where,
                f"pass '{kind.name}' has no option '{key}'",
                expected=", ".join(known) or "a pass without options",
            )
        if key in values:
            raise UsageError.of(where, f"option '{key}' of pass '{kind.name}' is given twice")
        try:
            values[str(key)] = convert(hints[key], literal, str(key), no_resources)
        except LiteralError as error:
            what = f"option '{key}' of pass '{kind.name}' has the wrong type"
            raise UsageError.of(where, what, got=error.got, expected=error.expected) from None
    missing = [n for n, f in known.items() if n not in values and f.default is MISSING]
    if missing:
        raise UsageError.of(where, f"pass '{kind.name}' needs option '{missing[0]}'")
    return kind(**values)


def pass_named(name: str, where: str) -> type[Pass]:
    """The class of the pass called `name`. Raises UsageError if it does not exist."""
    if name not in PASSES:
        close = difflib.get_close_matches(name, PASSES, 1)
        hint = f"did you mean '{close[0]}'?" if close else "`ppuc passes` lists them"
        raise UsageError.of(where, f"there is no pass '{name}'", expected=", ".join(PASSES), hint=hint)
    return PASSES[name]


def describe_options(kind: type[Pass]) -> list[dict[str, Any]]:
    """Name, type and default of each option of a pass, as text. The default is None for a mandatory option."""
    return [
        {
            "name": f.name,
            "type": str(f.type),
            "default": format_literal(f.default) if f.default is not MISSING else None,
        }
        for f in _fields(kind)
    ]


def _fields(kind: type[Pass]) -> Sequence[Field[Any]]:
    return fields(kind)  # type: ignore[arg-type] # passes are dataclasses, which the protocol cannot say

"""Passes from text: `fold`, or `tile:budget=200` with options by name.

Invariant: an option keeps the type of its field; text that does not fit is a UsageError.
"""

from __future__ import annotations

import difflib
from dataclasses import MISSING, Field, fields
from typing import Any

from ppuc.compiler.passes.base import Pass
from ppuc.ir.errors import UsageError


def build_pass(text: str) -> Pass:
    """The pass that `text` names. Raises UsageError for an unknown pass or option, or a value of the wrong type."""
    from ppuc.compiler.pipeline.default import PASSES

    name, _, rest = text.strip().partition(":")
    if name not in PASSES:
        close = difflib.get_close_matches(name, PASSES, 1)
        hint = f"did you mean '{close[0]}'?" if close else "`ppuc passes` lists them"
        raise UsageError.of("-p", f"there is no pass '{name}'", expected=", ".join(PASSES), hint=hint)
    kind = PASSES[name]
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(":")):
        key, _, value = part.partition("=")
        if key not in known:
            raise UsageError.of(
                "-p", f"pass '{name}' has no option '{key}'", expected=", ".join(known) or "a pass without options"
            )
        options[key] = _value(name, known[key], value)
    return kind(**options)


def _value(pass_name: str, option: Field[Any], text: str) -> Any:
    default = option.default if option.default is not MISSING else ""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(filter(None, text.split("+")))
        return type(default)(text)
    except (ValueError, KeyError):
        kind = type(default).__name__
        raise UsageError.of(
            "-p", f"option '{option.name}' of pass '{pass_name}' has the wrong type", got=text, expected=kind
        ) from None


def describe_options(kind: type[Pass]) -> list[dict[str, Any]]:
    """Name, type and default of each option of a pass."""
    return [
        {"name": f.name, "type": str(f.type), "default": repr(f.default) if f.default is not MISSING else None}
        for f in fields(kind)  # type: ignore[arg-type]
    ]

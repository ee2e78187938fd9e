"""Selects the passes of one compilation: a named pipeline, passes that packages insert, and passes that options disable
or configure.

Invariant: the passes depend only on the options and the installed packages. Every module records them, so resuming a
dump does not depend on the packages installed by then.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from ppuc.compiler.options import PIPELINE as RECORDED
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import NONE, PIPELINE
from ppuc.compiler.pipeline.layers import KeepLayers
from ppuc.compiler.pipeline.pass_options import build_passes, pass_named, specs_of
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.compiler.pipeline.registry import OWN, PASSES, PIPELINES
from ppuc.ir.errors import UsageError

_ORDER = tuple(step.name for step in PIPELINE)


def passes_of(options: CompileOptions, before: str = "") -> tuple[Pass, ...]:
    """The passes that a compilation with `options` runs; with `before`, only those in front of the first pass of that
    name. Raises UsageError for an unknown pipeline, and for a disabled pass that is required or not in the pipeline."""
    passes = without(named_pipeline(options.pipeline), options.disabled, options.pipeline)
    if options.tune > 1:
        passes = tuple(replace(step, tries=options.tune) if isinstance(step, Tile) else step for step in passes)
    if options.keep_layers and not any(isinstance(step, KeepLayers) for step in passes):
        passes = _with(passes, KeepLayers())
    return passes[: _place_of(before, passes)] if before else passes


def _place_of(name: str, passes: Sequence[Pass]) -> int:
    """The position of the first pass called `name`. Raises UsageError."""
    found = next((i for i, step in enumerate(passes) if step.name == name), None)
    if found is None:
        got = ", ".join(step.name for step in passes)
        raise UsageError.of("--pipeline", f"the pipeline lacks pass '{name}'", got=got, hint="add it to the list")
    return found


def recorded(passes: Sequence[Pass]) -> tuple[str, ...]:
    """The pipeline that a module records when it is to go through `passes`: their specs, or () for the default
    pipeline."""
    specs = specs_of(passes)
    return () if specs == specs_of(PIPELINE) else specs


def recorded_text(pipeline: Sequence[str]) -> dict[str, str]:
    """The artifact's metadata on the recorded pipeline, from which the program can be rebuilt. Omits the pass that
    keeps layer outputs; empty for the default pipeline."""
    left_out = (KeepLayers.name, Quantize.name)  # the precision asks for the latter
    specs = tuple(spec for spec in pipeline if spec.partition("{")[0] not in left_out)
    return {RECORDED: ",".join(specs)} if specs and specs != specs_of(PIPELINE) else {}


def named_pipeline(name: str) -> tuple[Pass, ...]:
    """The pipeline called `name` with the passes that packages insert, or the passes that `name` lists. Raises
    UsageError."""
    if name not in PIPELINES:
        if "," in name or "{" in name:
            return build_passes(name, "--pipeline")
        close = difflib.get_close_matches(name, PIPELINES, 1)
        hint = f"did you mean '{close[0]}'?" if close else "`ppuc passes` lists them"
        raise UsageError.of("--pipeline", f"there is no pipeline '{name}'", expected=", ".join(PIPELINES), hint=hint)
    own = passes = PIPELINES[name]
    for kind in _foreign():
        if own is PIPELINE or (own is NONE and kind.required):
            passes = _with(passes, kind())
    return passes


def _foreign() -> list[type[Pass]]:
    """Passes of other packages that ask for a position in the default pipeline."""
    return [kind for name, kind in PASSES.complete().items() if name not in OWN and (kind.after or kind.before)]


def without(passes: Sequence[Pass], disabled: Sequence[str], pipeline: str) -> tuple[Pass, ...]:
    """`passes` of the pipeline called `pipeline`, without the `disabled` ones. Raises UsageError."""
    for name in disabled:
        where = f"--disable-pass {name}"
        kind = pass_named(name, where)
        if kind.required:
            raise UsageError.of(where, f"pass '{name}' is required: {kind.required}")
        if not any(step.name == name for step in passes):
            raise UsageError.of(
                where,
                f"pass '{name}' is not in the pipeline",
                got=pipeline,
                expected=", ".join(dict.fromkeys(step.name for step in passes if not step.required)) or None,
            )
    return tuple(step for step in passes if step.name not in disabled)


def _with(passes: Sequence[Pass], step: Pass) -> tuple[Pass, ...]:
    """`passes` with `step` inserted next to its neighbour (`after` or `before`). Where the neighbour is missing, `step`
    follows the last pass that precedes the neighbour in the default pipeline."""
    names = [p.name for p in passes]
    neighbour = step.after or step.before
    if neighbour in names:
        at = names.index(neighbour) + bool(step.after)
    else:
        earlier = _ORDER[: _ORDER.index(neighbour)]
        at = max((i + 1 for i, name in enumerate(names) if name in earlier), default=0)
    return (*passes[:at], step, *passes[at:])

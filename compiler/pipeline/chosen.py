"""The passes of one compilation: the pipeline as its options change it."""

from __future__ import annotations

from dataclasses import replace

from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.layers import keeping_layers


def passes_of(options: CompileOptions, before: str = "") -> tuple[Pass, ...]:
    """The passes that a compilation with `options` runs; with `before` those up to the first pass of that name."""
    passes = keeping_layers(PIPELINE) if options.keep_layers else PIPELINE
    if options.tune > 1:
        passes = tuple(replace(step, tries=options.tune) if isinstance(step, Tile) else step for step in passes)
    return passes[: next(i for i, step in enumerate(passes) if step.name == before)] if before else passes

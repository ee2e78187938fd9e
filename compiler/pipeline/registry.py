"""Every pass and every pipeline by name: ppuc's own, and those that packages of others add.

A package names a pass in the entry points of group `ppuc.passes` (the class, under the pass's name) and a pipeline, a
tuple of passes, in those of `ppuc.pipelines`.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.default import NONE, PIPELINE
from ppuc.compiler.pipeline.layers import KeepLayers
from ppuc.ir.plugins import Extensible


def _pass(name: str, found: Any) -> dict[str, type[Pass]]:
    if not (isinstance(found, type) and issubclass(found, Pass) and is_dataclass(found)):
        raise ValueError("is no dataclass derived from ppuc.compiler.passes.base.Pass")
    if found.name != name:
        raise ValueError(f"the pass calls itself '{found.name}'")
    for anchor in filter(None, (found.after, found.before)):
        if anchor not in {step.name for step in PIPELINE}:
            raise ValueError(f"it stands next to '{anchor}', which is no pass of the default pipeline")
    return {name: found}


def _pipeline(name: str, found: Any) -> dict[str, tuple[Pass, ...]]:
    if not (isinstance(found, tuple) and all(isinstance(step, Pass) for step in found)):
        raise ValueError("is no tuple of passes")
    return {name: found}


OWN = {step.name: type(step) for step in (*PIPELINE, KeepLayers())}
"""The passes of ppuc itself."""

PASSES: Extensible[str, type[Pass]] = Extensible("ppuc.passes", _pass, OWN)
"""Every pass by the name that dumps and `ppuc opt -p` use."""

PIPELINES: Extensible[str, tuple[Pass, ...]] = Extensible(
    "ppuc.pipelines", _pipeline, {"default": PIPELINE, "none": NONE}
)
"""Every pipeline by the name that --pipeline takes; those of ppuc without the passes that packages put into them."""

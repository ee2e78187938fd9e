"""Every pass and pipeline by name: the built-in ones and those that other packages add.

A package registers a pass class under the pass's name in entry point group `ppuc.passes`, and a pipeline, a tuple of
passes, in `ppuc.pipelines`.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.default import NONE, PIPELINE
from ppuc.compiler.pipeline.layers import KeepLayers
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.ir.plugins import Extensible


def _pass(name: str, found: Any) -> dict[str, type[Pass]]:
    if not (isinstance(found, type) and issubclass(found, Pass) and is_dataclass(found)):
        raise ValueError("is not a dataclass derived from ppuc.compiler.passes.base.Pass")
    if found.name != name:
        raise ValueError(f"the pass's own name is '{found.name}'")
    for anchor in filter(None, (found.after, found.before)):
        if anchor not in {step.name for step in PIPELINE}:
            raise ValueError(f"its neighbour '{anchor}' is not a pass of the default pipeline")
    return {name: found}


def _pipeline(name: str, found: Any) -> dict[str, tuple[Pass, ...]]:
    if not (isinstance(found, tuple) and all(isinstance(step, Pass) for step in found)):
        raise ValueError("is not a tuple of passes")
    return {name: found}


OWN = {step.name: type(step) for step in (*PIPELINE, KeepLayers(), Quantize())}
"""The built-in passes."""

PASSES: Extensible[str, type[Pass]] = Extensible("ppuc.passes", _pass, OWN)
"""Every pass by the name that dumps and `ppuc opt -p` use."""

PIPELINES: Extensible[str, tuple[Pass, ...]] = Extensible(
    "ppuc.pipelines", _pipeline, {"default": PIPELINE, "none": NONE}
)
"""Every pipeline by the name that --pipeline takes; built-in ones without the passes that packages insert."""

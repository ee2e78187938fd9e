"""Every pass by name: those of the pipeline, and those that other pipelines add to it."""

from __future__ import annotations

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.layers import KeepLayers

PASSES: dict[str, type[Pass]] = {step.name: type(step) for step in (*PIPELINE, KeepLayers())}
"""Every pass by the name that dumps and `ppuc opt -p` use."""

"""Quantizes a dumped module again, with the plan stored in the dump.

Invariant: the result is the module that the dumped compilation continued with.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ppuc.compiler.alias import aliased
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.pipeline.dump import QUANTIZATION
from ppuc.compiler.pipeline.pass_options import spec_of
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.compiler.pipeline.resume import recorded_pipeline
from ppuc.compiler.quantization.policy import read_policy
from ppuc.compiler.quantization.prepare import prepare
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module
from ppuc.targets.description import Target


def requantized(module: Module, step: Quantize, text: Path, target: Target) -> Module:
    """`module`, read from `text`, after `step`. Raises UsageError if passes have already run on it, and if the plan is
    missing or belongs to another module."""
    file = text.parent / QUANTIZATION
    if module.done:
        return step.run(module, target)
    if not file.is_file():
        raise UsageError.of(
            str(text),
            "is a text from before its layers were quantized, and the plan for that is not beside it",
            expected=str(file),
            hint="dump again, or go on from the text after the step 'quantize'",
        )
    passes = ",".join(spec_of(p) for p in recorded_pipeline(module, str(text)) if not isinstance(p, Quantize))
    options = CompileOptions(target, module.option("precision"), pipeline=passes)
    prepared = prepare(module, options)
    quantized = prepared.quantized(read_policy(file, prepared.all_layers))
    return replace(aliased(quantized, step.aliases), done=(spec_of(step),))

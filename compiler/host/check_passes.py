"""`--check-passes` for models with host steps: each PPU part runs on its inputs from a run of the whole model.

Invariant: every input from the caller reaches the model or is refused; random inputs equal those of a model without
host steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppuc.compiler.frontend.offload.load_hosted import HostedModel
from ppuc.compiler.host.client import HostError, worker
from ppuc.compiler.host.feeds import Feeds, feeds_of_parts, host_held, input_specs_of
from ppuc.compiler.host.partition import Part
from ppuc.compiler.host.quantize import PartsQuantizer
from ppuc.compiler.inputs import checked_inputs, generate_all, without_fixed
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.ir.errors import InputError, UsageError
from ppuc.ir.module import Module


@dataclass(slots=True)
class PartsToCheck:
    """Wraps `quantizer` (None: nothing is quantized) and records the inputs of each part in `given`."""

    options: CompileOptions
    watch: Instrumentation
    quantizer: PartsQuantizer | None
    given: list[Feeds] = field(default_factory=list)

    def __call__(self, hosted: HostedModel, parts: Sequence[Part], modules: Sequence[Module]) -> list[Module]:
        """The modules, quantized if a quantizer is set. Raises PpucError for inputs on which the model cannot run."""
        self.given = self._given(hosted, parts)
        return list(modules) if self.quantizer is None else self.quantizer(hosted, parts, modules)

    def _given(self, hosted: HostedModel, parts: Sequence[Part]) -> list[Feeds]:
        inputs = self._inputs(hosted)
        try:
            return feeds_of_parts(hosted, parts, inputs, worker(self.options.host.ops))
        except HostError as error:
            if self.watch.inputs is not None:
                raise
            what, got = "the host cannot compute its part of the model on random inputs", error.diagnostics[0].got
            raise UsageError.of("--check-passes", what, got=got, hint="give some with --inputs FILE.npz") from error

    def _inputs(self, hosted: HostedModel) -> dict[str, Any]:
        specs, foreign = input_specs_of(hosted), host_held(hosted)
        given: Mapping[str, Any] = {**hosted.defaults, **(self.watch.inputs or {})}
        if missing := [name for name in foreign if name not in given]:
            what, hint = f"input '{missing[0]}' is missing", "only the host can hold it, so it cannot be random"
            raise InputError.of("--check-passes", what, expected=dict(hosted.inputs)[missing[0]], hint=hint)
        dense = {n: a for n, a in without_fixed(hosted.fixed, given, "--inputs").items() if n not in foreign}
        arrays = generate_all(specs) if self.watch.inputs is None else checked_inputs(specs, dense, "--inputs")
        return {**arrays, **{name: given[name] for name in foreign}}


__all__ = ["PartsToCheck"]

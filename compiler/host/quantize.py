"""Quantizes the PPU parts of a hosted model.

Calibration needs the inputs of each part: the whole model runs on every sample, PPU parts by their graphs in f32 and
host steps by the worker, and each part is calibrated on the inputs it receives.

Invariant: a part is quantized like a separate model with the same samples; a policy covers the layers of all parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.frontend.offload.load_hosted import HostedModel
from ppuc.compiler.host.client import worker
from ppuc.compiler.host.feeds import Feeds, feeds_of_parts, samples_of_parts
from ppuc.compiler.host.partition import Part, PpuPart
from ppuc.compiler.options import UNWATCHED, CompileOptions, Instrumentation
from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.quantization.data import Data
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.policy import read_policy
from ppuc.compiler.quantization.prepare import Prepared, prepare
from ppuc.compiler.quantization.quantize import chosen_plan
from ppuc.compiler.quantization.study import repaired_plan
from ppuc.ir.module import Module


@dataclass(frozen=True, slots=True)
class PartsQuantizer:
    """Quantizes the modules of all PPU parts according to `options`."""

    options: CompileOptions
    watch: Instrumentation = UNWATCHED

    def __call__(self, hosted: HostedModel, parts: Sequence[Part], modules: Sequence[Module]) -> list[Module]:
        """The quantized modules. Raises UsageError and InputError for invalid options, and HostError."""
        prepared = [prepare(module, self.options) for module in modules]
        return [p.quantized(plan) for p, plan in zip(prepared, self._plans(hosted, parts, prepared), strict=True)]

    def _plans(self, hosted: HostedModel, parts: Sequence[Part], prepared: Sequence[Prepared]) -> list[Plan]:
        how = self.options.quantization
        if how.policy is not None:
            whole = read_policy(how.policy, [layer for p in prepared for layer in p.all_layers])
            return [_of_layers(whole, p) for p in prepared]
        if how.data is None or PRECISIONS[self.options.precision].per_layer:
            return [chosen_plan(p) for p in prepared]
        given = self._given(hosted, parts, how.data)
        each = self.watch.quantizing
        return [repaired_plan(p, samples, each, part=True) for p, samples in zip(prepared, given, strict=True)]

    def _given(self, hosted: HostedModel, parts: Sequence[Part], data: Data) -> list[list[Feeds]]:
        """For each PPU part, its inputs on every sample, by name."""
        samples = samples_of_parts(hosted, data)
        found: list[list[Feeds]] = [[] for p in parts if isinstance(p, PpuPart)]
        for number, sample in enumerate(samples):
            given = feeds_of_parts(hosted, parts, sample, worker(self.options.host.ops))
            for own, feeds in zip(found, given, strict=True):
                own.append(feeds)
            self.watch.quantizing(f"sample {number + 1}")
        return found


def _of_layers(plan: Plan, prepared: Prepared) -> Plan:
    names = {layer.name for layer in prepared.all_layers}
    return Plan({name: layer for name, layer in plan.layers.items() if name in names})


__all__ = ["PartsQuantizer"]

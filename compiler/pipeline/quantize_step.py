"""The step that quantizes layers, as modules record it: between the import and the passes, where the precision asks.

Formats and scales come from samples or a policy, which no pass sees. So the step is run by the driver, which leaves its
plan beside the texts of a dump, and run again, from that plan, when the text before it is resumed.

Invariant: a module at a precision that quantizes has this step first in its pipeline, and first in what it has been
through once its layers are quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module
from ppuc.targets.description import Target


@dataclass(frozen=True)
class Quantize(Pass):
    """Put layers into the formats of the plan beside the text, `quantization.toml`; first step at 8-bit precisions.

    `alias` are input and output in turns: outputs that then take the memory of their inputs.

    %y = matmul(%x, %w)      ->      %q = cast(%x * (1 / s)); %a = matmul(%q, %v) {out = f32}; %y = %a * (s * t)
    """

    name: ClassVar[str] = "quantize"
    required: ClassVar[str] = "the precision asks for it"
    alias: tuple[str, ...] = ()

    @classmethod
    def then_sharing(cls, aliases: Mapping[str, str]) -> Quantize:
        """The step before outputs take the memory of inputs as `aliases` say."""
        return cls(tuple(name for pair in aliases.items() for name in pair))

    @property
    def aliases(self) -> dict[str, str]:
        """Input -> output."""
        return dict(zip(self.alias[::2], self.alias[1::2], strict=True))

    def run(self, module: Module, target: Target) -> Module:
        """Raises UsageError: a module alone says nothing of formats and scales."""
        raise UsageError.of(
            f"pass {self.name}",
            "can only be the first step, on the text of a dump that has the plan beside it",
            got=f"passes run: {', '.join(module.done) or 'none'}",
            hint="`ppuc opt DUMP/00-import.ppir -p quantize`, or --to-end",
        )

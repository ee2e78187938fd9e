"""What a pass is: a frozen dataclass whose fields are its options, with `run(module, target) -> module`.

The first line of the class docstring is the pass's help; its `name` is what dumps and `ppuc opt -p` use. A pass takes
and leaves valid IR, and returns the same module object when nothing changed.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from ppuc.ir.module import Module
from ppuc.targets.description import Target


@runtime_checkable
class Pass(Protocol):
    """One step of the pipeline."""

    name: ClassVar[str]

    def run(self, module: Module, target: Target) -> Module:
        """The module after this step."""
        ...

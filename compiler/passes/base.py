"""The base class of passes: frozen dataclasses whose fields are their options, with `run(module, target) -> module`.

The first line of the class docstring is the pass's help; its `name` is what dumps and `ppuc opt -p` use. A pass takes
and returns valid IR, and returns the same module object when it changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from ppuc.compiler.passes.contracts import Contract
from ppuc.ir.module import Module
from ppuc.targets.description import Target


class Pass(ABC):
    """One step of a pipeline. `required` is the reason why the pass cannot be disabled; "" when it can.

    A pass of another package is inserted into the default pipeline right after the first pass called `after`, or right
    before the first one called `before`; with neither, it runs only where it is named. A required one is inserted into
    every built-in pipeline.

    The pass manager checks the contracts in `requires` before the pass and, if the module changed, those in `ensures`
    after it.
    """

    __slots__ = ()
    name: ClassVar[str]
    required: ClassVar[str] = ""
    after: ClassVar[str] = ""
    before: ClassVar[str] = ""
    requires: ClassVar[tuple[Contract, ...]] = ()
    ensures: ClassVar[tuple[Contract, ...]] = ()

    @abstractmethod
    def run(self, module: Module, target: Target) -> Module:
        """The module after this pass."""

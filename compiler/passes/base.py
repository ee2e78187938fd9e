"""What a pass is: a frozen dataclass whose fields are its options, with `run(module, target) -> module`.

The first line of the class docstring is the pass's help; its `name` is what dumps and `ppuc opt -p` use. A pass takes
and leaves valid IR, and returns the same module object when nothing changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from ppuc.compiler.passes.contracts import Contract
from ppuc.ir.module import Module
from ppuc.targets.description import Target


class Pass(ABC):
    """One step of a pipeline. `required` says why no pipeline can do without the pass; "" when it can be left out.

    A pass of another package goes into the default pipeline right after the first step called `after`, or right before
    the first one called `before`; with neither it runs only where it is named. One that is required goes into every
    named pipeline of ppuc.

    The pass manager checks the contracts that the pass `requires` before it and, when it changed the module, those that
    it `ensures` after it.
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
        """The module after this step."""

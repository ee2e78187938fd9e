"""Passes of other packages, for tests of how they are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.ir.module import Module
from ppuc.targets.description import Target


@dataclass(frozen=True)
class Renamed(Pass):
    """Belongs to no pipeline."""

    name: ClassVar[str] = "renamed"

    def run(self, module: Module, target: Target) -> Module:
        return module


@dataclass(frozen=True)
class Stranger(Pass):
    """Stands next to nothing that exists."""

    name: ClassVar[str] = "stranger"
    after: ClassVar[str] = "nothing"

    def run(self, module: Module, target: Target) -> Module:
        return module


@dataclass(frozen=True)
class Early(Pass):
    """Follows a pass that can be left out."""

    name: ClassVar[str] = "early"
    after: ClassVar[str] = "match-attention"

    def run(self, module: Module, target: Target) -> Module:
        return module


@dataclass(frozen=True)
class Needed(Pass):
    """Must run, before tiles are made."""

    name: ClassVar[str] = "needed"
    before: ClassVar[str] = "weight-layout"
    required: ClassVar[str] = "tests need it"

    def run(self, module: Module, target: Target) -> Module:
        return module

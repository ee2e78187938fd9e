"""The importers of ONNX ops, by op type.

An importer is a function `(NodeContext) -> Sequence[Value]`, registered with `@importer("Conv")` or, for ops of another
domain, `@importer("FusedConv", domain="com.microsoft")`. Modules of FAMILIES hold the built-in ones; entry points of
group `ppuc.importers` name modules of packages that register more.

Invariant: an op of a domain has one importer at most.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ppuc.compiler.frontend.context import NodeContext
from ppuc.ir.graph import Value
from ppuc.ir.plugins import Extensible

Importer = Callable[[NodeContext], Sequence[Value]]

NEAR = 0.8
"""Similarity, as difflib measures it, from which an unknown name counts as a mistyped one."""

FAMILIES = (
    "activation",
    "attention",
    "cached_attention",
    "contraction",
    "contrib",
    "convolution",
    "einsum",
    "elementwise",
    "movement",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "resize",
    "sampling",
    "shape",
    "sorting",
    "spectral",
    "unpooling",
)
"""Modules of `ppuc.compiler.frontend.ops` that hold importers."""


def _registered(name: str, found: Any) -> dict[tuple[str, str], Importer]:
    """No entries: loading a package's module has registered its importers."""
    if not isinstance(found, ModuleType):
        raise ValueError("is not a module")
    return {}


IMPORTERS: Extensible[tuple[str, str], Importer] = Extensible("ppuc.importers", _registered)
"""(domain, op type) -> importer; the domain of standard ops is ""."""


def importer(*op_types: str, domain: str = "") -> Callable[[Importer], Importer]:
    """Register the decorated function for ONNX op types. Raises ValueError if one of them has an importer already."""

    def add(function: Importer) -> Importer:
        for op_type in op_types:
            if IMPORTERS.holds((domain, op_type)):
                raise ValueError(f"two importers for {domain}:{op_type}")
            IMPORTERS[domain, op_type] = function
        return function

    return add


def register_importers() -> None:
    """Import the op families, which register their importers; idempotent."""
    for family in FAMILIES:
        importlib.import_module(f"ppuc.compiler.frontend.ops.{family}")


def importable_ops() -> list[str]:
    """ONNX ops with an importer, in order; those outside the standard domain are prefixed with their domain."""
    register_importers()
    return sorted(f"{domain}:{op}" if domain else op for domain, op in IMPORTERS.complete())


def near_op(op: str) -> str:
    """`did you mean 'Relu'? ` for an op, called as by `importable_ops`, that is nearly one of those; else ""."""
    close = difflib.get_close_matches(op, importable_ops(), 1, NEAR)
    return f"did you mean '{close[0]}'? " if close else ""


__all__ = ["FAMILIES", "IMPORTERS", "Importer", "importable_ops", "importer", "near_op", "register_importers"]

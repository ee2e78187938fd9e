"""The type of rules and the table of rules by op, in which the modules of this package register theirs.

Invariant: rules of an op are tried in the order in which they were registered.
"""

from __future__ import annotations

from collections.abc import Callable

from ppuc.compiler.simplify.model import ModelGraph, Node

Rule = Callable[[ModelGraph, Node], bool]
"""Rewrites a graph at a node; returns whether it changed anything."""
RULES: dict[str, list[Rule]] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for nodes of these ops."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES.setdefault(op, []).append(function)
        return function

    return register


__all__ = ["RULES", "Rule", "rule"]

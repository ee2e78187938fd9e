"""Findings of conformance rules, and the traversal of a model's nodes.

Invariant: a Finding names the node or tensor, the rule, and the actual and expected contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.source import opset_versions
from ppuc.ir.errors import Entity, EntityKind


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule. `place` is empty for the model as a whole, else a node or tensor as named in messages. `mend`
    changes the model to its most likely meaning; None if that is unknown. `about` are the entities concerned."""

    place: str
    what: str
    got: str | None = None
    expected: str | None = None
    mend: Callable[[], object] | None = None
    about: tuple[Entity, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeSite:
    """A node, its name in messages, the opsets in force, and the attributes of the enclosing function (None outside
    functions)."""

    node: onnx.NodeProto
    label: str
    opsets: Mapping[str, int]
    parameters: frozenset[str] | None

    @property
    def place(self) -> str:
        return f"node '{self.label}' ({self.node.op_type})"

    def broken(
        self,
        what: str,
        got: str | None = None,
        expected: str | None = None,
        *,
        attribute: str = "",
        mend: Callable[[], object] | None = None,
    ) -> Finding:
        """A finding of a rule that the node, or one of its attributes, breaks."""
        about = [Entity(EntityKind.NODE, self.label)]
        about += [Entity(EntityKind.ATTRIBUTE, attribute)] if attribute else []
        return Finding(self.place, what, got, expected, mend, tuple(about))


def node_sites(model: onnx.ModelProto) -> Iterator[NodeSite]:
    """Every node of the model: of its graph, of graphs inside nodes, and of functions."""
    yield from _sites(model.graph.node, opset_versions(model.opset_import), None, "")
    for function in model.functions:
        parameters = frozenset((*function.attribute, *(a.name for a in function.attribute_proto)))
        yield from _sites(function.node, opset_versions(function.opset_import), parameters, f"{function.name}/")


def _sites(
    nodes: Sequence[onnx.NodeProto], opsets: Mapping[str, int], parameters: frozenset[str] | None, prefix: str
) -> Iterator[NodeSite]:
    for index, node in enumerate(nodes):
        label = prefix + (node.name or f"{node.op_type}_{index}")
        yield NodeSite(node, label, opsets, parameters)
        for graph in subgraphs(node):
            yield from _sites(graph.node, opsets, parameters, f"{label}/")

"""Rules for If nodes with a known condition: inline the selected branch.

Invariant: names defined in the branch that clash with outer names are renamed; captured names keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from ppuc.compiler.frontend.order import captured
from ppuc.compiler.simplify.convert import constant_of, parsed_node
from ppuc.compiler.simplify.model import Constant, ModelGraph, Node


def inline_branches(g: ModelGraph) -> bool:
    """Replace every If that has a constant condition, except where a nested subgraph reads tensors of the branch."""
    changed = False
    for node in g.live_nodes():
        condition = g.array(node.inputs[0]) if node.op == "If" and node.domain == "" else None
        if condition is None or condition.size != 1:
            continue
        branch = node.attr("then_branch" if bool(condition.reshape(-1)[0]) else "else_branch")
        own = {t.name for t in branch.initializer} | {o for n in branch.node for o in n.output if o}
        if not branch.sparse_initializer and not _captures(branch, own):
            _inline(g, node, branch, {name: g.fresh(name) for name in sorted(own)})
            changed = True
    if changed:
        g.index()
    return changed


def _captures(branch: onnx.GraphProto, own: set[str]) -> bool:
    """Whether a subgraph inside the branch reads one of the branch's tensors."""
    graphs = [a.g for n in branch.node for a in n.attribute if a.HasField("g")]
    return any(captured(graph) & own for graph in graphs)


def _inline(g: ModelGraph, node: Node, branch: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for tensor in branch.initializer:
        g.constants[renamed[tensor.name]] = Constant(tensor)
    inner: list[Node] = []
    for proto in branch.node:
        constant = constant_of(proto)
        if constant is not None:
            g.constants[renamed[proto.output[0]]] = constant
        else:
            inner.append(parsed_node(proto, renamed[next(filter(None, proto.output))]))
    for n in inner:
        n.inputs = [renamed.get(i, i) for i in n.inputs]
        n.outputs = [renamed.get(o, o) for o in n.outputs]
    for output, name in zip(branch.output, node.outputs, strict=True):
        if name:
            inner.append(Node("Identity", [renamed.get(output.name, output.name)], [name], name))
    at = next(i for i, n in enumerate(g.nodes) if n is node)
    g.nodes[at : at + 1] = inner

"""Rules about a model as a whole: versions, functions, and declared names and types.

M1  the IR version is given and known (onnx.proto, Version)
M2  each domain is imported in one version, which exists (skl2onnx writes the same entry twice)
M3  a function is defined once, and not under the name of an operator of the standard
M4  graph inputs have a name and a type, outputs and initializers a name, and there is an output; none is declared
    twice, again with other elements, or with more axes than arrays have
M5  a function's inputs, outputs and attributes have distinct names
M6  an initializer of the name of an input has its type and shape
M8  every tensor has an element type that onnx.proto lists, and so have tensors in declared sequences and optionals
M9  an op of a function is the same in the opset that the function imports and in the model's (onnx.proto,
    FunctionProto.opset_import)
M12 no two entries of the metadata have the same key

M7 and M10 are in `scope_rules.py`, M11 is in `stored.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx

from ppuc.compiler.frontend.conformance.findings import Finding
from ppuc.compiler.frontend.conformance.node_rules import schema_of
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.source import normal_domain, opset_versions

NEWEST_IR = onnx.IR_VERSION
_ELEMENTS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
_OPEN_ELEMENTS = frozenset(onnx.TensorProto.DataType.values())
OPEN = (None, "tensor_type", "sparse_tensor_type", "opaque_type")
"""Kinds of types that may leave their elements open."""
MOST_AXES = 64
"""Of numpy's arrays."""
NEWEST_OPSETS = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
"""Domain -> newest version that the installed onnx package knows."""


def model_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    """Violations of rules M1 to M6, M8, M9 and M12."""
    yield from _ir_version(model)
    yield from _opsets("", model.opset_import)
    yield from _functions(model)
    yield from _declarations(model.graph)
    yield from _types(model)
    for key in _repeated(entry.key for entry in model.metadata_props):
        yield Finding("", f"the metadata have two entries '{key}'", expected="one")
    for name, tensor in stored_tensors(model):
        if tensor.data_type not in _ELEMENTS:
            yield Finding(f"tensor '{name}'", "its element type is unknown", f"type number {tensor.data_type}")


def _types(model: onnx.ModelProto) -> Iterator[Finding]:
    """M8 for declared types; those of inner tensors and outputs may be left open."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for kind, infos in (("input", graph.input), ("tensor", graph.value_info), ("output", graph.output)):
            for info in infos:
                elements = _elements(info.type)
                if elements not in (_ELEMENTS if info.type.WhichOneof("value") not in OPEN else _OPEN_ELEMENTS):
                    got = f"type number {elements}" if elements else "none"
                    yield Finding(f"{kind} '{info.name}'", "its element type is unknown", got)
        graphs += [inner for node in graph.node for inner in subgraphs(node)]


def _elements(type: onnx.TypeProto) -> int:
    """The element type of the tensors of a type; 0 if it is not given."""
    kind = type.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        elements: int = getattr(type, kind).elem_type
        return elements
    if kind in ("sequence_type", "optional_type"):
        return _elements(getattr(type, kind).elem_type)
    return _elements(type.map_type.value_type) if kind == "map_type" else 0


def _ir_version(model: onnx.ModelProto) -> Iterator[Finding]:
    if not model.HasField("ir_version") or model.ir_version < 1:
        got = str(model.ir_version) if model.HasField("ir_version") else "none"
        yield Finding("", "the IR version is missing", got, f"1 to {NEWEST_IR}")
    elif model.ir_version > NEWEST_IR:
        yield Finding("", "the IR version is newer than this version of onnx knows", str(model.ir_version),
                      f"at most {NEWEST_IR}")  # fmt: skip


def _opsets(place: str, imports: Iterable[onnx.OperatorSetIdProto]) -> Iterator[Finding]:
    versions: dict[str, int] = {}
    for entry in imports:
        domain = normal_domain(entry.domain)
        name = f"opset of domain '{domain or 'ai.onnx'}'"
        if versions.get(domain, entry.version) != entry.version:
            yield Finding(
                place, f"the {name} is imported twice", f"{versions[domain]} and {entry.version}", "one version"
            )
        versions.setdefault(domain, entry.version)
        newest = NEWEST_OPSETS.get(domain)
        if entry.version < 1:
            yield Finding(place, f"the {name} has no version", str(entry.version), "1 or more")
        elif newest is not None and entry.version > newest:
            yield Finding(place, f"the {name} is newer than this version of onnx knows", str(entry.version),
                          f"at most {newest}")  # fmt: skip


def _functions(model: onnx.ModelProto) -> Iterator[Finding]:
    known: set[tuple[str, str, str]] = set()
    for function in model.functions:
        place, domain = f"function '{function.name}'", normal_domain(function.domain)
        if not function.name:
            yield Finding("a function of the model", "it has no name")
        key = (domain, function.name, function.overload)
        if key in known:
            yield Finding(place, "it is defined twice", expected="one definition for a name and overload")
        known.add(key)
        if domain in NEWEST_OPSETS and schema_of(function.name, NEWEST_OPSETS[domain], domain) is not None:
            got = f"domain '{domain or 'ai.onnx'}'"
            yield Finding(place, "it has the name of a standard operator", got, "a domain of its own")
        yield from _opsets(place, function.opset_import)
        yield from _other_versions(place, function, opset_versions(model.opset_import))
        for kind, names in (
            ("input", function.input),
            ("output", function.output),
            ("attribute", [*function.attribute, *(a.name for a in function.attribute_proto)]),
        ):
            for name in _repeated(names):
                yield Finding(place, f"it has two {kind}s called '{name}'")


def _other_versions(place: str, function: onnx.FunctionProto, outer: Mapping[str, int]) -> Iterator[Finding]:
    own = opset_versions(function.opset_import)
    other = {domain for domain, version in own.items() if outer.get(domain, version) != version}
    used = dict.fromkeys((node.op_type, normal_domain(node.domain)) for node in _nodes(function.node)) if other else {}
    for op_type, domain in used:
        if domain in other:
            schemas = [schema_of(op_type, versions[domain], domain) for versions in (own, outer)]
            if None not in schemas and schemas[0].since_version != schemas[1].since_version:
                got = f"opset {own[domain]} in the function, {outer[domain]} in the model"
                yield Finding(place, f"{op_type} is another op in the model's opset", got, "the same opset in both")


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, including those of graphs inside nodes."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _nodes(graph.node)


def stored_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """All tensors that are stored in the model, initializers of the main graph first, each with its name or that of the
    node that holds it."""
    nodes = [*_nodes(model.graph.node), *_nodes(n for f in model.functions for n in f.node)]
    for graph in (model.graph, *(graph for node in nodes for graph in subgraphs(node))):
        yield from ((t.name, t) for t in graph.initializer)
        yield from ((t.values.name, t.values) for t in graph.sparse_initializer)
    for node in nodes:
        for attribute in node.attribute:
            held = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            yield from ((t.name or node.name or node.op_type, t) for t in held)


def _declarations(graph: onnx.GraphProto) -> Iterator[Finding]:
    for kind, infos in (("input", graph.input), ("output", graph.output)):
        for info in infos:
            if not info.name:
                yield Finding(f"an {kind} of the graph", "it has no name")
            elif kind == "input" and info.type.WhichOneof("value") is None:
                yield Finding(f"{kind} '{info.name}'", "its type is missing")
            elif (rank := len(info.type.tensor_type.shape.dim)) > MOST_AXES:
                yield Finding(f"{kind} '{info.name}'", "it has too many axes", str(rank), f"at most {MOST_AXES}")
        for name in _repeated(i.name for i in infos):
            yield Finding(f"{kind} '{name}'", "it is declared twice")
    if not graph.output:
        yield Finding("", "the graph has no outputs", expected="at least one")
    if any(not t.name for t in graph.initializer):
        yield Finding("an initializer of the graph", "it has no name")
    types = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    for info in graph.value_info:
        declared = info.type.tensor_type.elem_type
        if declared and types.get(info.name, declared) != declared:
            got, wanted = (onnx.TensorProto.DataType.Name(t).lower() for t in (declared, types[info.name]))
            yield Finding(f"input '{info.name}'", "its elements are declared again, of another type", got, wanted)

    declared = {i.name: i.type.tensor_type for i in graph.input}
    for tensor in graph.initializer:
        if tensor.name in declared and not _fits(tensor, declared[tensor.name]):
            about = declared[tensor.name]
            sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in about.shape.dim]
            got, wanted = _text(tensor.data_type, list(tensor.dims)), _text(about.elem_type, sizes)
            yield Finding(f"input '{tensor.name}'", "its initializer has another type", got, wanted)


def _text(elements: int, sizes: list[int | str]) -> str:
    known = elements in onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(elements).lower() if known else f"type {elements}"
    return f"{name}[{', '.join(map(str, sizes))}]"


def _fits(tensor: onnx.TensorProto, declared: onnx.TypeProto.Tensor) -> bool:
    """Whether an initializer has the elements and sizes that are declared."""
    if declared.elem_type not in (onnx.TensorProto.UNDEFINED, tensor.data_type):
        return False
    dims = declared.shape.dim
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    fits = len(sizes) == len(tensor.dims) and all(n in (None, m) for n, m in zip(sizes, tensor.dims, strict=True))
    return fits or not declared.HasField("shape")


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]

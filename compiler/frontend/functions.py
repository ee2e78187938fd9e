"""Function bodies: expansions of ops without an importer.

Three sources, in this order: functions of the model, function bodies of ONNX's own op schemas, and bodies that a schema
builds for one node from its attributes and input types.

Invariant: the nodes of a FunctionBody have no references to attributes of the function, which are substituted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from ppuc.compiler.frontend.source import normal_domain, opset_versions
from ppuc.compiler.frontend.tensors import proto_type
from ppuc.ir.graph import Value

DEEPEST_CALL = 64
FunctionKey = tuple[str, str, str]
"""Domain, name, overload."""


@dataclass(frozen=True, slots=True)
class FunctionBody:
    """`inputs` and `outputs` are matched to those of the calling node by position."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    opsets: Mapping[str, int]


def local_functions(model: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    """The functions defined in a model."""
    return {(normal_domain(f.domain), f.name, f.overload): f for f in model.functions}


def expanded_nodes(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[FunctionKey, onnx.FunctionProto], most: int
) -> int:
    """Number of nodes that function calls expand to, counted up to `most` + 1. Recursive calls and calls deeper than
    DEEPEST_CALL are not counted: the importer refuses them."""
    known: dict[FunctionKey, int] = {}

    def of(node: onnx.NodeProto, depth: int) -> int:
        key = (normal_domain(node.domain), node.op_type, node.overload)
        if key in functions and key not in known and depth < DEEPEST_CALL:
            known[key] = 0
            body = functions[key].node
            known[key] = min(len(body) + sum(of(inner, depth + 1) for inner in body), most + 1)
        return known.get(key, 0)

    return min(sum(of(node, 0) for node in nodes), most + 1)


def local_body(node: onnx.NodeProto, functions: Mapping[FunctionKey, onnx.FunctionProto]) -> FunctionBody | None:
    """The body of a call to one of the model's functions, or None."""
    function = functions.get((normal_domain(node.domain), node.op_type, node.overload))
    return _instance(function, node, {}) if function is not None else None


def has_schema_body(node: onnx.NodeProto, opset: int) -> bool:
    """Whether `schema_body` may find a body for some operands."""
    schema = _schema(node, opset)
    return schema is not None and bool(_version(schema, opset))


def schema_body(node: onnx.NodeProto, opset: int, operands: Sequence[Value | None]) -> FunctionBody | None:
    """The body from the op's schema; None if the op is unknown or primitive, or the operands do not fit."""
    schema = _schema(node, opset)
    version = _version(schema, opset) if schema is not None else 0
    if schema is None or not version:
        return None
    if schema.has_function:
        data = schema.get_function_with_opset_version(version)
    else:
        types = [proto_type(v.type).SerializeToString() if v is not None else b"" for v in operands]
        data = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
    if not data:
        return None
    defaults = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    return _instance(onnx.FunctionProto.FromString(data), node, defaults)


def _schema(node: onnx.NodeProto, opset: int) -> Any:
    """An onnx.defs.OpSchema (whose type stub lacks what is used here), or None."""
    try:
        return onnx.defs.get_schema(node.op_type, opset, normal_domain(node.domain))
    except onnx.defs.SchemaError:
        return None


def _version(schema: Any, opset: int) -> int:
    """The version of the newest body for `opset`; 0 if there is none."""
    fixed, built = schema.function_opset_versions, schema.context_dependent_function_opset_versions
    return max((v for v in (fixed if schema.has_function else built) if v <= opset), default=0)


def _instance(
    function: onnx.FunctionProto, call: onnx.NodeProto, defaults: Mapping[str, onnx.AttributeProto]
) -> FunctionBody:
    """`function` with the attributes of `call`; missing ones take the function's defaults, then `defaults`."""
    given = {**defaults, **{a.name: a for a in function.attribute_proto}, **{a.name: a for a in call.attribute}}
    nodes = tuple(_substituted(node, given) for node in function.node)
    return FunctionBody(tuple(function.input), tuple(function.output), nodes, opset_versions(function.opset_import))


def _substituted(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A copy of `node` with references substituted; references to attributes that are not given are dropped."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    copy.attribute.extend(_attributes(node.attribute, given))
    return copy


def _attributes(
    attributes: Iterable[onnx.AttributeProto], given: Mapping[str, onnx.AttributeProto]
) -> Iterable[onnx.AttributeProto]:
    for attribute in attributes:
        if attribute.ref_attr_name and attribute.ref_attr_name not in given:
            continue
        copy = onnx.AttributeProto()
        copy.CopyFrom(given[attribute.ref_attr_name] if attribute.ref_attr_name else attribute)
        copy.name = attribute.name
        if not attribute.ref_attr_name:
            for graph in ([copy.g] if copy.HasField("g") else []) + list(copy.graphs):
                nodes = [_substituted(node, given) for node in graph.node]
                del graph.node[:]
                graph.node.extend(nodes)
        yield copy

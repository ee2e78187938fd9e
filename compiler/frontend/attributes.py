"""Attributes of nodes: their values, and detection of attributes that an importer did not read (from a newer opset, a
vendor, or a typo).

Invariant: the importer reads every attribute that can affect a node's result, or the node is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx

from ppuc.compiler.frontend.place import Place
from ppuc.compiler.frontend.source import Source, normal_domain
from ppuc.compiler.frontend.tensors import packed_range, read_tensor
from ppuc.ir.errors import Entity, EntityKind


def plain_value(attribute: onnx.AttributeProto, source: Source, place: Place) -> Any:
    """The value of an attribute as plain Python; an array for a tensor. Raises ModelError for unsupported kinds."""
    kinds = onnx.AttributeProto
    about = (Entity(EntityKind.ATTRIBUTE, attribute.name),)
    if attribute.type == kinds.TENSOR and packed_range(attribute.t.data_type) is not None:
        raise place.error(
            f"attribute '{attribute.name}' has elements below a byte", expected="an initializer", about=about
        )
    if attribute.type == kinds.TENSOR:
        return read_tensor(attribute.t, source).array()
    if attribute.type == kinds.STRING:
        return attribute.s.decode(errors="replace")
    if attribute.type == kinds.STRINGS:
        return [s.decode(errors="replace") for s in attribute.strings]
    if attribute.type in (kinds.FLOAT, kinds.INT, kinds.GRAPH):
        return onnx.helper.get_attribute_value(attribute)
    if attribute.type in (kinds.FLOATS, kinds.INTS):
        return list(onnx.helper.get_attribute_value(attribute))
    kind = kinds.AttributeType.Name(attribute.type).lower().replace("_", " ")
    raise place.error(f"attribute '{attribute.name}' is of a kind that is not supported", got=kind, about=about)


def ignored(node: onnx.NodeProto, used: Collection[str], opset: int) -> list[str]:
    """Names of unread attributes with values other than the schema's defaults."""
    unread = [a for a in node.attribute if a.name not in used]
    if not unread:
        return []
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, normal_domain(node.domain))
    except onnx.defs.SchemaError:
        return [a.name for a in unread]
    return [a.name for a in unread if a.name not in schema.attributes or not _default(a, schema.attributes[a.name])]


def _default(attribute: onnx.AttributeProto, declared: onnx.defs.OpSchema.Attribute) -> bool:
    default = declared.default_value
    if not default.name:
        return False
    get = onnx.helper.get_attribute_value
    return bool(get(attribute) == get(default))

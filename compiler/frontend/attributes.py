"""Attributes that an importer did not look at: a newer opset's, a vendor's, a misspelt one.

Invariant: an attribute that could change the result of a node is read by its importer, or the node is refused.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from ppuc.compiler.frontend.source import normal_domain


def ignored(node: onnx.NodeProto, used: Collection[str], opset: int) -> list[str]:
    """Names of attributes that nobody has read and that do not say what the op's schema does by default."""
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

"""What the schema of an op says of its nodes: how many operands they have, which kinds of attributes.

ONNX Runtime refuses nodes that break these rules; an importer that does not look at an operand would not notice.

Invariant: nodes of ops without a schema here break no rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import onnx

from ppuc.compiler.frontend.place import Place
from ppuc.compiler.frontend.source import normal_domain
from ppuc.ir.errors import Diagnostic, Entity, EntityKind

KINDS = onnx.AttributeProto.AttributeType


def broken_rule(node: onnx.NodeProto, opsets: Mapping[str, int], place: Place) -> Diagnostic | None:
    """What is wrong with the node at `place`; None when it keeps the rules."""
    domain = normal_domain(node.domain)
    schema = _schema(node.op_type, opsets.get(domain, 1), domain)
    if schema is None:
        return None
    if len(node.input) > schema.max_input:
        return place.diagnostic("it has too many inputs", got=len(node.input), expected=f"at most {schema.max_input}")
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        wanted = int(known.type.value) if known is not None else attribute.type
        if attribute.type not in (wanted, KINDS.UNDEFINED) and not attribute.ref_attr_name:
            got, expected = (KINDS.Name(kind).lower() for kind in (attribute.type, wanted))
            return place.diagnostic(
                f"attribute '{attribute.name}' is of the wrong kind",
                got=got,
                expected=expected,
                about=(Entity(EntityKind.ATTRIBUTE, attribute.name),),
            )
    return None


@lru_cache(maxsize=1024)
def _schema(op_type: str, opset: int, domain: str) -> Any:
    """An onnx.defs.OpSchema (whose type stub lacks what is used here), or None."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


__all__ = ["broken_rule"]

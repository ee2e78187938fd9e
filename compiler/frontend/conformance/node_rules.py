"""Rules about single nodes, from the schemas of their ops.

N1  a node has as many inputs and outputs as its schema or function allows; non-optional ones have a name
N2  every attribute is known, given once, and of the schema's kind; required ones are there
N3  an attribute refers to one of the function that the node is in, and to nothing outside functions
N4  an attribute has a type, which names the one field that holds its value
N5  the domain of an op is imported
N6  an enumerated attribute has one of its values
N7  an op has a name, and is used neither in an opset that has withdrawn it nor in one before it existed

N8 is in `value_rules.py`. Ops without a schema (of other domains, of local functions) are subject to N3 to N5 only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import onnx

from ppuc.compiler.frontend.conformance.findings import Finding, NodeSite
from ppuc.compiler.frontend.conformance.value_rules import value_findings
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.source import normal_domain

Option = onnx.defs.OpSchema.FormalParameterOption
KINDS = onnx.AttributeProto.AttributeType
FIELDS = {
    KINDS.FLOAT: "f",
    KINDS.INT: "i",
    KINDS.STRING: "s",
    KINDS.TENSOR: "t",
    KINDS.GRAPH: "g",
    KINDS.SPARSE_TENSOR: "sparse_tensor",
    KINDS.TYPE_PROTO: "tp",
    KINDS.FLOATS: "floats",
    KINDS.INTS: "ints",
    KINDS.STRINGS: "strings",
    KINDS.TENSORS: "tensors",
    KINDS.GRAPHS: "graphs",
    KINDS.SPARSE_TENSORS: "sparse_tensors",
    KINDS.TYPE_PROTOS: "type_protos",
}
"""Kind of attribute -> the field of AttributeProto that holds its value."""
_LISTS = frozenset(field for field in FIELDS.values() if field.endswith("s") and field != "s")

Signature = tuple[int, int, Mapping[str, int]]
"""Numbers of inputs and outputs, and kinds of attributes by name (UNDEFINED where the function does not say)."""

AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
ENUMERATIONS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(op, "auto_pad"): AUTO_PAD for op in ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DeformConv")},
    **{(op, "auto_pad"): AUTO_PAD for op in ("LpPool", "MaxPool", "QLinearConv")},
    ("BitShift", "direction"): ("LEFT", "RIGHT"),
    ("DepthToSpace", "mode"): ("DCR", "CRD"),
    ("Gelu", "approximate"): ("none", "tanh"),
    ("GridSample", "mode"): ("linear", "nearest", "cubic", "bilinear", "bicubic"),
    ("GridSample", "padding_mode"): ("zeros", "border", "reflection"),
    ("Pad", "mode"): ("constant", "reflect", "edge", "wrap"),
    ("Resize", "coordinate_transformation_mode"): (
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
        *("tf_crop_and_resize", "tf_half_pixel_for_nn"),
    ),
    ("Resize", "keep_aspect_ratio_policy"): ("stretch", "not_larger", "not_smaller"),
    ("Resize", "mode"): ("nearest", "linear", "cubic"),
    ("Resize", "nearest_mode"): ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    ("RoiAlign", "coordinate_transformation_mode"): ("half_pixel", "output_half_pixel"),
    ("RoiAlign", "mode"): ("avg", "max"),
    **{(op, "reduction"): ("none", "add", "mul", "max", "min") for op in ("ScatterElements", "ScatterND")},
    **{(op, "reduction"): ("none", "mean", "sum") for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")},
    ("SpaceToDepth", "mode"): ("DCR", "CRD"),
    ("TensorScatter", "mode"): ("linear", "circular"),
    ("Upsample", "mode"): ("nearest", "linear", "bilinear"),
    **{(op, "direction"): ("forward", "reverse", "bidirectional") for op in ("GRU", "LSTM", "RNN")},
}
"""(op, attribute) -> the values that the operators' documentation lists; schemas do not hold them."""


@lru_cache(maxsize=4096)
def schema_of(op_type: str, opset: int, domain: str) -> Any:
    """An onnx.defs.OpSchema (whose type stub lacks what is used here), or None."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


BEFORE_SCHEMA = ("LayerNormalization",)
"""Ops that ONNX Runtime and exporters had in the standard's domain before the standard did."""


@lru_cache(maxsize=4096)
def first_opset(op_type: str, domain: str) -> int:
    """The first opset of a standard op; 0 for others."""
    if op_type in BEFORE_SCHEMA:
        return 0
    return min((s.since_version for s in _every_schema() if (s.name, s.domain) == (op_type, domain)), default=0)


@lru_cache(maxsize=1)
def _every_schema() -> list[Any]:
    return list(onnx.defs.get_all_schemas_with_history())


def _withdrawn(op_type: str, domain: str) -> bool:
    """Whether the newest opset has no such op. GroupNormalization was withdrawn in some opsets and came back."""
    newest = schema_of(op_type, onnx.defs.onnx_opset_version() if not domain else 1 << 30, domain)
    return newest is None or bool(newest.deprecated)


def node_findings(site: NodeSite, functions: Mapping[tuple[str, str], Signature]) -> Iterator[Finding]:
    """Violations of rules N1 to N7. `functions` are the model's own: domain and name -> most inputs and outputs, all
    attributes."""
    node, domain = site.node, normal_domain(site.node.domain)
    unreadable = list(_references(site))
    yield from unreadable
    if not node.op_type:
        yield site.broken("it names no op")
        return
    if domain not in site.opsets:
        yield site.broken(f"its domain '{domain or 'ai.onnx'}' is not imported", expected=_imported(site))
        return
    if (domain, node.op_type) in functions:
        inputs, outputs, attributes = functions[domain, node.op_type]
        for what, names, most in (("input", node.input, inputs), ("output", node.output, outputs)):
            if len(names) > most:
                yield site.broken(f"it has more {what}s than its function", str(len(names)), f"at most {most}")
        for attribute in list(node.attribute):
            if attribute.name not in attributes:
                what, expected = f"attribute '{attribute.name}' is unknown", ", ".join(sorted(attributes)) or "none"
                mend = partial(node.attribute.remove, attribute)
                yield site.broken(what, expected=expected, mend=mend, attribute=attribute.name)
            elif attribute.type not in (KINDS.UNDEFINED, wanted := attributes[attribute.name]) and wanted:
                what = f"attribute '{attribute.name}' is of the wrong kind"
                got, expected = (KINDS.Name(kind).lower() for kind in (attribute.type, wanted))
                yield site.broken(what, got, expected, attribute=attribute.name)
        return
    schema = schema_of(node.op_type, site.opsets[domain], domain)
    if schema is None:
        if (first := first_opset(node.op_type, domain)) > site.opsets[domain]:
            yield site.broken(f"the op does not exist in opset {site.opsets[domain]}", expected=f"{first} or newer")
        return
    if schema.deprecated and _withdrawn(node.op_type, domain):
        yield site.broken(f"the op does not exist in opset {site.opsets[domain]}")
        return
    yield from _ends(site, "input", node.input, schema.inputs, schema.min_input, schema.max_input)
    yield from _ends(site, "output", node.output, schema.outputs, schema.min_output, schema.max_output)
    broken = list(_attributes(site, schema))
    yield from broken
    if not broken and not unreadable:
        yield from value_findings(site)


def attribute_kinds(function: onnx.FunctionProto) -> dict[str, int]:
    """The attributes of a function, of the kinds that its defaults or the nodes that refer to them have."""
    kinds: dict[str, int] = dict.fromkeys(function.attribute, KINDS.UNDEFINED)
    todo = list(function.node)
    while todo:
        node = todo.pop()
        kinds |= {a.ref_attr_name: a.type for a in node.attribute if a.ref_attr_name in kinds}
        todo += [inner for graph in subgraphs(node) for inner in graph.node]
    return kinds | {a.name: a.type for a in function.attribute_proto}


def _imported(site: NodeSite) -> str:
    return "one of " + ", ".join(f"'{domain or 'ai.onnx'}'" for domain in site.opsets) if site.opsets else "an import"


def _ends(site: NodeSite, what: str, names: Any, formal: Any, least: int, most: int) -> Iterator[Finding]:
    """N1 for inputs or outputs."""
    if len(names) > most:
        yield site.broken(f"it has too many {what}s", str(len(names)), f"at most {most}")
    elif len(names) < least:
        yield site.broken(f"it has too few {what}s", str(len(names)), f"at least {least}")
    for index, (name, parameter) in enumerate(zip(names, formal, strict=False)):
        if not name and index < least and parameter.option == Option.Single:
            yield site.broken(f"{what} '{parameter.name}' is missing", "an empty name", "a tensor")
    if what == "input" and formal and formal[-1].option == Option.Variadic and not all(names[len(formal) - 1 :]):
        yield site.broken(f"one of the inputs '{formal[-1].name}' is missing", "an empty name", "a tensor")


def _attributes(site: NodeSite, schema: Any) -> Iterator[Finding]:
    """N2 and N6."""
    node = site.node
    for attribute in list(node.attribute):
        known = schema.attributes.get(attribute.name)
        if known is None:
            expected = ", ".join(sorted(schema.attributes)) or "no attributes"
            mend = lambda a=attribute: node.attribute.remove(a)  # noqa: E731 - as short as what it does
            yield site.broken(
                f"attribute '{attribute.name}' is unknown", expected=expected, mend=mend, attribute=attribute.name
            )
            continue
        wanted = int(known.type.value)
        if attribute.type == KINDS.UNDEFINED:  # N4
            continue
        if attribute.type != wanted:
            got, expected = (KINDS.Name(kind).lower() for kind in (attribute.type, wanted))
            yield site.broken(
                f"attribute '{attribute.name}' is of the wrong kind", got, expected, attribute=attribute.name
            )
            continue
        values = ENUMERATIONS.get((node.op_type, attribute.name))
        if (
            values is not None
            and not attribute.ref_attr_name
            and (got := attribute.s.decode("utf-8", "replace")) not in values
        ):
            yield Finding(
                site.place, f"attribute '{attribute.name}' has an unknown value", repr(got), ", ".join(values)
            )
    given = Counter(a.name for a in node.attribute)
    for name, count in given.items():
        if count > 1:
            yield site.broken(f"attribute '{name}' is given {count} times", attribute=name)
    for name, known in schema.attributes.items():
        if known.required and name not in given:
            yield Finding(
                site.place, f"attribute '{name}' is missing", expected=KINDS.Name(int(known.type.value)).lower()
            )


def _kind(fields: Sequence[str]) -> int:
    """The kind of attribute that the first of `fields` holds."""
    return next((kind for kind, field in FIELDS.items() if field in fields[:1]), KINDS.UNDEFINED)


def _references(site: NodeSite) -> Iterator[Finding]:
    """N3 and N4."""
    for attribute in site.node.attribute:
        if attribute.ref_attr_name:
            if site.parameters is None:
                what = f"attribute '{attribute.name}' refers to an attribute of a function, outside of functions"
                yield site.broken(what, attribute.ref_attr_name, attribute=attribute.name)
            elif attribute.ref_attr_name not in site.parameters:
                what = f"attribute '{attribute.name}' refers to an attribute that its function does not have"
                expected = ", ".join(sorted(site.parameters)) or "none"
                yield site.broken(what, attribute.ref_attr_name, expected, attribute=attribute.name)
            continue
        filled = [f for f in FIELDS.values() if (len(getattr(attribute, f)) if f in _LISTS else attribute.HasField(f))]
        if attribute.type == KINDS.UNDEFINED:
            mend = partial(setattr, attribute, "type", _kind(filled))
            what = f"attribute '{attribute.name}' has no type"
            yield site.broken(what, expected="a type of AttributeProto", attribute=attribute.name, mend=mend)
            continue
        own = FIELDS.get(attribute.type)
        others = [f for f in filled if f != own]
        if own is not None and (others or (own not in _LISTS and not filled)):
            got = ", ".join(filled) or "nothing"
            yield site.broken(
                f"attribute '{attribute.name}' does not hold a value of its type", got, own, attribute=attribute.name
            )

"""Rules about the values of single attributes, whatever the shapes of the operands are.

N8  an attribute's numbers are in the range that the documentation of its op gives, lists of axes name each axis once,
    perm is a permutation, and lists that go together have one length

Schemas hold the kind of an attribute only. The tables are by attribute, and by op where ops differ.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from ppuc.compiler.frontend.conformance.findings import Finding, NodeSite

KINDS = onnx.AttributeProto.AttributeType
INT32 = 1 << 31
DATA_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)

_TERM = r"[A-Za-z ]*(?:\.\.\.[A-Za-z ]*)?"
EQUATION = re.compile(f"{_TERM}(?:,{_TERM})*(?:->{_TERM})?")

Number = Any
"""An int or a float; of attributes that are lists, one element."""
MEMBER = 6
"""Of nodes_modes: whether a feature is one of a set."""


@dataclass(frozen=True, slots=True)
class Range:
    """Which numbers an attribute may hold, and how messages say it."""

    fits: Callable[[Number], bool]
    expected: str


POSITIVE = Range(lambda n: 0 < n < INT32, "more than zero, in 32 bits")
NOT_NEGATIVE = Range(lambda n: 0 <= n < INT32, "zero or more, in 32 bits")
POSITIVE_FLOAT = Range(lambda x: x > 0, "more than zero")
AXIS = Range(lambda n: abs(n) < INT32, "an axis, in 32 bits")
FLAG = Range(lambda n: n in (0, 1), "0 or 1")
TYPE = Range(lambda n: n in DATA_TYPES, "a type of TensorProto.DataType")
TYPE_OR_NONE = Range(lambda n: n == 0 or n in DATA_TYPES, "a type of TensorProto.DataType, or 0")
FLOAT_TYPE = Range(lambda n: n in FLOATS, "a floating-point type of TensorProto.DataType")


def one_of(*numbers: int) -> Range:
    """Just these."""
    return Range(lambda n: n in numbers, "one of " + ", ".join(map(str, numbers)))


FLAGS = (
    *("align_corners", "allowzero", "antialias", "broadcast", "ceil_mode", "center_point_box", "count_include_pad"),
    *("detect_negative", "detect_positive", "exclude_outside", "exclusive", "fmod", "input_forget", "interleaved"),
    *("inverse", "is_case_sensitive", "is_causal", "is_test", "keepdims", "largest", "layout", "linear_before_reset"),
    *("new_axis", "noop_with_empty_axes", "onesided", "output_sequence", "periodic", "reverse", "saturate"),
    *("select_last_index", "sorted", "spatial", "storage_order", "training_mode", "transA", "transB", "upper"),
)
"""Integers that mean yes or no; schemas hold no range of them."""

RANGES: Mapping[str, Range] = {
    **dict.fromkeys(
        ("strides", "dilations", "kernel_shape", "pooled_shape", "output_height", "output_width"), POSITIVE
    ),
    **dict.fromkeys(("group", "offset_group", "blocksize", "hidden_size", "num_outputs", "num_groups"), POSITIVE),
    **dict.fromkeys(("sample_size", "p", "n_targets", "q_num_heads", "kv_num_heads"), POSITIVE),
    **dict.fromkeys(("output_padding", "output_shape", "block_size", "rotary_embedding_dim"), NOT_NEGATIVE),
    **dict.fromkeys(("num_heads", "sampling_ratio", "batch_dims"), NOT_NEGATIVE),
    **dict.fromkeys(("axis", "axes", "perm", "batch_axis", "time_axis"), AXIS),
    **dict.fromkeys(("scan_input_axes", "scan_output_axes"), AXIS),
    **dict.fromkeys(("scan_input_directions", "scan_output_directions"), FLAG),
    **dict.fromkeys(FLAGS, FLAG),
    **dict.fromkeys(("to", "dtype", "output_datatype"), TYPE),
    **dict.fromkeys(("output_dtype", "precision"), TYPE_OR_NONE),
    **dict.fromkeys(("softmax_precision", "stash_type"), FLOAT_TYPE),
}
"""Attribute of any op -> its range."""

PADDED = ("AveragePool", "Conv", "ConvInteger", "DeformConv", "LpPool", "MaxPool", "MaxUnpool", "QLinearConv", "Col2Im")
OF_OP: Mapping[tuple[str, str], Range] = {
    **{(op, "pads"): NOT_NEGATIVE for op in PADDED},
    ("Attention", "qk_matmul_output_mode"): one_of(0, 1, 2, 3),
    ("Attention", "scale"): POSITIVE_FLOAT,
    ("LRN", "size"): Range(lambda n: 0 < n < INT32 and n % 2 == 1, "an odd number"),
    ("LRN", "alpha"): POSITIVE_FLOAT,
    ("LRN", "beta"): POSITIVE_FLOAT,
    ("ReverseSequence", "batch_axis"): FLAG,
    ("ReverseSequence", "time_axis"): FLAG,
    ("LpNormalization", "p"): one_of(1, 2),
    ("Upsample", "scales"): POSITIVE_FLOAT,
    ("TreeEnsemble", "aggregate_function"): one_of(0, 1, 2, 3),
    ("TreeEnsemble", "post_transform"): one_of(0, 1, 2, 3, 4),
    ("TreeEnsemble", "nodes_featureids"): NOT_NEGATIVE,
}
"""(op, attribute) -> the range there."""

DISTINCT = ("axes",)
"""Attributes that name each axis once."""


def value_findings(site: NodeSite) -> Iterator[Finding]:
    """Everything that breaks rule N8 in a node of a domain of the standard."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in site.node.attribute if not a.ref_attr_name}
    kinds = {a.name: a.type for a in site.node.attribute}
    for name, value in values.items():
        if kinds[name] not in (KINDS.INT, KINDS.INTS, KINDS.FLOAT, KINDS.FLOATS):
            continue
        numbers = value if kinds[name] in (KINDS.INTS, KINDS.FLOATS) else [value]
        allowed = OF_OP.get((site.node.op_type, name)) or RANGES.get(name)
        if allowed is not None and not all(map(allowed.fits, numbers)):
            yield _out_of_range(site, name, value, allowed.expected)
        elif name == "perm" and sorted(numbers) != list(range(len(numbers))):
            expected = f"every axis from 0 to {len(numbers) - 1} once"
            yield site.broken("attribute 'perm' is not a permutation", _text(value), expected, attribute=name)
        elif name in DISTINCT and len(set(numbers)) != len(numbers):
            yield site.broken(f"attribute '{name}' names an axis twice", _text(value), attribute=name)
    rule = OF_NODE.get(site.node.op_type)
    if rule is not None:
        yield from rule(site, values)


def _equation(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    """An Einsum names the axes of each of its operands, with letters. (ONNX's inference does not end on others.)"""
    if "equation" not in values:
        return
    equation = values["equation"].decode("utf-8", "replace")
    if not EQUATION.fullmatch(equation):
        expected = "letters for axes, commas between operands, '...', '->'"
        yield site.broken(
            "attribute 'equation' is not an einsum equation", repr(equation), expected, attribute="equation"
        )
    elif equation.partition("->")[0].count(",") + 1 != len(site.node.input):
        got, expected = repr(equation), f"{len(site.node.input)} operands"
        yield site.broken(
            "attribute 'equation' has a different number of operands", got, expected, attribute="equation"
        )


def _out_of_range(site: NodeSite, name: str, value: object, expected: str) -> Finding:
    return site.broken(f"attribute '{name}' is out of range", _text(value), expected, attribute=name)


def _text(value: Any) -> str:
    text = str(list(value)) if isinstance(value, Sequence) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reversed_axes(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("batch_axis", 1) == values.get("time_axis", 0):
        yield site.broken("the axes of batch and time are the same", attribute="batch_axis")


def _pattern(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    if "pattern" not in values:
        yield site.broken("attribute 'pattern' is missing", expected="string", attribute="pattern")


ACTIVATIONS = ("Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Sigmoid", "Softplus", "Softsign",
               "Tanh", "ThresholdedRelu")  # fmt: skip
"""Of recurrent ops, in any case."""
ACTIVATIONS_PER_DIRECTION = {"RNN": 1, "GRU": 2, "LSTM": 3}


def _recurrent(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    yield from _hidden(site, values)
    given = [name.decode("utf-8", "replace") for name in values.get("activations", ())]
    directions = 2 if values.get("direction") == b"bidirectional" else 1
    wanted = ACTIVATIONS_PER_DIRECTION[site.node.op_type] * directions
    if given and len(given) != wanted:
        what = "attribute 'activations' has the wrong length"
        yield site.broken(what, _text(given), f"{wanted} names", attribute="activations")
    known = {name.lower() for name in ACTIVATIONS}
    if any(name.lower() not in known for name in given):
        what = "attribute 'activations' has an unknown value"
        yield site.broken(what, _text(given), ", ".join(ACTIVATIONS), attribute="activations")
    if values.get("clip", 1.0) < 0:
        yield _out_of_range(site, "clip", values["clip"], "zero or more")


def _loop(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    """The first output of a body says whether to continue."""
    body = values.get("body")
    types = [o.type.tensor_type.elem_type for o in body.output[:1]] if body is not None else []
    if types and types[0] not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.BOOL):
        got = onnx.TensorProto.DataType.Name(types[0]).lower()
        yield site.broken("the condition that the body returns is not boolean", got, "bool", attribute="body")


def _scan(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    """One direction and one axis for each tensor that is scanned, and for each that is collected."""
    scanned = values.get("num_scan_inputs", 0)
    collected = len(site.node.output) - (len(site.node.input) - scanned)
    for name, count in (
        *((f"scan_input_{what}", scanned) for what in ("directions", "axes")),
        *((f"scan_output_{what}", collected) for what in ("directions", "axes")),
    ):
        given = values.get(name)
        if given is not None and len(given) != count and site.opsets.get("", 1) > 8:
            what = f"attribute '{name}' has the wrong length"
            yield site.broken(what, _text(given), f"{count} entries", attribute=name)


def _hidden(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    """The schemas call it optional, and ONNX Runtime needs it."""
    if "hidden_size" not in values and not any(a.name == "hidden_size" for a in site.node.attribute):
        yield site.broken("attribute 'hidden_size' is missing", expected="integer", attribute="hidden_size")


def _resize(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    mode = values.get("mode", b"nearest")
    if values.get("exclude_outside") and mode != b"cubic":
        yield site.broken("attribute 'exclude_outside' is for mode 'cubic' only", attribute="exclude_outside")
    if values.get("antialias") and mode == b"nearest":
        yield site.broken("attribute 'antialias' is for modes 'linear' and 'cubic' only", attribute="antialias")
    crops = values.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    if crops and not any(site.node.input[1:2]):
        yield site.broken("input 'roi' is missing", "coordinate_transformation_mode tf_crop_and_resize", "the region")


def _tree(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    """What nodes, leaves and targets of a TreeEnsemble refer to exists, and each node is a root or has one parent."""
    nodes, leaves = len(values.get("nodes_featureids", ())), len(values.get("leaf_targetids", ()))
    lengths = dict.fromkeys(("nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs", "nodes_falseleafs"), nodes)
    lengths |= {"nodes_splits": nodes, "nodes_modes": nodes, "leaf_weights": leaves}
    for name, count in lengths.items():
        value = values.get(name)
        length = math.prod(value.dims) if isinstance(value, onnx.TensorProto) else len(value or ())
        if length != count:
            yield site.broken(f"attribute '{name}' has the wrong length", str(length), str(count), attribute=name)
            return
    for name, limit, of in (("tree_roots", nodes, "nodes"), ("leaf_targetids", values.get("n_targets", 0), "targets")):
        if any(not 0 <= n < limit for n in values.get(name, ())):
            yield _out_of_range(site, name, values[name], f"one of {limit} {of}")
            return
    parents = Counter(values.get("tree_roots", ()))
    for side in ("true", "false"):
        ids, is_leaf = values[f"nodes_{side}nodeids"], values[f"nodes_{side}leafs"]
        if any(not 0 <= child < (leaves if leaf else nodes) for child, leaf in zip(ids, is_leaf, strict=True)):
            name = f"nodes_{side}nodeids"
            yield _out_of_range(site, name, values[name], f"one of {nodes} nodes or {leaves} leaves")
            return
        parents.update(child for child, leaf in zip(ids, is_leaf, strict=True) if not leaf)
    odd = [i for i in range(nodes) if parents[i] != 1]
    if odd and leaves > 1:
        got, expected = f"node {odd[0]} is named {parents[odd[0]]} times", "each node as a root or as one child, once"
        yield site.broken("its nodes form no trees", got, expected, attribute="nodes_truenodeids")
    modes = values.get("nodes_modes")
    if modes is not None and "membership_values" not in values and MEMBER in onnx.numpy_helper.to_array(modes):
        yield site.broken("attribute 'membership_values' is missing", expected="the sets that nodes ask for")


def _one_value(site: NodeSite, values: Mapping[str, Any]) -> Iterator[Finding]:
    given = [a.name for a in site.node.attribute]
    if len(given) != 1:
        yield site.broken("it holds no value, or several", ", ".join(given) or "none", "one attribute")


OF_NODE: Mapping[str, Callable[[NodeSite, Mapping[str, Any]], Iterator[Finding]]] = {
    "Constant": _one_value,
    "Einsum": _equation,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "Loop": _loop,
    "RegexFullMatch": _pattern,
    "Resize": _resize,
    "ReverseSequence": _reversed_axes,
    "Scan": _scan,
    "TreeEnsemble": _tree,
}
"""Op -> what its attributes have to be together."""

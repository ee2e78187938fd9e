"""Rules that tie attributes and constant operands to the shapes of operands, where those are known.

N9   attributes of an op fit the shapes of its operands: one entry per axis, axes in range, windows no larger than their
     input, channels that divide into groups, kernels that match the weights
N10  constant control operands in the file (shapes, axes, counts, steps) are in range

Those of windows are in `window_rules.py`, those of axes, pads, scales and indices in `operand_rules.py`, those of
8-bit formats in `quantized_rules.py`, of recurrent ops in `recurrent_rules.py`, of ai.onnx.ml in `ml_rules.py`. What
ONNX's inference checks itself is not repeated here; the rest would be found by ONNX Runtime, when a session starts or
runs. Sizes that are symbols are taken as any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from ppuc.compiler.frontend.conformance.findings import Finding
from ppuc.compiler.frontend.conformance.ml_rules import ML
from ppuc.compiler.frontend.conformance.operand_rules import (
    as_list,
    blocks,
    constant,
    distinct_axes,
    gather_nd,
    indices_along,
    labels,
    max_unpool,
    one_element,
    pad,
    position_in_sequence,
    positions,
    resize,
    tensor_scatter,
    unidirectional,
)
from ppuc.compiler.frontend.conformance.quantized_rules import QUANTIZED
from ppuc.compiler.frontend.conformance.recurrent_rules import RECURRENT
from ppuc.compiler.frontend.conformance.shaped_node import Broken, Rule, Shape, ShapedNode, contradicts
from ppuc.compiler.frontend.conformance.window_rules import col2im, conv, conv_transpose, deform_conv, pool


def shape_findings(node: ShapedNode) -> Iterator[Finding]:
    """The first thing that breaks rule N9 or N10 in a node of the standard domain."""
    for rule in RULES.get(node.site.node.op_type, ()):
        for what, got, expected in rule(node):
            yield node.site.broken(what, str(got), expected)
            return


def _transpose(node: ShapedNode) -> Iterator[Broken]:
    x, perm = node.shape(0), node.attributes.get("perm")
    if x is not None and perm is not None and len(perm) != len(x):
        yield "attribute 'perm' has the wrong length", list(perm), f"{len(x)} entries"


def _center_crop_pad(node: ShapedNode) -> Iterator[Broken]:
    x, sizes, axes = node.shape(0), node.shape(1), node.attributes.get("axes")
    if x is None:
        return
    rank = len(x)
    if axes is not None and (any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes)):
        yield "attribute 'axes' names an axis twice or out of range", list(axes), f"axes of rank {rank}, each once"
        return
    count = rank if axes is None else len(axes)
    if sizes is not None and len(sizes) == 1 and sizes[0] not in (None, count):
        yield "the sizes are not one an axis", sizes[0], str(count)


def _axis_in_range(before: int = 0, behind: int = 0) -> Rule:
    """An axis of operand 0, or as many more before the first or behind the last."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        x, axis = node.shape(0), node.attributes.get("axis")
        if x is None or axis is None:
            return
        low, high = -max(len(x), 1) - before, max(len(x), 1) + behind
        if not low <= axis < high:
            yield "attribute 'axis' is out of range", axis, f"{low} to {high - 1}"

    return rule


def _attention(node: ShapedNode) -> Iterator[Broken]:
    q, k, v = (node.shape(i) for i in range(3))
    types = {t for t in node.types[:3] if t}
    if len(types) > 1:
        names = [onnx.TensorProto.DataType.Name(t).lower() for t in sorted(types)]
        yield "Q, K and V have elements of different types", ", ".join(names), "one type"
        return
    heads, kv_heads = (node.attributes.get(name) for name in ("q_num_heads", "kv_num_heads"))
    if q is None or k is None or v is None:
        return
    if not len(q) == len(k) == len(v):
        yield "Q, K and V have different ranks", [len(q), len(k), len(v)], "one rank"
        return
    if len(q) == 4:
        heads, kv_heads = q[1], k[1]
    elif heads is None or kv_heads is None:
        yield "it lacks the numbers of heads", "Q of rank 3", "attributes q_num_heads and kv_num_heads"
        return
    else:
        for name, shape, count in (("Q", q, heads), ("K", k, kv_heads), ("V", v, kv_heads)):
            if shape[2] is not None and shape[2] % count:
                yield f"{name} does not divide into heads", shape[2], f"a multiple of {count}"
                return
    for past in (node.shape(4), node.shape(5)):
        if past is not None and len(past) != 4:
            yield "a cache has the wrong rank", len(past), "rank 4"
            return
    if heads is not None and kv_heads is not None and heads % max(kv_heads, 1):
        yield "the heads of Q are not a multiple of those of K", heads, f"a multiple of {kv_heads}"


def _entries(shape: Shape | None, otherwise: int) -> int:
    """Length of a list, where it is known."""
    return shape[0] if shape is not None and len(shape) == 1 and shape[0] is not None else otherwise


def _split(node: ShapedNode) -> Iterator[Broken]:
    x, outputs = node.shape(0), len(node.site.node.output)
    given = node.constants.get(1)
    sizes = given.reshape(-1).tolist() if given is not None else node.attributes.get("split")
    count = node.attributes.get("num_outputs")
    if sizes is not None and count is not None:
        yield "it gives both sizes and 'num_outputs'", count, "one of them"
    elif count is not None and count != outputs:
        yield "attribute 'num_outputs' is not the number of its outputs", count, str(outputs)
    elif len(sizes if sizes is not None else range(_entries(node.shape(1), outputs))) != outputs:
        yield "it has another number of outputs than of sizes", outputs, "one for each size"
    elif sizes is not None and any(n < 0 for n in sizes):
        yield "a size is negative", list(sizes), "zero or more"
    axis = node.attributes.get("axis", 0)
    size = x[axis] if x is not None and -len(x) <= axis < len(x) else None
    if sizes is not None and size is not None and sum(sizes) != size:
        yield "the sizes do not add up to those of the input", list(sizes), f"a sum of {size}"


def _einsum(node: ShapedNode) -> Iterator[Broken]:
    """One letter an axis."""
    equation = node.attributes["equation"].decode().replace(" ", "")
    for index, term in enumerate(equation.partition("->")[0].split(",")):
        shape = node.shape(index)
        letters = len(term.replace("...", ""))
        if shape is not None and (letters > len(shape) if "..." in term else letters != len(shape)):
            yield (
                f"attribute 'equation' names a different number of axes of operand {index}",
                repr(equation),
                str(len(shape)),
            )
            return


def _group_norm(node: ShapedNode) -> Iterator[Broken]:
    x, groups = node.shape(0), node.attributes["num_groups"]
    if x is not None and len(x) > 1 and x[1] is not None and x[1] % groups:
        yield "the channels do not divide into groups", x[1], f"a multiple of {groups}"


def _rotary(node: ShapedNode) -> Iterator[Broken]:
    """x[N, heads, S, size] or x[N, S, heads * size], caches of half as many numbers as are rotated."""
    x, cos, sin, heads = node.shape(0), node.shape(1), node.shape(2), node.attributes.get("num_heads", 0)
    if x is None or len(x) not in (3, 4):
        return
    if len(x) == 3 and not heads:
        yield "it lacks the number of heads", "an input of rank 3", "attribute num_heads"
        return
    width = x[-1]
    if len(x) == 3 and width is not None:
        if width % heads:
            yield "the input does not divide into heads", width, f"a multiple of {heads}"
            return
        width //= heads
    rotated = node.attributes.get("rotary_embedding_dim", 0) or width
    if rotated is None:
        return
    if width is not None and (rotated > width or rotated % 2):
        yield "attribute 'rotary_embedding_dim' is out of range", rotated, f"an even number up to {width}"
    elif cos is not None and cos[-1] is not None and cos[-1] != rotated // 2:
        yield "the caches have another width", cos[-1], str(rotated // 2)
    positions = any(node.site.node.input[3:4])
    if cos is not None and len(cos) != (2 if positions else 3):
        yield "the caches have another rank", len(cos), "2 with positions, 3 without"
    elif cos is not None and sin is not None and contradicts(cos, sin):
        yield "the caches have different shapes", f"{list(cos)} and {list(sin)}", "one shape"
    elif cos is not None and contradicts(rows := (node.shape(3) or () if positions else cos)[:2], (x[0], x[-2])):
        yield "the positions are not those of the input", list(rows), str([x[0], x[-2]])


def _tree_features(node: ShapedNode) -> Iterator[Broken]:
    x, features = node.shape(0), node.attributes.get("nodes_featureids", ())
    if x is not None and len(x) == 2 and x[1] is not None and any(f >= x[1] for f in features):
        yield "attribute 'nodes_featureids' is out of range", list(features)[:20], f"less than {x[1]}"


def _cast(node: ShapedNode) -> Iterator[Broken]:
    """Texts in the file, cast to numbers."""
    given = node.constants.get(0)
    if given is None or given.dtype.kind not in "OSU" or node.attributes["to"] == onnx.TensorProto.STRING:
        return
    for text in given.reshape(-1).tolist():
        try:
            float(text)
        except ValueError:
            yield "a text is not a number", repr(text)[:80], "decimal or scientific notation"
            return


REDUCTIONS = tuple(
    f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)

RULES: Mapping[str, Sequence[Rule]] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), (pool,)),
    **ML,
    **QUANTIZED,
    **RECURRENT,
    "Conv": (conv(1),),
    "ConvTranspose": (conv_transpose,),
    "DeformConv": (deform_conv,),
    "Col2Im": (col2im,),
    "MaxUnpool": (max_unpool,),
    "Cast": (_cast,),
    "PRelu": (unidirectional(1, "the slope"),),
    "Transpose": (_transpose,),
    "CenterCropPad": (_center_crop_pad, constant(1, "a size", lambda v: bool(np.all(v >= 0)), "zero or more")),
    "TensorScatter": (tensor_scatter,),
    "MeanVarianceNormalization": (distinct_axes,),
    **dict.fromkeys(("CumProd", "CumSum"), (one_element(1, "the axis"),)),
    **dict.fromkeys(("SequenceAt", "SequenceErase"), (one_element(1, "the position"), position_in_sequence(1, 0))),
    "SequenceInsert": (one_element(2, "the position"), position_in_sequence(2, 1)),
    "NonMaxSuppression": (
        one_element(2, "the number of boxes"),
        *(one_element(i, f"the threshold of {what}") for i, what in ((3, "overlaps"), (4, "scores"))),
    ),
    "Attention": (_attention,),
    "Einsum": (_einsum,),
    "GroupNormalization": (_group_norm,),
    "RotaryEmbedding": (_rotary, positions),
    "TreeEnsemble": (_tree_features,),
    "TopK": (_axis_in_range(), constant(1, "k", lambda v: bool(np.all(v >= 0)), "zero or more")),
    "Split": (_axis_in_range(), _split),
    **dict.fromkeys(("ArgMax", "ArgMin", "Concat"), (_axis_in_range(),)),
    "Compress": (_axis_in_range(), as_list(1, "the condition")),
    **dict.fromkeys(("Gather", "GatherElements"), (_axis_in_range(), indices_along())),
    **dict.fromkeys(REDUCTIONS, (distinct_axes,)),
    "Squeeze": (distinct_axes,),
    "Pad": (pad, one_element(2, "the padded value")),
    **dict.fromkeys(("Resize", "Upsample"), (resize,)),
    **dict.fromkeys(("GatherND", "ScatterND"), (gather_nd,)),
    **dict.fromkeys(("ScatterElements", "Scatter"), (_axis_in_range(), indices_along())),
    "DepthToSpace": (blocks(lambda n: ((1, n * n),)),),
    "SpaceToDepth": (blocks(lambda n: ((2, n), (3, n))),),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), (labels,)),
    "Clip": (one_element(1, "the lower bound"), one_element(2, "the upper bound")),
    "Dropout": (constant(1, "the ratio", lambda v: bool(np.all((v >= 0) & (v < 1))), "0 or more, less than 1"),),
    "If": (one_element(0, "the condition"),),
    "Loop": (one_element(0, "the trip count"), one_element(1, "the condition")),
    **dict.fromkeys(("Hardmax", "LayerNormalization", "LogSoftmax", "Softmax"), (_axis_in_range(),)),
    **dict.fromkeys(("LpNormalization", "RMSNormalization", "Unique"), (_axis_in_range(),)),
    "Flatten": (_axis_in_range(behind=1),),
    "OneHot": (
        _axis_in_range(before=1, behind=1),
        constant(1, "the depth", lambda v: bool(np.all(v > 0)), "more than zero"),
    ),
    "Range": (
        constant(2, "the step", lambda v: bool(np.all(v != 0)), "other than zero"),
        *(constant(i, "an end or step", lambda v: bool(np.all(np.isfinite(v))), "a number") for i in range(3)),
    ),
    "ConstantOfShape": (as_list(0, "the shape"),),
    "Expand": (as_list(1, "the shape"),),
    "Tile": (as_list(1, "the number of repeats"),),
    "Slice": (as_list(1, "the start"), as_list(2, "the end")),
    "Reshape": (
        as_list(1, "the shape"),
        constant(1, "a size", lambda v: bool(np.all(v >= -1)), "-1 or more"),
        constant(1, "the shape", lambda v: int(np.sum(v == -1)) < 2, "-1 at most once"),
    ),
}
"""Op -> what is asked of it, in this order."""

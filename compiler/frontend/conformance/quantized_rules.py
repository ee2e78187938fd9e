"""Rule N9 for scales and zero points: one a tensor, one a channel, or one a block."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ppuc.compiler.frontend.conformance.operand_rules import one_element, same_shape
from ppuc.compiler.frontend.conformance.shaped_node import Broken, Rule, ShapedNode, contradicts
from ppuc.compiler.frontend.conformance.window_rules import conv

BLOCKS_FROM_SHAPES = 28
"""First opset in which the shapes of operand and scale may say how large blocks are."""


def granularity(node: ShapedNode) -> Iterator[Broken]:
    """Scales of QuantizeLinear and DequantizeLinear: a scalar, one for each index along `axis`, or one for each
    `block_size` of them (ONNX, QuantizeLinear: quantization granularity)."""
    x, scale, block = node.shape(0), node.shape(1), node.attributes.get("block_size", 0)
    if x is None or scale is None or None in scale or (not block and math.prod(scale) == 1):  # type: ignore[arg-type]
        return
    axis = node.attributes.get("axis", 1)
    if not -len(x) <= axis < len(x):
        yield "attribute 'axis' is out of range", axis, f"{-len(x)} to {len(x) - 1}"
    elif block:
        blocks = [-(-n // block) if n is not None and i == axis % len(x) else n for i, n in enumerate(x)]
        if contradicts(scale, blocks):
            yield f"the scales are not one for each block of {block} on axis {axis}", list(scale), _text(blocks)
    elif len(scale) == 1 or node.site.opsets.get("", 1) < BLOCKS_FROM_SHAPES:
        if contradicts(scale, [x[axis]]):
            yield (
                f"the scales are not one for each index of axis {axis}",
                list(scale),
                f"a scalar or {_text([x[axis]])}",
            )
    elif len(scale) != len(x):
        yield "the scales and the input have different ranks", len(scale), f"rank {len(x)}"


def _text(shape: list[int | None]) -> str:
    return str(shape).replace("None", "?")


def per_channel(index: int, weights: int, what: str, axis: int = 0) -> Rule:
    """Operand `index` is a scalar, or one number for each index of `axis` of operand `weights`."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        given, w = node.shape(index), node.shape(weights)
        if given is None or None in given or math.prod(given) == 1 or w is None or len(w) < 2:  # type: ignore[arg-type]
            return
        wanted: list[int | None] = [w[axis]]
        if len(given) > 1:  # of one matrix each
            wanted = [*w[:-2], *((w[-2], 1) if axis == -2 else (1, w[-1]))] if axis < 0 else wanted
        if contradicts(given, wanted):
            yield f"{what} have another shape", list(given), f"a scalar or {_text(wanted)}"

    return rule


def _matrices(pairs: tuple[tuple[int, int, int, str], ...]) -> tuple[Rule, ...]:
    return tuple(per_channel(index, matrix, what, axis) for index, matrix, axis, what in pairs)


QUANTIZED: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (same_shape(1, 2, "scale and zero point"), granularity)),
    "MatMulInteger": _matrices(((2, 0, -2, "the zero points of A"), (3, 1, -1, "the zero points of B"))),
    "QLinearMatMul": _matrices(
        (
            (1, 0, -2, "the scales of a"),
            (2, 0, -2, "the zero points of a"),
            (4, 3, -1, "the scales of b"),
            (5, 3, -1, "the zero points of b"),
        )
    ),
    "ConvInteger": (
        conv(1),
        one_element(2, "the zero point of x"),
        per_channel(3, 1, "the zero points of w"),
    ),
    "QLinearConv": (
        conv(3),
        *(one_element(i, what) for i, what in ((1, "the scale of x"), (2, "the zero point of x"))),
        *(per_channel(i, 3, what) for i, what in ((4, "the scales of w"), (5, "the zero points of w"))),
        *(one_element(i, what) for i, what in ((6, "the scale of y"), (7, "the zero point of y"))),
        per_channel(8, 3, "the biases"),
    ),
}
"""Op -> its rules."""

"""Rules N9 and N10 for sliding windows: pools, convolutions, Col2Im.

Every function yields violations, and continues only if later checks still make sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ppuc.compiler.frontend.conformance.shaped_node import Broken, Rule, Shape, ShapedNode


def _wrong_length(node: ShapedNode, rank: int, **per_axis: int) -> Iterator[Broken]:
    """`per_axis` maps attributes to their entries for each of `rank` axes."""
    for name, each in per_axis.items():
        given = node.attributes.get(name)
        if given is not None and len(given) != each * rank:
            yield f"attribute '{name}' has the wrong length", list(given), f"{each * rank} entries"


def _window(node: ShapedNode, space: Shape, kernel: Shape) -> Iterator[Broken]:
    """A window of sizes `kernel` over axes `space`."""
    rank = len(space)
    if len(kernel) != rank:
        yield "the kernel and the input have different numbers of spatial axes", list(kernel), f"{rank} sizes"
        return
    yield from _wrong_length(node, rank, strides=1, dilations=1, pads=2)
    automatic = node.attributes.get("auto_pad", b"NOTSET")
    if automatic != b"NOTSET" and any(node.attributes.get("pads", ())):
        yield "it gives both 'auto_pad' and 'pads'", automatic.decode(), "one of them"
        return
    if not node.explicit_padding or any(len(node.ints(n, rank, 1)) != rank for n in ("strides", "dilations")):
        return
    dilations, pads = node.ints("dilations", rank, 1), node.ints("pads", 2 * rank, 0)
    if node.attributes.get("auto_pad") == b"VALID":
        pads = [0] * (2 * rank)
    for axis, (n, k, d) in enumerate(zip(space, kernel, dilations, strict=True)):
        if n is None or k is None:
            continue
        room, reach = n + pads[axis] + pads[axis + rank], (k - 1) * d + 1
        if n and reach > room and not node.attributes.get("ceil_mode"):
            yield f"the kernel is larger than the padded input on spatial axis {axis}", reach, f"at most {room}"


def pool(node: ShapedNode) -> Iterator[Broken]:
    x = node.shape(0)
    kernel = node.attributes.get("kernel_shape")
    if x is None or kernel is None or len(x) < 3:
        return
    yield from _window(node, x[2:], tuple(kernel))
    pads = node.ints("pads", 2 * len(kernel), 0)
    # ONNX Runtime asks this of the kernel without its dilations, though a dilated window would reach the input
    if node.explicit_padding and any(p >= k for p, k in zip(pads, [*kernel] * 2, strict=False)):
        yield "attribute 'pads' is as large as the kernel", pads, f"less than {list(kernel)}"
    if node.attributes.get("ceil_mode") and node.explicit_padding:
        yield from _ceiled(node, x, list(kernel))


def _ceiled(node: ShapedNode, x: Shape, kernel: Sequence[int]) -> Iterator[Broken]:
    """The declared result of a pool with ceil_mode, which inference is kept from. Before opset 22 it may count
    windows that begin behind the input, as ONNX's inference did."""
    rank, declared = len(kernel), node.results[0]
    strides, dilations, pads = (
        node.ints("strides", rank, 1),
        node.ints("dilations", rank, 1),
        node.ints("pads", 2 * rank, 0),
    )
    if None in x:
        return
    sizes: list[set[int | None]] = [{n, None} for n in x[:2]]
    for n, k, s, d, before, behind in zip(x[2:], kernel, strides, dilations, pads, pads[rank:], strict=False):
        assert n is not None
        most = -((before + behind + n - (k - 1) * d - 1) // -s) + 1
        within = most - ((most - 1) * s >= n + before)
        sizes.append({None, within, most if node.site.opsets.get("", 1) < 22 else within})
    if declared is not None and (
        len(declared) != len(sizes) or any(n not in known for n, known in zip(declared, sizes, strict=True))
    ):
        yield "the declared result has another shape", declared, str([max(n or 0 for n in known) for known in sizes])


def conv(weights: int) -> Rule:
    """A convolution whose weights are operand `weights`: W[M, C / group, *kernel]."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        x, w = node.shape(0), node.shape(weights)
        if w is None:
            return
        if x is not None and len(x) != len(w):
            yield "the weights and the input have different ranks", len(w), f"rank {len(x)}"
            return
        yield from _kernel_as_weights(node, w)
        group = node.attributes.get("group", 1)
        if x is not None and len(x) > 1 and None not in (x[1], w[1]) and x[1] != w[1] * group:
            yield "the input's channels do not match the weights", x[1], f"{w[1]} for each of {group} groups"
        if w[0] is not None and w[0] % group:
            yield "the weights do not divide into groups", w[0], f"a multiple of {group}"
        if x is not None and len(x) > 2:
            yield from _window(node, x[2:], w[2:])

    return rule


def _kernel_as_weights(node: ShapedNode, w: Shape) -> Iterator[Broken]:
    kernel = node.attributes.get("kernel_shape")
    if kernel is not None and any(k != n for k, n in zip(kernel, w[2:], strict=False) if n is not None):
        yield "attribute 'kernel_shape' does not match the weights", list(kernel), str(list(w[2:]))
    elif kernel is not None and len(kernel) != len(w) - 2:
        yield "attribute 'kernel_shape' has the wrong length", list(kernel), f"{len(w) - 2} entries"


def conv_transpose(node: ShapedNode) -> Iterator[Broken]:
    """W[C, M / group, *kernel]."""
    x, w = node.shape(0), node.shape(1)
    if x is None or w is None:
        return
    if len(x) != len(w):
        yield "the weights and the input have different ranks", len(w), f"rank {len(x)}"
        return
    rank, group = len(x) - 2, node.attributes.get("group", 1)
    yield from _kernel_as_weights(node, w)
    yield from _wrong_length(node, rank, strides=1, dilations=1, pads=2, output_padding=1, output_shape=1)
    if None not in (x[1], w[0]) and x[1] != w[0]:
        yield "the input's channels do not match the weights", x[1], str(w[0])
    if w[0] is not None and w[0] % group:
        yield "the weights do not divide into groups", w[0], f"a multiple of {group}"
    extra, strides, dilations = (
        node.ints(n, rank, i) for n, i in (("output_padding", 0), ("strides", 1), ("dilations", 1))
    )
    for e, s, d in zip(extra, strides, dilations, strict=False):
        if e >= max(s, d):
            yield "attribute 'output_padding' is too large", extra, "less than stride or dilation"
    wanted, reaches = (
        node.attributes.get("output_shape", ()),
        zip(x[2:], w[2:], strides, dilations, extra, strict=False),
    )
    for size, (n, k, s, d, e) in zip(wanted[-rank:], reaches, strict=False):
        if n is not None and k is not None and size > (n - 1) * s + (k - 1) * d + 1 + max(e, s - 1):
            yield "attribute 'output_shape' is larger than what the kernel reaches", list(wanted), "no more than that"


def deform_conv(node: ShapedNode) -> Iterator[Broken]:
    """offset[N, offset_group * kernel * 2, ...]"""
    yield from conv(1)(node)
    w, offset, groups = node.shape(1), node.shape(2), node.attributes.get("offset_group", 1)
    kernel = [k for k in w[2:] if k is not None] if w is not None else []
    if w is None or len(kernel) != len(w) - 2 or offset is None or len(offset) < 2 or offset[1] is None:
        return
    wanted = groups * math.prod(kernel) * len(kernel)
    if offset[1] != wanted:
        yield "the offsets have a different number of channels", offset[1], f"{wanted} for {groups} offset groups"


def col2im(node: ShapedNode) -> Iterator[Broken]:
    """x[N, C * block, blocks], the sizes of image and block as operands."""
    x, image, block = node.shape(0), node.constants.get(1), node.constants.get(2)
    if image is None or block is None:
        return
    rank = len(image)
    if len(block) != rank:
        yield "the block and the image have different numbers of axes", block.tolist(), f"{rank} sizes"
        return
    yield from _wrong_length(node, rank, strides=1, dilations=1, pads=2)
    strides, dilations = (node.ints(name, rank, 1) for name in ("strides", "dilations"))
    pads, blocks = node.ints("pads", 2 * rank, 0), 1
    for axis, (n, k) in enumerate(zip(image.tolist(), block.tolist(), strict=True)):
        room, reach = n + pads[axis] + pads[axis + rank], (k - 1) * dilations[axis] + 1
        if min(n, k) < 1 or reach > room:
            yield "the block is larger than the padded image", reach, f"1 to {room}"
            return
        blocks *= (room - reach) // strides[axis] + 1
    if x is not None and len(x) == 3 and x[2] not in (None, blocks):
        yield "the input has a different number of blocks", x[2], str(blocks)
    if x is not None and len(x) == 3 and x[1] is not None and x[1] % math.prod(block.tolist()):
        yield "the channels do not divide into blocks", x[1], f"a multiple of {math.prod(block.tolist())}"

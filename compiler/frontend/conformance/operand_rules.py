"""Rules N9 and N10 for operands that say how others are read: axes, pads, scales, indices, labels.

Every function yields violations, and continues only if later checks still make sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ppuc.compiler.frontend.conformance.shaped_node import Broken, Rule, ShapedNode, contradicts

LARGEST_SIZE = 1 << 31
"""Sizes from here on are taken for mistakes."""


def one_element(index: int, what: str) -> Rule:
    """An operand that is a single number."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        shape = node.shape(index)
        if shape is not None and any(n not in (None, 1) for n in shape):
            yield f"{what} is not one element", list(shape), "a scalar"

    return rule


def constant(index: int, what: str, fits: Callable[[np.ndarray], bool], expected: str) -> Rule:
    """A constant operand by itself."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        value = node.constants.get(index)
        if value is not None and not fits(value):
            yield f"{what} is out of range", value.tolist(), expected

    return rule


def as_list(index: int, what: str) -> Rule:
    """An operand that is a list."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        shape = node.shape(index)
        if shape is not None and len(shape) != 1:
            yield f"{what} is not a list", f"rank {len(shape)}", "rank 1"

    return rule


def same_shape(index: int, other: int, what: str) -> Rule:
    """Two operands of one shape, where a scalar and a list of one element are the same."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        a, b = node.shape(index), node.shape(other)
        if a is None or b is None or None in a or None in b or (math.prod(a) == math.prod(b) == 1):  # type: ignore[arg-type]
            return
        if a != b:
            yield f"{what} have different shapes", f"{list(a)} and {list(b)}", "one shape"

    return rule


def distinct_axes(node: ShapedNode) -> Iterator[Broken]:
    """Axes of operand 0, each once: an attribute, or operand 1."""
    x, given = node.shape(0), node.constants.get(1, node.attributes.get("axes"))
    if given is None:
        return
    if np.ndim(given) > 1:
        yield "the axes are not a list", f"rank {np.ndim(given)}", "rank 1"
        return
    axes = np.atleast_1d(given).tolist()
    if x is None:
        return
    rank = max(len(x), 1)
    if any(not -rank <= a < rank for a in axes):
        yield "an axis is out of range", axes, f"{-rank} to {rank - 1}"
    elif len({a % rank for a in axes}) != len(axes):
        yield "an axis is named twice", axes, "each axis once"


def pad(node: ShapedNode) -> Iterator[Broken]:
    """Pads at the begin and the end of each axis, or of those that operand 3 names; negative ones crop."""
    x, given = node.shape(0), node.constants.get(1, node.attributes.get("pads", node.attributes.get("paddings")))
    if x is None or given is None:
        return
    axes = np.atleast_1d(node.constants.get(3, np.arange(len(x))))
    pads = np.atleast_1d(given)
    if any(node.site.node.input[3:4]) and 3 not in node.constants:
        return
    fits = pads.shape == (2 * len(axes),) and all(-len(x) <= a < len(x) for a in axes)
    if not fits:  # inference says so
        return
    for axis, before, behind in zip(axes.tolist(), pads[: len(axes)].tolist(), pads[len(axes) :].tolist(), strict=True):
        size = x[axis]
        if size is None:
            continue
        if not 0 <= size + before + behind < LARGEST_SIZE or -before > size or -behind > size:
            yield f"axis {axis} gets an impossible size", size + before + behind, "0 to 2^31, crops within the input"
        elif node.attributes.get("mode") == b"reflect" and max(before, behind) >= size > 0:
            yield "a reflection is larger than the input", max(before, behind), f"less than {size}"


def resize(node: ShapedNode) -> Iterator[Broken]:
    """Scales are positive numbers, sizes are sizes."""
    at = 1 if node.site.node.op_type == "Upsample" or node.site.opsets.get("", 1) < 11 else 2
    x, scales, sizes = node.shape(0), node.constants.get(at), node.constants.get(3)
    if scales is not None and scales.size:
        if not np.all(np.isfinite(scales) & (scales > 0)):
            yield "a scale is not positive and finite", scales.tolist(), "more than zero"
        elif (
            x is not None
            and len(x) == len(scales)
            and any(n is not None and n * s >= LARGEST_SIZE for n, s in zip(x, scales.tolist(), strict=True))
        ):
            yield "a scale gives an impossible size", scales.tolist(), "sizes below 2^31"
    if sizes is not None and np.any(sizes < 0):
        yield "a size is negative", sizes.tolist(), "zero or more"


def gather_nd(node: ShapedNode) -> Iterator[Broken]:
    """The last axis of the indices holds one index for each of the first axes of operand 0, behind those of a batch."""
    x, shape, indices = node.shape(0), node.shape(1), node.constants.get(1)
    batch = node.attributes.get("batch_dims", 0)
    if x is None or shape is None or not shape or shape[-1] is None:
        return
    if batch + shape[-1] > len(x):
        yield "the indices name more axes than the input has", shape[-1], f"at most {len(x) - batch}"
    elif indices is not None:
        for axis, size in enumerate(x[batch : batch + shape[-1]]):
            if size is not None and not np.all((-size <= indices[..., axis]) & (indices[..., axis] < size)):
                yield "an index is out of range", indices[..., axis].tolist(), f"{-size} to {size - 1}"
                return


def indices_along(default: int = 0) -> Rule:
    """Indices in the file, along attribute 'axis' of operand 0."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        x, axis, indices = node.shape(0), node.attributes.get("axis", default), node.constants.get(1)
        size = x[axis] if x is not None and -len(x) <= axis < len(x) else None
        if size is not None and indices is not None and not np.all((-size <= indices) & (indices < size)):
            yield "an index is out of range", indices.tolist(), f"{-size} to {size - 1}"

    return rule


def position_in_sequence(index: int, behind: int) -> Rule:
    """A position in the file, in a sequence of known length or up to `behind` after its end."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        given, length = node.constants.get(index), node.length
        if length is not None and given is not None and not -length <= given.item() < length + behind:
            last = length + behind - 1
            yield (
                "a position is out of range",
                given.item(),
                f"{-length} to {last}" if length + behind else "no element",
            )

    return rule


def positions(node: ShapedNode) -> Iterator[Broken]:
    """RotaryEmbedding: positions in the file, rows of the caches."""
    cache, ids = node.shape(1), node.constants.get(3)
    if cache and cache[0] is not None and ids is not None and not np.all((ids >= 0) & (ids < cache[0])):
        yield "a position is out of range", ids.tolist(), f"0 to {cache[0] - 1}"


def blocks(of: Callable[[int], tuple[tuple[int, int], ...]]) -> Rule:
    """Axes of operand 0 that attribute 'blocksize' divides: `of` gives pairs of axis and divisor."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        x, size = node.shape(0), node.attributes.get("blocksize", 1)
        for axis, divisor in of(size):
            if x is not None and len(x) == 4 and x[axis] is not None and x[axis] % divisor:  # type: ignore[operator]
                yield f"axis {axis} does not divide into blocks", x[axis], f"a multiple of {divisor}"

    return rule


def unidirectional(index: int, what: str) -> Rule:
    """Operand `index` broadcasts to operand 0, which keeps its shape."""

    def rule(node: ShapedNode) -> Iterator[Broken]:
        x, given = node.shape(0), node.shape(index)
        if x is None or given is None:
            return
        pairs = zip(reversed(given), reversed(x), strict=False)
        if len(given) > len(x) or any(n not in (None, 1, m) and m is not None for n, m in pairs):
            yield f"{what} does not broadcast to the input", list(given), str(list(x)).replace("None", "?")

    return rule


def max_unpool(node: ShapedNode) -> Iterator[Broken]:
    """Indices in the file are those of elements of the result; operand 2 may ask for a larger one."""
    x, indices, asked = node.shape(0), node.constants.get(1), node.constants.get(2)
    kernel = node.attributes["kernel_shape"]
    if x is None or len(x) != len(kernel) + 2 or len(sizes := [n for n in x if n is not None]) < len(x):
        return
    strides, pads = node.ints("strides", len(kernel), 1), node.ints("pads", 2 * len(kernel), 0)
    spatial = zip(sizes[2:], kernel, strides, pads, pads[len(kernel) :], strict=False)
    least = [*sizes[:2], *((n - 1) * s - before - behind + k for n, k, s, before, behind in spatial)]
    result = least if asked is None else asked.reshape(-1).tolist()
    if len(result) != len(least) or any(n < m for n, m in zip(result, least, strict=True)):
        yield "the shape of the result is smaller than what the pool covers", result, f"at least {least}"
    elif indices is not None and not np.all((indices >= 0) & (indices < math.prod(result))):
        yield "an index is out of range", indices.tolist(), f"0 to {math.prod(result) - 1}"


def tensor_scatter(node: ShapedNode) -> Iterator[Broken]:
    """Where the updates start, in the file: they end within the cache, unless it is circular."""
    cache, update, starts = node.shape(0), node.shape(1), node.constants.get(2)
    axis = node.attributes.get("axis", -2)
    if cache is None or update is None or starts is None or not -len(cache) <= axis < len(cache) == len(update):
        return
    size, length = cache[axis], update[axis]
    if size is None or length is None:
        return
    last = np.iinfo(np.int64).max if node.attributes.get("mode") == b"circular" else size - length
    if not np.all((starts >= 0) & (starts <= last)):
        yield "a write index is out of range", starts.tolist(), f"0 to {last}"


def labels(node: ShapedNode) -> Iterator[Broken]:
    """Scores[N, C, ...], labels[N, ...] of classes below C, and weights[C]."""
    x, shape, given, weights = node.shape(0), node.shape(1), node.constants.get(1), node.shape(2)
    if x is None or shape is None or len(x) < 2:
        return
    wanted = (x[0], *x[2:])
    if weights is not None and contradicts(weights, [x[1]]):
        yield "the weights are not one for each class", list(weights), f"[{x[1]}]"
    elif len(shape) != len(wanted) or any(None not in p and p[0] != p[1] for p in zip(shape, wanted, strict=False)):
        yield "the labels do not fit the scores", list(shape), str(list(wanted))
    elif given is not None and x[1] is not None:
        meant = given[given != node.attributes.get("ignore_index", -1 << 63)]
        if not np.all((meant >= 0) & (meant < x[1])):
            yield "a label is out of range", given.tolist(), f"0 to {x[1] - 1}"

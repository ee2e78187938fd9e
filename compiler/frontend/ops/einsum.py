"""Einsum as transposes, reductions, products and matmuls: operands are contracted pairwise from left to right.

Labels are letters; an ellipsis stands for the labels "0", "1", ... counted from its last axis, so that operands align
at the right as in broadcasting. Invariant: while contracting, a Term has each label once, and an axis of size one that
broadcasts against a larger one is no longer in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs


@dataclass(frozen=True, slots=True)
class Term:
    """A tensor and the label of each of its axes."""

    value: Value
    labels: tuple[str, ...]

    def size(self, label: str) -> int:
        return self.value.type.dims[self.labels.index(label)]


@importer("Einsum")
def einsum(ctx: NodeContext) -> Sequence[Value]:
    left, arrow, right = str(ctx.attr("equation", "")).replace(" ", "").partition("->")
    subscripts = left.split(",")
    if len(subscripts) != len(ctx.inputs):
        ctx.fail("equation and inputs differ in number", got=f"{len(subscripts)} terms, {len(ctx.inputs)} inputs")
    terms = [Term(ctx.operand(i), _labels(ctx, text, len(ctx.shape(i)))) for i, text in enumerate(subscripts)]
    sizes = _sizes(ctx, terms)
    ellipsis = sorted((label for label in sizes if label.isdigit()), key=int, reverse=True)
    output = _output_labels(ctx, right, ellipsis) if arrow else _implicit_output(terms, ellipsis)
    unknown = [label for label in output if label not in sizes]
    if unknown or len(set(output)) != len(output):
        ctx.fail("each output label must be in an input, once", got=f"'{right}' of '{left}->{right}'")
    terms = [_without_broadcast(ctx, _diagonal(ctx, term), sizes) for term in terms]
    result = terms[0]
    for i, term in enumerate(terms[1:], start=2):
        kept = {*output, *(label for later in terms[i:] for label in later.labels)}
        result = _contract(
            ctx, _sum(ctx, result, kept | set(term.labels)), _sum(ctx, term, kept | set(result.labels)), kept
        )
    return (_ordered(ctx, _sum(ctx, result, set(output)), output, sizes),)


def _labels(ctx: NodeContext, text: str, rank: int) -> tuple[str, ...]:
    """The labels of an input with `rank` axes and subscripts `text`."""
    before, dots, after = text.partition("...")
    if not (before + after).isalpha() and before + after:
        ctx.fail("subscripts must be letters and one ellipsis", got=f"'{text}'")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        ctx.fail("subscripts do not fit the input's rank", got=f"'{text}' for rank {rank}")
    return (*before, *(str(i) for i in reversed(range(hidden))), *after)


def _output_labels(ctx: NodeContext, text: str, ellipsis: Sequence[str]) -> tuple[str, ...]:
    before, dots, after = text.partition("...")
    return (*before, *(ellipsis if dots else ()), *after)


def _implicit_output(terms: Sequence[Term], ellipsis: Sequence[str]) -> tuple[str, ...]:
    """Without an arrow: the ellipsis, then the labels that occur once, in alphabetical order."""
    letters = [label for term in terms for label in term.labels if label.isalpha()]
    return (*ellipsis, *sorted(label for label in letters if letters.count(label) == 1))


def _sizes(ctx: NodeContext, terms: Sequence[Term]) -> dict[str, int]:
    """The size of each label; ones broadcast."""
    sizes: dict[str, int] = {}
    for term in terms:
        for label, size in zip(term.labels, term.value.type.dims, strict=True):
            known = sizes.setdefault(label, size)
            if known == 1:
                sizes[label] = size
            elif size not in (1, known):
                name = "the ellipsis" if label.isdigit() else f"'{label}'"
                ctx.fail(f"sizes of {name} differ", got=f"{known} and {size}")
    return sizes


def _diagonal(ctx: NodeContext, term: Term) -> Term:
    """Labels that repeat within one term select a diagonal: every (n + 1)-th element of the flattened pair of axes."""
    repeated = next((label for label in term.labels if term.labels.count(label) > 1), None)
    if repeated is None:
        return term
    pair = [i for i, label in enumerate(term.labels) if label == repeated][:2]
    rest = [i for i in range(len(term.labels)) if i not in pair]
    n, m = (term.value.type.dims[i] for i in pair)
    if n != m:
        ctx.fail(f"sizes of '{repeated}' differ within one input", got=f"{n} and {m}")
    last = ctx.op("transpose", term.value, attrs=TransposeAttrs((*rest, *pair)))
    shape = tuple(term.value.type.dims[i] for i in rest)
    flat = ctx.op("reshape", last, attrs=ReshapeAttrs((*shape, n * n)))
    steps = (*(1 for _ in rest), n + 1)
    diagonal = ctx.op("slice", flat, attrs=SliceAttrs((0,) * len(steps), (*shape, n), steps))
    return _diagonal(ctx, Term(diagonal, (*(term.labels[i] for i in rest), repeated)))


def _without_broadcast(ctx: NodeContext, term: Term, sizes: dict[str, int]) -> Term:
    """`term` without size-one axes that broadcast against larger ones."""
    kept = tuple(label for label in term.labels if term.size(label) == sizes[label])
    if kept == term.labels:
        return term
    shape = tuple(term.size(label) for label in kept)
    return Term(ctx.op("reshape", term.value, attrs=ReshapeAttrs(shape)), kept)


def _sum(ctx: NodeContext, term: Term, kept: set[str]) -> Term:
    """`term` summed over the labels that are not in `kept`."""
    axes = tuple(i for i, label in enumerate(term.labels) if label not in kept)
    if not axes:
        return term
    total = ctx.op("reduce", term.value, attrs=ReduceAttrs(kind="sum", axes=axes, keepdims=False))
    return Term(total, tuple(label for label in term.labels if label in kept))


def _permuted(ctx: NodeContext, term: Term, labels: Sequence[str]) -> Value:
    """`term` with its axes in the order of `labels`."""
    perm = tuple(term.labels.index(label) for label in labels)
    return (
        term.value if perm == tuple(range(len(perm))) else ctx.op("transpose", term.value, attrs=TransposeAttrs(perm))
    )


def _shaped(ctx: NodeContext, value: Value, shape: Sequence[int]) -> Value:
    return value if value.type.dims == tuple(shape) else ctx.op("reshape", value, attrs=ReshapeAttrs(tuple(shape)))


def _contract(ctx: NodeContext, a: Term, b: Term, kept: set[str]) -> Term:
    """The product of two terms, summed over the labels of both that are not in `kept`."""
    shared = [label for label in a.labels if label in b.labels]
    batch = [label for label in shared if label in kept]
    summed = [label for label in shared if label not in kept]
    rows = [label for label in a.labels if label not in shared]
    columns = [label for label in b.labels if label not in shared]
    labels = (*batch, *rows, *columns)
    shape = [a.size(label) for label in batch]
    row_sizes, column_sizes = [a.size(label) for label in rows], [b.size(label) for label in columns]
    if not summed:
        left = _shaped(ctx, _permuted(ctx, a, [*batch, *rows]), [*shape, *row_sizes, *(1 for _ in columns)])
        right = _shaped(ctx, _permuted(ctx, b, [*batch, *columns]), [*shape, *(1 for _ in rows), *column_sizes])
        return Term(ctx.op("mul", left, right), labels)
    depth = math.prod(a.size(label) for label in summed)
    left, transpose_a = _matrix(ctx, a, batch, rows, summed, math.prod(row_sizes), depth)
    right, transpose_b = _matrix(ctx, b, batch, columns, summed, math.prod(column_sizes), depth)
    product = ctx.op("matmul", left, right, attrs=MatmulAttrs(transpose_a, not transpose_b))
    return Term(_shaped(ctx, product, [*shape, *row_sizes, *column_sizes]), labels)


def _matrix(
    ctx: NodeContext, term: Term, batch: list[str], free: list[str], summed: list[str], width: int, depth: int
) -> tuple[Value, bool]:
    """`term` as [batch..., free, summed], or [batch..., summed, free] and True if that needs no transpose."""
    shape = [term.size(label) for label in batch]
    swapped = term.labels == (*batch, *summed, *free) and bool(free)
    value = _permuted(ctx, term, [*batch, *summed, *free] if swapped else [*batch, *free, *summed])
    return _shaped(ctx, value, [*shape, depth, width] if swapped else [*shape, width, depth]), swapped


def _ordered(ctx: NodeContext, term: Term, output: Sequence[str], sizes: dict[str, int]) -> Value:
    """`term` with axes in the output's order; labels with only size-one axes are expanded."""
    value = _permuted(ctx, term, [label for label in output if label in term.labels])
    value = _shaped(ctx, value, [sizes[label] if label in term.labels else 1 for label in output])
    shape = tuple(sizes[label] for label in output)
    return value if value.type.dims == shape else ctx.op("expand", value, attrs=ExpandAttrs(shape))

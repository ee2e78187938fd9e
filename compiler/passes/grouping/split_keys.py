"""Attention of few queries over many keys, cut along the keys (flash decoding: Dao, Haziza, Massa, Sizov 2023).

Each part of the keys yields its weighted sum of values, its maximum and its total; a separate kernel combines them: out
= sum over p of acc_p w_p / sum over p of total_p w_p with w_p = exp(max_p - max).

Invariant: the parts are combined in a fixed order and in f32.
"""

from __future__ import annotations

from ppuc.compiler.lowering.kernels.contraction import anchor_of
from ppuc.compiler.lowering.kinds import check_group
from ppuc.compiler.lowering.tiling.body import NotFusable, scalar_constant
from ppuc.compiler.passes.rules.bodies import ancestors
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.attention import AttentionAttrs, AttentionPartsAttrs
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs
from ppuc.ir.rewrite import Builder
from ppuc.targets.schema import Target

KEYS = 16
"""Parts begin at multiples of this many keys: rows of a fragment."""


def keys_of(op: Op) -> int:
    """Number of keys of the attention in a group."""
    assert op.body is not None
    return anchor_of(op.body, "attention").operands[1].type.dims[2]


def cut_keys(op: Op, parts: int, names: Builder, target: Target) -> list[Op]:
    """The group of partial results, the group that combines them, and its result in the shape of `op`'s. Raises
    NotFusable if `op` combines the attention's result with other tensors, or a kernel cannot be built."""
    body = op.body
    assert body is not None
    anchor = anchor_of(body, "attention")
    after = _steps_after(body, anchor)
    attrs = anchor.attrs
    assert isinstance(attrs, AttentionAttrs)
    s, result = keys_of(op), anchor.results[0]
    keys = -(-s // (parts * KEYS)) * KEYS
    if keys >= s:
        raise NotFusable(f"{s} keys do not divide into {parts} parts")
    names.ops = [o for o in body.ops if o.results[0].name in ancestors(body, anchor)]
    parts_attrs = AttentionPartsAttrs(attrs.scale, keys, attrs.causal)
    inner = names("attention_parts", *anchor.operands, attrs=parts_attrs, hint="parts")
    first_body = Graph("body", body.params, (inner,), tuple(names.ops))
    stored = Value(names.fresh(f"{op.results[0].name}.parts"), inner.type)
    first = Op("group", GroupAttrs(check_group(first_body, target)), op.operands, (stored,), op.loc, first_body)
    names.ops = []
    param = Value(names.fresh(f"{stored.name}.in"), stored.type)
    total = _stepped(names, _together(names, param), after)
    if total.type.dtype is not op.results[0].type.dtype:
        total = names("cast", total, attrs=CastAttrs(op.results[0].type.dtype), hint="rounded")
    second_body = Graph("body", (param,), (total,), tuple(names.ops))
    whole = Value(names.fresh(f"{op.results[0].name}.whole"), total.type)
    second = Op("group", GroupAttrs(check_group(second_body, target)), (stored,), (whole,), op.loc, second_body)
    assert whole.type.elements == result.type.elements
    return [first, second, Op("reshape", ReshapeAttrs(op.results[0].type.dims), (whole,), op.results, op.loc)]


def _steps_after(body: Graph, anchor: Op) -> list[tuple[Op, dict[int, Op]]]:
    """The elementwise ops after the anchor, without reshapes, and their scalar operands."""
    value = anchor.results[0]
    before = ancestors(body, anchor)
    numbers = {o.results[0].name: o for o in body.ops if scalar_constant(o) is not None}
    found = []
    for o in body.ops:
        if o is anchor or o.results[0].name in before or o.results[0].name in numbers:
            continue
        others = {i: numbers[v.name] for i, v in enumerate(o.operands) if v.name in numbers}
        alone = value in o.operands and all(v == value or i in others for i, v in enumerate(o.operands))
        if not alone or (o.name != "reshape" and OPS[o.name].kind is not Kind.ELEMENTWISE):
            raise NotFusable(f"'{o.name}' after attention prevents splitting its keys")
        if o.name != "reshape":
            found.append((o, others))
        value = o.results[0]
    if body.results != (value,):
        raise NotFusable("the attention's result is stored twice, which prevents splitting its keys")
    return found


def _stepped(b: Builder, value: Value, after: list[tuple[Op, dict[int, Op]]]) -> Value:
    """Apply the ops that follow attention to the f32 `value`."""
    for op, numbers in after:
        given = next(v for i, v in enumerate(op.operands) if i not in numbers).type.dtype
        x = value if value.type.dtype is given else b("cast", value, attrs=CastAttrs(given))
        operands = [
            b("const", attrs=numbers[i].attrs, hint="number") if i in numbers else x for i in range(len(op.operands))
        ]
        value = b(op.name, *operands, attrs=op.attrs, hint=op.results[0].name)
    return value


def _together(b: Builder, parts: Value) -> Value:
    """The combination [1, batch, heads, m, e] of parts [p, batch, heads, m, e + 2]."""
    dims = parts.type.dims
    e = dims[-1] - 2

    def columns(start: int, count: int) -> Value:
        starts = (*(0 for _ in dims[:-1]), start)
        return b("slice", parts, attrs=SliceAttrs(starts, (*dims[:-1], count), (1,) * len(dims)), hint="part")

    sums, high, total = columns(0, e), columns(e, 1), columns(e + 1, 1)
    best = b("reduce", high, attrs=ReduceAttrs("max", (0,), True), hint="max")
    weight = b("exp", b("sub", high, best, hint="below"), hint="weight")
    above, below = (
        b("reduce", b("mul", x, weight, hint="weighted"), attrs=ReduceAttrs("sum", (0,), True), hint="sum")
        for x in (sums, total)
    )
    return b("div", above, below, hint="out")

"""Restricts groups to a part of the batch.

A group computes its batch independently if the access patterns of its ops map axis 0 of every result to axis 0 of the
operands, unchanged: element i of the batch depends on element i alone, and on operands without a batch.

Invariant: a restricted group computes the same elements, from the same operands, as the whole group does for that part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ppuc.compiler.lowering.kinds import check_group
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.memory.live_ranges import inserted_operands, updated_operand
from ppuc.ir.affine import var
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.movement import InsertAttrs
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import TensorType
from ppuc.targets.schema import Target


def batched_operands(op: Op) -> frozenset[int] | None:
    """Positions of the operands whose axis 0 is the batch of group `op`; None if its results cannot be computed for a
    part of the batch from the same part of these operands."""
    if op.body is None or inserted_operands(op) or updated_operand(op) is not None:
        return None
    batches = {r.type.dims[:1] for r in op.body.results}
    batched = batched_values(op.body) if len(batches) == 1 and () not in batches else None
    if batched is None:
        return None
    try:
        restricted(op.body, 1, {}, Builder())
    except NotFusable:
        return None
    return frozenset(i for i, p in enumerate(op.body.params) if p.name in batched)


def batched_values(body: Graph) -> frozenset[str] | None:
    """Names of the values of `body` that hold the batch of its results along axis 0; None if one is also read whole, or
    an op mixes elements of the batch."""
    batched, whole = {r.name for r in body.results}, set[str]()
    for op in reversed(body.ops):
        names = {r.name for r in op.results}
        if names & batched:
            found = _batched(op)
            if found is None:
                return None
            batched |= {v.name for i, v in enumerate(op.operands) if i in found}
            whole |= {v.name for i, v in enumerate(op.operands) if i not in found}
        elif names & whole:
            whole |= {v.name for v in op.operands}
    return None if batched & whole else frozenset(batched)


def _batched(op: Op) -> frozenset[int] | None:
    """Positions of the operands of an op that are batched if its results are; None if it mixes the batch."""
    size = op.results[0].type.dims[:1]
    if op.name == "reshape":
        return frozenset((0,)) if op.operands[0].type.dims[:1] == size else None
    pattern = OPS[op.name].pattern(op)
    if pattern is None or not all(access and len(access[0].terms) == 1 for access in pattern.results):
        return None
    name = pattern.results[0][0].terms[0][0]
    if any(access[0] != var(name) or any(a.coefficient(name) for a in access[1:]) for access in pattern.results):
        return None
    found = set()
    for i, (value, access) in enumerate(zip(op.operands, pattern.operands, strict=True)):
        if not any(a.coefficient(name) for a in access):
            continue
        if access[0] != var(name) or any(a.coefficient(name) for a in access[1:]) or value.type.dims[:1] != size:
            return None
        found.add(i)
    return frozenset(found)


def restricted(body: Graph, batch: int, whole: Mapping[str, int], names: Builder) -> Graph:
    """`body` for `batch` elements of its batch. Batched parameters hold these elements only, except those in `whole`,
    which hold the whole batch: there the elements begin at the given index. Raises NotFusable if the types of an op's
    results do not follow."""
    batched = batched_values(body)
    assert batched is not None
    names.ops = []
    made: dict[str, Value] = {}
    params = []
    for p in body.params:
        part = p.name in batched and p.name not in whole
        params.append(Value(names.fresh(p.name), _with_batch(p.type, batch) if part else p.type, p.space))
        made[p.name] = params[-1] if p.name not in whole else _part(names, params[-1], whole[p.name], batch)
    for op in body.ops:
        names.loc, attrs = op.loc, op.attrs
        if op.results[0].name in batched:
            attrs = _with_batch_attrs(attrs, batch)
        try:
            results = names.emit(op.name, [made[v.name] for v in op.operands], attrs, hint=op.results[0].name)
        except ValueError as error:  # an op of another package, whose attributes hold the batch
            raise NotFusable(f"'{op.name}' is not defined for a part of the batch: {error}") from None
        for old, new in zip(op.results, results, strict=True):
            expected = _with_batch(old.type, batch) if old.name in batched else old.type
            if new.type != expected:
                raise NotFusable(f"'{op.name}' does not compute {expected} for a part of the batch")
            made[old.name] = new
    results = tuple(replace(made[r.name], space=r.space) for r in body.results)
    return Graph(body.name, tuple(params), results, tuple(names.ops))


def restricted_group(
    op: Op,
    batch: int,
    start: int,
    operands: tuple[Value, ...],
    bases: Mapping[int, Value],
    results: tuple[Value, ...],
    names: Builder,
    target: Target,
) -> Op:
    """Group `op` for the `batch` elements from `start` on. Its `operands` hold these elements or the whole batch; a
    result in `bases` is stored into the memory of that value, which holds the whole batch. Raises NotFusable."""
    assert op.body is not None
    batched = batched_values(op.body)
    assert batched is not None
    pairs = zip(op.body.params, operands, strict=True)
    whole = {p.name: start for p, v in pairs if p.name in batched and v.type.dims[0] != batch}
    body = restricted(op.body, batch, whole, names)
    params, stored, ops = list(body.params), list(body.results), list(body.ops)
    for i, base in bases.items():
        params.append(Value(names.fresh(f"{base.name}.in"), base.type))
        out = Value(names.fresh(f"{results[i].name}.out"), base.type)
        starts = (start, *(0 for _ in base.type.dims[1:]))
        ops.append(Op("insert", InsertAttrs(starts), (params[-1], stored[i]), (out,), op.loc))
        stored[i] = out
    grown = Graph(body.name, tuple(params), tuple(stored), tuple(ops))
    attrs = GroupAttrs(check_group(grown, target))
    return replace(op, attrs=attrs, operands=(*operands, *bases.values()), results=results, body=grown)


def _with_batch(type: TensorType, batch: int) -> TensorType:
    return TensorType(type.dtype, (batch, *type.dims[1:]))


def _with_batch_attrs(attrs: Attrs, batch: int) -> Attrs:
    """Attributes that hold the shape of a result, for another batch."""
    if isinstance(attrs, ReshapeAttrs | ExpandAttrs):
        return replace(attrs, shape=(batch, *attrs.shape[1:]))
    if isinstance(attrs, SliceAttrs):
        return replace(attrs, sizes=(batch, *attrs.sizes[1:]))
    return attrs


def _part(names: Builder, value: Value, start: int, batch: int) -> Value:
    """The elements of the batch from `start` on, in the body under construction."""
    rest = value.type.dims[1:]
    attrs: Attrs = SliceAttrs((start, *(0 for _ in rest)), (batch, *rest), (1,) * (1 + len(rest)))
    return names("slice", value, attrs=attrs, hint=value.name)

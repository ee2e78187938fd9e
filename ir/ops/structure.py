"""Ops without arithmetic of their own: constants, and ops that passes add (fused groups, staging copies)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True)
class ConstAttrs(Attrs):
    """`value` is the data; a dump stores it once, by key."""

    value: Resource


register(
    OpDef(
        name="const",
        formula="result = value",
        kind=Kind.CONSTANT,
        operands="",
        attrs=ConstAttrs,
        infer=lambda attrs, types: (attrs.value.type,),
        reference=lambda attrs: (attrs.value.array(),),
    )
)


@dataclass(frozen=True, slots=True)
class GroupAttrs(Attrs):
    """`kernel` names the level-2 kernel that implements the group ("" before tiling); `kind` is its kernel kind (map,
    matmul, conv, attention, ...)."""

    kind: str = ""
    kernel: str = ""


def _group_has_body(attrs: GroupAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    raise TypeError("a group's result types are those of its body's results; pass types= to Builder.emit")


register(
    OpDef(
        name="group",
        formula="results = body(operands)",
        kind=Kind.STRUCTURE,
        operands="...",
        attrs=GroupAttrs,
        infer=_group_has_body,
        reference=None,
    )
)


@dataclass(frozen=True, slots=True)
class EmptyAttrs(Attrs):
    """`type` is the tensor type of the memory."""

    dtype: DType
    shape: tuple[int, ...]


register(
    OpDef(
        name="empty",
        formula="result = memory that later inserts fill; read before that, it is zeros",
        kind=Kind.STRUCTURE,
        operands="",
        attrs=EmptyAttrs,
        infer=lambda attrs, types: (TensorType(attrs.dtype, attrs.shape),),
        reference=lambda attrs: (np.zeros(attrs.shape, attrs.dtype.numpy),),
    )
)
register(
    OpDef(
        name="stage",
        formula="result = x, copied into another memory by a stage queue",
        kind=Kind.STRUCTURE,
        operands="x",
        infer=lambda attrs, types: (types[0],),
        reference=lambda attrs, x: (np.asarray(x),),
    )
)

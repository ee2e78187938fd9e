"""Recognises groups that can merge into one product: a product with constant weights followed by column-wise steps.

Weights may be widened from a storage format. A step adds or multiplies a number per column (a bias, the scales of 8-bit
operands), one number for all columns, or another value's number per row.

Invariant: products of equal `key` differ only in constants, so one product on the concatenated constants computes all
of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ppuc.compiler.lowering.kinds import anchor_in
from ppuc.compiler.lowering.tiling.body import scalar_constant, unpacks
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.types import DType, TensorType

_COLUMNWISE = ("add", "mul")


@dataclass(frozen=True, slots=True)
class Step:
    """An elementwise op on the product. Its other operand, if any, is one of: `column`, the outer constant with a
    number for each column (in the body cast to `wide` first); `number`; `shared`, an outer value without columns."""

    name: str
    attrs: Attrs
    column: Op | None = None
    wide: DType | None = None
    number: float | None = None
    shared: Value | None = None

    @property
    def key(self) -> object:
        """The properties on which steps of merging products must agree."""
        column = None if self.column is None else self.column.results[0].type.dtype
        shared = None if self.shared is None else self.shared.name
        return self.name, self.attrs, column, self.wide, self.number is not None, shared


@dataclass(frozen=True, slots=True)
class Product:
    """A group that can merge: its op, its matmul, the operand `x`, the outer constants of the weights and the op that
    widens them, if any, the steps and views from the product to the result, and its type as it is stored."""

    op: Op
    anchor: Op
    x: Value
    weights: tuple[Op, ...]
    widen: Op | None
    steps: tuple[Step, ...]
    views: tuple[Op, ...]
    stored: TensorType

    @property
    def key(self) -> object:
        """The properties on which merging products must agree: the operand, the formats of concatenated constants, the
        steps."""
        types = tuple((c.results[0].type.dtype, c.results[0].type.shape[0]) for c in self.weights)
        widen = None if self.widen is None else (self.widen.name, self.widen.attrs)
        return self.x.name, self.anchor.attrs, types, widen, tuple(step.key for step in self.steps), self.stored.dtype


def read_product(op: Op, constants: Mapping[str, Op]) -> Product | None:
    """A matmul group as a product; None otherwise. `constants` are the graph's, by name."""
    body = op.body
    assert body is not None
    anchor = anchor_in(body)
    assert anchor is not None
    attrs = anchor.attrs
    assert isinstance(attrs, MatmulAttrs)
    outer = dict(zip((p.name for p in body.params), op.operands, strict=True))
    a, b = anchor.operands
    if attrs.transpose_a or attrs.transpose_b or a.name not in outer or outer[a.name].name in constants:
        return None
    widen = body.producer(b)
    if widen is not None and not (unpacks(widen) or widen.name == "unblock"):
        return None
    stored = (b,) if widen is None else widen.operands
    if any(v.name not in outer or v.type.rank != 2 for v in stored):
        return None
    weights = tuple(constants[outer[v.name].name] for v in stored if outer[v.name].name in constants)
    if len(weights) != len(stored):
        return None
    chain = _Chain(body, anchor, outer, constants)
    skip = (anchor, widen)
    if not all(chain.takes(o) for o in body.ops if o not in skip) or chain.value.name != body.results[0].name:
        return None
    type = TensorType(chain.value.type.dtype, anchor.results[0].type.shape)
    return Product(op, anchor, outer[a.name], weights, widen, tuple(chain.steps), tuple(chain.views), type)


class _Chain:
    """The chain of ops after an anchor, read in body order."""

    def __init__(self, body: Graph, anchor: Op, outer: Mapping[str, Value], constants: Mapping[str, Op]) -> None:
        self.outer, self.constants = outer, constants
        self.value, self.columns = anchor.results[0], anchor.results[0].type.dims[-1]
        self.steps: list[Step] = []
        self.views: list[Op] = []
        self.numbers: dict[str, float] = {}
        self.widened: dict[str, tuple[Value, DType]] = {}

    def takes(self, op: Op) -> bool:
        """Whether `op` is the next link of the chain, or prepares one."""
        number = scalar_constant(op)
        if number is not None:
            self.numbers[op.results[0].name] = float(number)
            return True
        if op.name == "cast" and op.operands[0].name in self.outer:
            self.widened[op.results[0].name] = (op.operands[0], op.results[0].type.dtype)
            return True
        if not any(v == self.value for v in op.operands):
            return False
        if OPS[op.name].kind is Kind.VIEW:
            self.views.append(op)
        elif op.name == "cast":
            self.steps.append(Step("cast", op.attrs))
        elif (step := self._columnwise(op)) is not None:
            self.steps.append(step)
        else:
            return False
        self.value = op.results[0]
        return True

    def _columnwise(self, op: Op) -> Step | None:
        """`op` as a column-wise step; None otherwise. Steps precede all views, which could move columns."""
        if op.name not in _COLUMNWISE or self.views or op.operands[0] == op.operands[1]:
            return None
        (other,) = (v for v in op.operands if v != self.value)
        if other.name in self.numbers:
            return Step(op.name, op.attrs, number=self.numbers[other.name])
        source, wide = self.widened.get(other.name, (other, None))
        if source.name not in self.outer:
            return None
        outside = self.outer[source.name]
        constant = self.constants.get(outside.name)
        if constant is None:
            one = other.type.rank == 0 or (other.type.dims[-1] == 1 and other.type.rank == self.value.type.rank)
            rows = wide is None and one
            return Step(op.name, op.attrs, shared=outside) if rows else None
        if outside.type.elements != self.columns or outside.type.dims[-1:] != (self.columns,):
            return None
        return Step(op.name, op.attrs, column=constant, wide=wide)

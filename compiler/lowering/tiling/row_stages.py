"""Analyses a group of several products over the same rows as stages: a product, and the ops that follow it.

Stage 0 holds the ops before the first product; every product starts a stage. An op belongs to the latest stage of its
operands. A value that a later stage reads stays in l1; a product reads such a value, or a parameter, as its left
operand, and a parameter as its right one.

Invariant: `analyse_rows` raises NotFusable exactly if some op combines different rows, or has no place in a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ppuc.compiler.lowering.tiling.body import (
    External,
    NotFusable,
    Resolver,
    op_axes,
    parts_of,
    scalar_constant,
    stored_part,
)
from ppuc.compiler.lowering.tiling.pieces import MOVES, Piece, atoms_of, follow, reshaped, whole
from ppuc.compiler.lowering.tiling.row_layout import Atoms, Layout
from ppuc.compiler.lowering.tiling.summed_axis import summed_axis
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.base import OPS, Kind

FREE = -1
"""The stage of ops without computed operands, until their readers are known."""


@dataclass(slots=True)
class Stage:
    """A product (None in stage 0), the elementwise ops and reductions that follow it, and the atoms of its results'
    last axis."""

    product: Op | None
    ops: list[Op] = field(default_factory=list)
    features: tuple[int, ...] = ()

    @property
    def reduces(self) -> bool:
        """Whether some op needs whole rows."""
        return any(op_axes(op) for op in self.ops)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result of a group: the computed value that it holds, its parts in the result's memory (with boxes of the value,
    if there are several), and the layout of their axes."""

    value: Value
    source: str
    parts: tuple[External, ...]
    layout: Layout


@dataclass(slots=True)
class RowStages:
    """What `analyse_rows` finds. Values that only change the shape of another are its `alias`."""

    body: Graph
    resolver: Resolver
    atoms: Atoms = field(default_factory=Atoms)
    layouts: dict[str, Layout] = field(default_factory=dict)
    """Of computed values."""
    given: dict[str, Layout] = field(default_factory=dict)
    """Of parameters that products and reductions read."""
    constants: dict[str, float] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    stage_of: dict[str, int] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    head_rows: tuple[int, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    """Computed values by name, aliases excluded."""
    moved: set[str] = field(default_factory=set)
    """Slices and concatenations of computed values, and views of these: results that are stored in parts."""

    def source(self, name: str) -> str:
        """The computed value that holds the elements of `name`."""
        return self.alias.get(name, name)

    def memory(self, value: Value) -> External:
        """An operand in memory. Raises NotFusable."""
        found = self.resolver.external(value)
        if found is None or found.padded:
            raise NotFusable(f"operand {value} is neither in memory nor computed in the group")
        return found

    def results(self) -> list[StoredResult]:
        """Every result of the group."""
        found = []
        for result in self.body.results:
            value, view = stored_part(self.body, result)
            if value.name in self.moved:
                found.append(self._parts(result, self._pieces(value, view)))
                continue
            if value.name not in self.layouts:
                raise NotFusable(f"result {result} is not computed by the group")
            part = External(result, view)
            found.append(StoredResult(result, self.source(value.name), (part,), self.layouts[value.name]))
        return found

    def _pieces(self, value: Value, view: View) -> list[Piece]:
        """The pieces of a computed value that make up `value`. Raises NotFusable."""
        pieces = follow(self.body, whole(value, view), lambda p: p.value.name in self.layouts)
        if len({p.value.name for p in pieces}) != 1:
            raise NotFusable(f"{value} is made of several computed values")
        return pieces

    def _parts(self, result: Value, pieces: Sequence[Piece]) -> StoredResult:
        """A result that is stored in parts, with an axis of its views for every atom."""
        value = pieces[0].value
        layout = self.layouts[value.name]
        leaves = tuple((leaf,) for axis in layout for leaf in self.atoms.leaves(axis))
        sizes = tuple(self.atoms.sizes[leaf] for (leaf,) in leaves)
        fine = [q for p in pieces for q in reshaped(p, sizes)]
        return StoredResult(result, self.source(value.name), parts_of(result, fine, sizes), leaves)

    def _divide(self) -> None:
        """Split atoms where parts of results begin and end."""
        for result in self.body.results:
            value, view = stored_part(self.body, result)
            for piece in self._pieces(value, view) if value.name in self.moved else ():
                self.atoms.reshaped(self.layouts[piece.value.name], [a.size for a in atoms_of(piece)])

    # building

    def begin(self, head: Value, rows: Sequence[int]) -> None:
        """Let stage 0 compute `head`, whose axes `rows` are rows."""
        dims = head.type.dims
        atoms = dict(zip(rows, self._row_atoms([dims[i] for i in rows]), strict=True))
        atoms |= {i: self.atoms.new(n, row=False) for i, n in enumerate(dims) if i not in atoms}
        self.layouts[head.name] = tuple(atoms[i] for i in range(len(dims)))
        self.values[head.name], self.stage_of[head.name] = head, 0
        self.stages[0].features = tuple(a for i in range(len(dims)) if i not in rows for a in atoms[i])
        self.head_rows = self.rows

    def add(self, op: Op) -> None:
        """Relate `op` to the rows. Raises NotFusable."""
        result, kind = op.results[0], OPS[op.name].kind
        number = scalar_constant(op)
        if op.name == "insert":
            return
        if number is not None:
            self.constants[result.name] = number
        elif op.name == "const":
            raise NotFusable(f"constant {result} of {result.type} must be a parameter of the group")
        elif kind is Kind.VIEW and op.operands[0].name in self.constants:
            self.constants[result.name] = self.constants[op.operands[0].name]
        elif op.name in MOVES and self._moves(op):
            self.moved.add(result.name)
        elif kind is Kind.VIEW and op.operands[0].name in self.layouts:
            self._view(op)
        elif self.resolver.external(result) is not None:
            return
        elif op.name == "matmul":
            self._product(op)
        elif op.name == "reduce":
            self._reduction(op)
        elif kind is Kind.ELEMENTWISE:
            self._elementwise(op)
        else:
            raise NotFusable(f"'{op.name}' does not keep to its rows")

    def _moves(self, op: Op) -> bool:
        """Whether one of MOVES moves computed rows in another way than reshapes and transposes of all of them."""
        moved = any(v.name in self.moved for v in op.operands)
        return moved or (op.name in ("slice", "concat") and op.operands[0].name in self.layouts)

    def _view(self, op: Op) -> None:
        source, result = op.operands[0], op.results[0]
        layout = self.layouts[source.name]
        if op.name == "transpose":
            self.layouts[result.name] = tuple(layout[i] for i in op.attrs.perm)  # type: ignore[attr-defined]
        elif op.name == "reshape":
            self.layouts[result.name] = self.atoms.reshaped(layout, result.type.dims)
        else:
            raise NotFusable(f"'{op.name}' of a computed value drops or repeats elements")
        self.alias[result.name] = self.source(source.name)

    def _row_atoms(self, shape: Sequence[int]) -> Layout:
        """Row axes of a value that no computed one precedes: the first determines the order of all."""
        floating = bool(self.rows)
        layout = tuple(self.atoms.new(size, row=True, floating=floating) for size in shape)
        if not floating and any(layout):
            self.rows = tuple(a for axis in layout for a in axis)
        return layout

    def layout(self, value: Value) -> Layout:
        """The layout of the operand of a product or a reduction: a parameter gets one of its own."""
        if value.name in self.layouts:
            return self.layouts[value.name]
        if value.name not in self.given:
            self.memory(value)
            *rows, width = value.type.dims
            self.given[value.name] = (*self._row_atoms(rows), self.atoms.new(width, row=False))
        return self.given[value.name]

    def _product(self, op: Op) -> None:
        a, b = op.operands
        if b.name in self.layouts:
            raise NotFusable("the product's right operand is computed before it, not read as weights")
        right = self.memory(b)
        attrs, n = op.attrs, op.results[0].type.dims[-1]
        if attrs.transpose_a or any(d != 1 for d in b.type.dims[:-2]):  # type: ignore[attr-defined]
            raise NotFusable("the product's left operand is transposed, or its weights differ between rows")
        if right.value.type.dtype is not b.type.dtype:
            raise NotFusable("the weights are widened before the product")
        *rows, k = self.layout(a)
        if min(n, a.type.dims[-1]) == 1:
            raise NotFusable("a product with a single column or a single summand")
        if len(op.results[0].type.dims) != len(rows) + 1:
            raise NotFusable("the weights have more axes than the rows")
        self._require_features(k)
        self._add(op, (*rows, self.atoms.new(n, row=False)), len(self.stages))
        self.stages.append(Stage(op, features=self.layouts[op.results[0].name][-1]))

    def _require_features(self, axis: Sequence[int]) -> None:
        if not axis or any(self.atoms.row[a] for a in self.atoms.leaves(axis)):
            raise NotFusable("an op sums over rows")

    def _reduction(self, op: Op) -> None:
        operand = op.operands[0]
        layout = self.layout(operand)
        if op_axes(op) != (len(layout) - 1,) or not op.attrs.keepdims:  # type: ignore[attr-defined]
            raise NotFusable("a reduction over rows")
        self._require_features(layout[-1])
        self._add(op, (*layout[:-1], ()), self._latest(op))

    def _elementwise(self, op: Op) -> None:
        shape = op.results[0].type.dims
        axes: list[tuple[int, ...]] = [()] * len(shape)
        for operand in op.operands:
            layout = self.layouts.get(operand.name, self.given.get(operand.name))
            if layout is not None:
                for i, atoms in enumerate(layout, len(shape) - len(layout)):
                    if axes[i] and atoms:
                        self.atoms.unify(axes[i], atoms)
                    axes[i] = axes[i] or atoms
        width = len(shape) - 1 if any(axes) else summed_axis(self.body, op.results[0])
        if shape and shape[width] != 1 and not axes[width]:
            axes[width] = self.atoms.new(shape[width], row=False)
        others = [i for i in range(len(shape)) if i != width]
        missing = [size if not axes[i] else 1 for i, size in enumerate(shape) if i != width]
        if max(missing, default=1) > 1:
            if any(axes[i] for i in others) and self.rows:
                raise NotFusable("a computed value is repeated over rows")
            for i, new in zip(others, self._row_atoms(missing), strict=True):
                axes[i] = axes[i] or new
        for operand in op.operands:
            if operand.name not in self.constants and operand.name not in self.layouts:
                self.memory(operand)
        self._add(op, tuple(axes), self._latest(op))

    def _latest(self, op: Op) -> int:
        return max((self.stage_of[self.source(v.name)] for v in op.operands if v.name in self.layouts), default=FREE)

    def _add(self, op: Op, layout: Layout, stage: int) -> None:
        result = op.results[0]
        self.layouts[result.name] = layout
        self.values[result.name] = result
        self.stage_of[result.name] = stage
        if op.name != "matmul" and stage != FREE:
            self.stages[stage].ops.append(op)

    def _readers(self, name: str) -> list[Op]:
        return [o for o in self.body.ops if any(self.source(v.name) == name for v in o.operands)]

    def _sink(self, order: Mapping[str, int]) -> None:
        """Move casts that only later stages read there: the narrower operand stays in l1 instead."""
        stored = {result.source for result in self.results()}
        for op in sorted((op for s in self.stages for op in s.ops), key=lambda op: -order[op.results[0].name]):
            name, narrow = op.results[0].name, op.operands[0].type.dtype
            if op.name != "cast" or name in stored or narrow.bits >= op.results[0].type.dtype.bits:
                continue
            readers = [o for o in self._readers(name) if o.results[0].name in self.stage_of]
            number = min((self.stage_of[o.results[0].name] for o in readers), default=0)
            mine = self.stage_of[name]
            if number > mine and not any(o.name == "matmul" for o in readers):
                self.stages[mine].ops.remove(op)
                self.stages[number].ops.append(op)
                self.stage_of[name] = number

    def settle(self) -> None:
        """Give ops without computed operands to the first stage that reads them, and sort every stage."""
        self._divide()
        order = {op.results[0].name: i for i, op in enumerate(self.body.ops)}
        for op in reversed(self.body.ops):
            name = op.results[0].name
            if self.stage_of.get(name) != FREE:
                continue
            settled = [o for o in self._readers(name) if o.results[0].name in self.stage_of]
            number = min((self.stage_of[o.results[0].name] - (o.name == "matmul") for o in settled), default=0)
            self.stage_of[name] = number
            self.stages[number].ops.append(op)
        self._sink(order)
        for stage in self.stages:
            stage.ops.sort(key=lambda op: order[op.results[0].name])
            for op in stage.ops if not stage.features else ():
                known = [self.layouts.get(v.name, self.given.get(v.name, ())) for v in (*op.operands, *op.results)]
                stage.features = stage.features or next(filter(None, map(self._feature_axis, known)), ())
            stage.features = self.atoms.leaves(stage.features)
            if stage.reduces and any(
                self.atoms.leaves(self.layout(op.operands[0])[-1]) != stage.features for op in stage.ops if op_axes(op)
            ):
                raise NotFusable("a reduction over part of the features")
        self.rows = self.atoms.leaves(self.rows)
        self._check_orders()
        for layout in (*self.layouts.values(), *self.given.values()):
            leaves = [leaf for axis in layout for leaf in self.atoms.leaves(axis)]
            if len(set(leaves)) < len(leaves):
                raise NotFusable("an op combines every row, or feature, with every other")

    def _feature_axis(self, layout: Layout) -> tuple[int, ...]:
        """The atoms of the last axis of features."""
        return next((axis for axis in reversed(layout) if axis and not self.atoms.row[axis[0]]), ())

    def _check_orders(self) -> None:
        """Raise NotFusable unless every reader of a value of an earlier stage takes its features in the order in which
        that stage computes them."""
        for number, stage in enumerate(self.stages):
            for op in stage.ops:
                for operand in op.operands:
                    source = self.source(operand.name)
                    before = self.stage_of.get(source, number)
                    held = [a for axis in self.layouts.get(operand.name, ()) for a in self.atoms.leaves(axis)]
                    if before < number and not all(self.atoms.row[a] for a in held):
                        self._require(self.stages[before].features == stage.features)
            if stage.product is None:
                continue
            left = stage.product.operands[0]
            *rows, summed = map(self.atoms.leaves, self.layout(left))
            self._require(all(self.atoms.row[a] for axis in rows for a in axis))
            if left.name in self.layouts:
                self._require(self.stages[self.stage_of[self.source(left.name)]].features == summed)

    @staticmethod
    def _require(same: bool) -> None:
        if not same:
            raise NotFusable("a product or an op takes features in another order than they are computed in")


def analyse_rows(body: Graph, head: Value | None = None, head_rows: Sequence[int] = ()) -> RowStages:
    """The stages of a body. `head` is a parameter that stage 0 computes in another way: it is in l1, and its axes
    `head_rows` are rows. Raises NotFusable."""
    params = tuple(p for p in body.params if p != head)
    found = RowStages(body, Resolver(Graph(body.name, params, body.results, body.ops)))
    found.stages.append(Stage(None))
    if head is not None:
        found.begin(head, head_rows)
    for op in body.ops:
        found.add(op)
    if len(found.stages) == 1:
        raise NotFusable("the group has no product")
    found.settle()
    return found

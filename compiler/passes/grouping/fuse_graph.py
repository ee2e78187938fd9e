"""Builds groups of ops: their bodies, the views they read through, copies, and the resulting graph.

Invariant: a view that a group cannot read through, or only slowly, is a copy in a group of its own or an alias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ppuc.compiler.lowering.kinds import check_group
from ppuc.compiler.lowering.tiling.body import CHAIN_KINDS, scalar_constant, unpacks, widens
from ppuc.compiler.passes.digraph import strong_components, topological_order
from ppuc.compiler.passes.memory.live_ranges import updated_operand
from ppuc.ir import views
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.targets.schema import Target

SMALL = 4096
"""Views with fewer elements are read through even if their rows are short."""


def is_view(op: Op) -> bool:
    """Whether the op is a view: it renames elements without moving them."""
    return OPS[op.name].kind is Kind.VIEW


class GroupedGraph:
    """A graph and the assignment of its ops to groups. `group_of` maps op positions to indices into `groups`."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.position = {op.results[0].name: i for i, op in enumerate(graph.ops)}
        self.users: dict[str, list[int]] = {}
        for i, op in enumerate(graph.ops):
            for name in dict.fromkeys(v.name for v in op.operands):
                self.users.setdefault(name, []).append(i)
        self.outputs = {v.name for v in graph.results}
        self.group_of: dict[int, int] = {}
        self.groups: list[list[int]] = []
        self._views: dict[str, tuple[Value, View | None]] = {}
        self._kinds: dict[int, tuple[Graph, str]] = {}
        self.apart: dict[int, tuple[str, ...]] = {}  # seed -> pads and views its group does not read through
        self.builder = Builder(all_names(graph))

    # -- membership ----------------------------------------------------------------------------------------------

    def _new_group(self, seed: int) -> int:
        """The number of a new group of op `seed`."""
        self.groups.append([seed])
        self._assign([seed], len(self.groups) - 1)
        return len(self.groups) - 1

    def _assign(self, ops: Sequence[int], number: int) -> None:
        """Record that ops are in a group."""
        self.group_of.update(dict.fromkeys(ops, number))
        self._forget_views(ops)

    def _release(self, i: int) -> int:
        """Record that an op is in no group any more; returns the group's number."""
        self._forget_views([i])
        return self.group_of.pop(i)

    def _forget_views(self, ops: Sequence[int]) -> None:
        if any(is_view(self.graph.ops[i]) for i in ops):
            self._views.clear()

    # -- bodies --------------------------------------------------------------------------------------------------

    def _needed(self, members: Sequence[int]) -> list[int]:
        """Members, the views that their operands are read through, and scalar constants."""
        wanted = set(members)
        apart = {what for i in members for what in self.apart.get(i, ())}
        stack = [(i, i) for i in members]
        while stack:
            i, reader = stack.pop()
            for operand in self.graph.ops[i].operands:
                source = self.position.get(operand.name)
                if source is None or source in wanted or source in self.group_of:
                    continue
                op = self.graph.ops[source]
                number = scalar_constant(op) is not None and self._on_chain(reader)
                view = "view" not in apart and is_view(op) and self._readable(op, self.graph.ops[reader])
                pad = "pad" not in apart and _foldable_pad(op) and self._on_chain(i)
                if number or view or pad or self._unpacked(op, self.graph.ops[reader]):
                    wanted.add(source)
                    stack.append((source, reader))
        return sorted(wanted)

    def _on_chain(self, i: int) -> bool:
        """Whether op `i` is elementwise, a reduction or a scan: ops that most kernels can contain."""
        return OPS[self.graph.ops[i].name].kind in CHAIN_KINDS

    def _readable(self, view_op: Op, reader: Op) -> bool:
        """Whether `reader` should read through `view_op`: it must be a strided view, and not one that gathers single
        elements of a large tensor."""
        _, view = self._view(view_op.results[0])
        if view is None:
            return False
        if reader.name == "scatter_nd":  # updates its data in place
            return self._is_alias(view_op)
        return not self._slow(view, reader)

    def _body(self, members: Sequence[int]) -> tuple[Graph, tuple[Value, ...]]:
        """The body graph of a group and its results. Parameters keep the outer values' names."""
        ops = [self.graph.ops[i] for i in self._needed(members)]
        defined = {r.name for op in ops for r in op.results}
        params: dict[str, Value] = {}
        for op in ops:
            for v in op.operands:
                if v.name not in defined:
                    params.setdefault(v.name, v)
        chosen = set(members)
        results = []
        for i in members:
            for r in self.graph.ops[i].results:
                if r.name in self.outputs or any(u not in chosen for u in self.users.get(r.name, ())):
                    results.append(r)
        return Graph("body", tuple(params.values()), tuple(results), tuple(ops)), tuple(results)

    def _kind(self, members: Sequence[int], body: Graph) -> str:
        """The kernel kind of `body`, which `members` form. Raises NotFusable. The last one of each group is kept."""
        number = next(self.group_of[i] for i in members if i in self.group_of)
        known = self._kinds.get(number)
        if known is None or known[0] != body:
            self._kinds[number] = known = (body, check_group(body, self.target))
        return known[1]

    def _unpacked(self, op: Op, reader: Op) -> bool:
        """Whether `reader` widens what it loads: constant weights of a product, floats of an elementwise op or a
        reduction."""
        if op.name == "unblock":
            return reader.name == "matmul" and op.results[0] == reader.operands[1]
        if op.name == "cast" and widens(op) and OPS[reader.name].kind in CHAIN_KINDS:
            return True
        source = self.position.get(op.operands[0].name, -1) if op.operands else -1
        constant = source >= 0 and self.graph.ops[source].name == "const"
        return reader.name == "matmul" and constant and unpacks(op) and op.results[0] == reader.operands[1]

    def cycle(self) -> list[int]:
        """Indices of groups that form a dependence cycle; [] if there is none."""
        following: dict[int, dict[int, None]] = {}
        nodes = [self.group_of.get(i, -1 - i) for i in range(len(self.graph.ops))]  # ops without a group are negative
        for i, op in enumerate(self.graph.ops):
            for source in (nodes[self.position[v.name]] for v in op.operands if v.name in self.position):
                if source != nodes[i]:
                    following.setdefault(source, {})[nodes[i]] = None
                    following.setdefault(nodes[i], {})
        knots = (found for found in strong_components(following) if len(found) > 1)
        return sorted(n for n in next(knots, ()) if n >= 0)

    # -- views that need a copy ----------------------------------------------------------------------------------

    def _copies(self) -> None:
        """Make a copy group for every view or pad that must be in memory and is not."""
        pending = [self.position[name] for name in self.outputs if name in self.position]
        for members in self.groups:
            pending += self._outside(members)
        while pending:
            i = pending.pop()
            op = self.graph.ops[i]
            if i in self.group_of or not (is_view(op) or op.name == "pad"):
                continue
            if is_view(op):
                self._ground(i, pending)
                if self._is_alias(op):
                    root, _ = self._view(op.results[0])
                    if root.name in self.position:
                        pending.append(self.position[root.name])
                    continue
            self._materialise(i, pending)

    def _ground(self, i: int, pending: list[int]) -> None:
        """Copy views on the way to view `i` until it is a strided view of memory."""
        path = [i]
        while self._view(self.graph.ops[path[-1]].results[0])[1] is None:
            path.append(self.position[self.graph.ops[path[-1]].operands[0].name])
        for source, reader in pairwise(reversed(path)):
            if self._view(self.graph.ops[reader].results[0])[1] is None:
                self._materialise(source, pending)

    def _materialise(self, i: int, pending: list[int]) -> None:
        if i in self.group_of or self.graph.ops[i].name == "const":
            return
        self._new_group(i)
        pending += self._outside([i])

    def _outside(self, members: Sequence[int]) -> list[int]:
        """Positions of the ops that define the group's parameters."""
        body, _ = self._body(members)
        return [self.position[p.name] for p in body.params if p.name in self.position]

    def _view(self, value: Value) -> tuple[Value, View | None]:
        """The value in memory that `value` is a view of, and the view (None if it is not strided)."""
        path: list[Op] = []
        while value.name not in self._views:
            i = self.position.get(value.name)
            if i is None or i in self.group_of or not is_view(self.graph.ops[i]):
                break
            path.append(self.graph.ops[i])
            value = self.graph.ops[i].operands[0]
        root, view = self._views.get(value.name) or (value, View.contiguous(value.type.dims))
        for op in reversed(path):
            view = None if view is None else views.apply(op, view)
            self._views[op.results[0].name] = root, view
        return root, view

    def _slow(self, view: View, reader: Op) -> bool:
        merged = views.coalesced(view)
        if merged.elements < SMALL or not merged.shape or merged.strides[-1] in (0, 1):
            return False
        if is_view(reader) or reader.name == "concat":  # which would only be copied, too
            return False
        return not (reader.name in ("matmul", "attention") and 1 in merged.strides[-2:])

    # -- the new graph -------------------------------------------------------------------------------------------

    def _assemble(self) -> Graph:
        """The top-level ops (constants, aliases and groups) in dependence order."""
        top: dict[str, str] = {}  # value -> node that defines it
        nodes: dict[str, tuple[tuple[Value, ...], Op]] = {}
        for number, members in enumerate(self.groups):
            op = self._group_op(members)
            node = f"g{number}"
            nodes[node] = (op.operands, op)
            for r in op.results:
                top[r.name] = node
        for i, op in enumerate(self.graph.ops):
            if i in self.group_of:
                continue
            if op.name == "const" or (is_view(op) and self._is_alias(op)):
                nodes[f"o{i}"] = (op.operands, self._alias(op) if is_view(op) else op)
                top[op.results[0].name] = f"o{i}"
        following: dict[str, dict[str, None]] = {key: {} for key in nodes}
        for key, (operands, _) in nodes.items():
            for v in operands:
                if v.name in top:
                    following[top[v.name]][key] = None
        at = {key: min(self.position[r.name] for r in op.results) for key, (_, op) in nodes.items()}
        ops = tuple(nodes[key][1] for key in topological_order(following, lambda key: (at[key], key)))
        graph = Graph(self.graph.name, self.graph.params, self.graph.results, ops)
        graph = _with_scatter_copies(graph, self.builder, self.target)
        return _prune(_with_output_copies(graph, self.builder, self.target))

    def _is_alias(self, op: Op) -> bool:
        """Whether a view covers all elements of a value in memory, in order."""
        root, view = self._view(op.results[0])
        if view is None or root.type.elements != view.elements:
            return False
        return view.elements == 0 or views.coalesced(view) == views.coalesced(View.contiguous(view.shape))

    def _alias(self, op: Op) -> Op:
        root, _ = self._view(op.results[0])
        return Op("reshape", ReshapeAttrs(op.results[0].type.dims), (root,), op.results, op.loc)

    def _group_op(self, members: Sequence[int]) -> Op:
        body, results = self._body(members)
        inner = {v.name: Value(self.builder.fresh(f"{v.name}.in"), v.type) for v in body.params}
        rename = {r.name: Value(self.builder.fresh(f"{r.name}.out"), r.type) for r in results}
        names = {**inner, **rename}
        for op in body.ops:
            for r in op.results:
                if r.name not in names:
                    names[r.name] = Value(self.builder.fresh(f"{r.name}.of"), r.type)
        ops = tuple(
            Op(
                op.name,
                op.attrs,
                tuple(names[v.name] for v in op.operands),
                tuple(names[r.name] for r in op.results),
                op.loc,
            )
            for op in body.ops
        )
        renamed = Graph("body", tuple(names[p.name] for p in body.params), tuple(names[r.name] for r in results), ops)
        anchored = sorted(members, key=self._on_chain)  # the anchor's names come first
        locs = dict.fromkeys(name for i in anchored for name in self.graph.ops[i].loc)
        return Op("group", GroupAttrs(self._kind(members, body)), body.params, results, tuple(locs), renamed)


def _foldable_pad(op: Op) -> bool:
    if op.name != "pad":
        return False
    attrs = op.attrs
    return attrs.mode == "constant" and not any(attrs.interior) and min((*attrs.low, *attrs.high), default=0) >= 0  # type: ignore[attr-defined]


def _prune(graph: Graph) -> Graph:
    """Drop constants and aliases that nothing reads."""
    live = {v.name for v in graph.results}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.name == "group" or any(r.name in live for r in op.results):
            kept.append(op)
            live.update(v.name for v in op.operands)
    return graph.with_ops(reversed(kept))


def _copy_group(value: Value, builder: Builder, loc: tuple[str, ...], target: Target) -> Op:
    """A group that copies `value`."""
    inner = Value(builder.fresh(f"{value.name}.in"), value.type)
    out = Value(builder.fresh(f"{value.name}.out"), value.type)
    copy = Op("reshape", ReshapeAttrs(value.type.dims), (inner,), (out,))
    body = Graph("body", (inner,), (out,), (copy,))
    result = Value(builder.fresh(f"{value.name}.copy"), value.type)
    return Op("group", GroupAttrs(check_group(body, target)), (value,), (result,), loc, body)


def _with_scatter_copies(graph: Graph, builder: Builder, target: Target) -> Graph:
    """Copy the data of every scatter, which updates it in place."""
    ops: list[Op] = []
    for op in graph.ops:
        position = updated_operand(op)
        if position is not None:
            copy = _copy_group(op.operands[position], builder, op.loc, target)
            ops.append(copy)
            operands = (*op.operands[:position], copy.result, *op.operands[position + 1 :])
            op = replace(op, operands=operands)
        ops.append(op)
    return graph.with_ops(ops)


def _with_output_copies(graph: Graph, builder: Builder, target: Target) -> Graph:
    """Copy every graph result that is a parameter, a constant or an alias of one."""
    fixed = {p.name for p in graph.params} | {r.name for op in graph.ops if op.name == "const" for r in op.results}
    for op in graph.ops:
        if op.name == "reshape" and op.operands[0].name in fixed:
            fixed.add(op.results[0].name)
    ops, results = list(graph.ops), []
    made: dict[str, Value] = {}
    for value in graph.results:
        if value.name in fixed and value.name not in made:
            ops.append(_copy_group(value, builder, (), target))
            made[value.name] = ops[-1].result
        results.append(made.get(value.name, value))
    return Graph(graph.name, graph.params, tuple(results), tuple(ops))

"""Groups ops into kernels.

A group is grown from an op along the graph: an op that follows joins when the body still fits one kernel (lowering's
own analysis decides) and no path leaves the group and comes back. Anchors (matmul, conv, pool, attention) take their
epilogue first; what is left forms row-wise and elementwise groups; data movement stands alone. Views between groups
cost nothing: each group reads its operands through them, or stores through them; where that is impossible or slow they
become a copy.

Invariants afterwards: every top-level op is a constant, a group, or a reshape of memory that needs no copy (an alias);
each group's body has the constants of one element inside and everything else as parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx

from ppuc.compiler.lowering.body import CHAIN_KINDS, NotFusable, scalar_constant, unpacks
from ppuc.compiler.lowering.kinds import check_group, kind_of
from ppuc.compiler.lowering.memory import updated_operand
from ppuc.compiler.lowering.reuse import Lowered
from ppuc.compiler.passes.graph_walk import with_graph
from ppuc.ir import views
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.targets.schema import Target

SMALL = 4096
"""Elements below which a strided view is read as it is, however slow its rows are."""


@dataclass(frozen=True, slots=True)
class Fuse:
    """Group ops into kernels: anchors with their epilogues, row-wise chains, moves.

    %1 = matmul(%x, %w); %2 = add(%1, %b); %3 = relu(%2)
        ->  %3 = group(%x, %w, %b) {kind = "matmul"} { %1 = matmul ...; %2 = add ...; %3 = relu ... }
    """

    epilogues: bool = True
    name: ClassVar[str] = "fuse"

    def run(self, module: Module, target: Target) -> Module:
        """The module with its graph grouped."""
        return with_graph(module, Grouping(module.graph, target, self.epilogues).build())


def is_view(op: Op) -> bool:
    """Whether the op only renames elements."""
    return OPS[op.name].kind is Kind.VIEW


class Grouping:
    """One walk over a graph that assigns every computing op to a group."""

    def __init__(self, graph: Graph, target: Target, epilogues: bool) -> None:
        self.graph, self.target, self.epilogues = graph, target, epilogues
        self.position = {op.results[0].name: i for i, op in enumerate(graph.ops)}
        self.users: dict[str, list[int]] = {}
        for i, op in enumerate(graph.ops):
            for name in {v.name for v in op.operands}:
                self.users.setdefault(name, []).append(i)
        self.outputs = {v.name for v in graph.results}
        self.group_of: dict[int, int] = {}
        self.groups: list[list[int]] = []
        self.refused: dict[tuple[int, int], str] = {}
        """(group, op) -> why the op, which reads what the group computes, is not part of it."""
        self.brought: dict[int, list[int]] = {}
        """Op of a group -> the producers that joined because of it."""
        self.apart: dict[int, tuple[str, ...]] = {}  # seed -> what its group reads as it is in memory: pads, views
        self.builder = Builder(all_names(graph))
        self.lowered = Lowered(target)

    # -- growing -------------------------------------------------------------------------------------------------

    def build(self) -> Graph:
        """The grouped graph."""
        for i, op in enumerate(self.graph.ops):
            if kind_of(op) not in ("map", "copy", "const", "view"):
                self._grow(i)
        for i, op in enumerate(self.graph.ops):
            if kind_of(op) == "map" and i not in self.group_of and not self._read_through(i):
                self._grow(i)
        for i, op in enumerate(self.graph.ops):
            if op.name == "insert" and i not in self.group_of:
                self.group_of[i] = len(self.groups)
                self.groups.append([i])
        self._copies()
        return self._assemble()

    def _grow(self, seed: int) -> None:
        """Make a group of `seed` and whatever may join it."""
        members = [seed]
        number = len(self.groups)
        self.groups.append(members)
        self.group_of[seed] = number
        self._read_apart(seed, self._check)
        if kind_of(self.graph.ops[seed]) not in ("gather", "scatter", "concat") and self.epilogues:
            self._extend(members, number)
        self._shed(members)
        while len(members) > 1 and (why_not := self._misfit(members)):
            dropped = members.pop()  # no other member reads what the last op computes
            self.refused[self.group_of.pop(dropped), dropped] = why_not
            for i in self.brought.pop(dropped, ()):
                members.remove(i)
                del self.group_of[i]
        if len(members) == 1 and len(self._needed(members)) > 1:
            self._read_apart(seed, self._misfit)

    def _read_apart(self, seed: int, obstacle: Callable[[Sequence[int]], str]) -> None:
        """Take pads, then views as well, out of what the group reads through, until nothing is in the way of a group of
        `seed` alone."""
        for apart in ((), ("pad",), ("pad", "view")):
            if len(apart) >= len(self.apart.get(seed, ())):
                self.apart[seed] = apart
                if not obstacle([seed]):
                    return

    def _shed(self, members: list[int]) -> None:
        """Leave out ops whose results only others read, when what they are computed from is stored anyway: the readers
        can compute them from that, and one tensor less is written."""
        while True:
            _, results = self._body(members)
            stored = {r.name for r in results}
            spare = [
                i
                for i in members[1:]
                if all(r.name in stored and r.name not in self.outputs for r in self.graph.ops[i].results)
                and OPS[self.graph.ops[i].name].kind is Kind.ELEMENTWISE
                and all(v.name in stored for v in self.graph.ops[i].operands if self._inside(v, members))
                and not self._read_inside(i, members)
            ]
            if not spare:
                return
            for i in spare:
                members.remove(i)
                self.refused[self.group_of.pop(i), i] = "its readers can compute it from what is stored anyway"

    def _inside(self, value: Value, members: Sequence[int]) -> bool:
        return self.position.get(value.name) in members

    def _read_inside(self, i: int, members: Sequence[int]) -> bool:
        return any(u in members for r in self.graph.ops[i].results for u in self.users.get(r.name, ()))

    def _misfit(self, members: Sequence[int]) -> str:
        """Why no kernel of the group can be built within the machine's memories; "" when one can."""
        body, _ = self._body(members)
        tensors = {v.name: v.name for v in (*body.params, *body.results)}
        try:
            self.lowered.kernel(check_group(body, self.target), "kernel", body, tensors, ())
        except NotFusable as error:
            return str(error)
        return ""

    def _extend(self, members: list[int], number: int) -> None:
        """Try every later op that reads the group, in order; one that fails taints what depends on it."""
        tainted: set[str] = set()
        inside = {r.name for i in members for r in self.graph.ops[i].results}
        frontier = sorted({u for name in inside for u in self.users.get(name, ())})
        seen: set[int] = set()
        while frontier:
            i = frontier.pop(0)
            if i in seen:
                continue
            seen.add(i)
            op = self.graph.ops[i]
            why_not, joined = self._obstacle(i, inside, tainted), [i]
            if not why_not:
                joined = [*self._own_producers(i, inside | tainted), i]
                why_not = self._join(members, joined)
                if why_not and len(joined) > 1:
                    joined = [i]
                    why_not = self._join(members, joined)
            names = [r.name for r in op.results]
            if why_not:
                self.refused[number, i] = why_not
                tainted.update(names)
            else:
                self.group_of.update(dict.fromkeys(joined, number))
                self.brought[i] = joined[:-1]
                inside.update(r.name for j in joined for r in self.graph.ops[j].results)
            if len(seen) > 256:
                break
            later = {u for name in names for u in self.users.get(name, ())}
            frontier = sorted(set(frontier) | {u for u in later if u not in seen})

    def _obstacle(self, i: int, inside: set[str], tainted: set[str]) -> str:
        """What keeps an op out of a group whatever a kernel could do; "" when nothing does."""
        op = self.graph.ops[i]
        if op.name == "insert":
            return self._not_stored_inside(i, inside)
        if not is_view(op) and OPS[op.name].kind not in CHAIN_KINDS:
            return f"'{op.name}' starts a kernel of its own"
        if i in self.group_of:
            return f"'{op.name}' is in another kernel already"
        if is_view(op) and (op.name not in ("reshape", "transpose") or not self._worth_storing(op)):
            return f"'{op.name}' is a view, which its readers read through"
        if any(self._inserted(v) for v in op.operands):
            return f"'{op.name}' reads memory that an insert changes"
        if any(v.name in tainted for v in op.operands):
            return "another operand depends on the kernel's results: the kernel would wait for itself"
        if not any(v.name in inside for v in op.operands):
            return f"'{op.name}' reads the kernel's results through ops that are not part of it"
        return ""

    def _unpacked(self, op: Op, reader: Op) -> bool:
        """Whether `reader` widens constant weights as it loads them."""
        source = self.position.get(op.operands[0].name, -1) if op.operands else -1
        constant = source >= 0 and self.graph.ops[source].name == "const"
        return reader.name == "matmul" and constant and unpacks(op) and op.results[0] == reader.operands[1]

    def _read_through(self, i: int) -> bool:
        """Whether all that read op `i` widen it themselves."""
        name = self.graph.ops[i].results[0].name
        readers = [self.graph.ops[u] for u in self.users.get(name, ())]
        return name not in self.outputs and all(self._unpacked(self.graph.ops[i], r) for r in readers)

    def _worth_storing(self, op: Op) -> bool:
        """A view joins its producer when nothing else needs the producer's own shape."""
        source = op.operands[0]
        return len(self.users.get(source.name, ())) == 1 and source.name not in self.outputs

    def _inserted(self, value: Value) -> bool:
        """Whether `value` is memory of which a part was replaced."""
        source = self.position.get(value.name)
        return source is not None and self.graph.ops[source].name == "insert"

    def _not_stored_inside(self, i: int, inside: set[str]) -> str:
        """Why the group cannot store its result as the part of insert `i`."""
        base, part = self.graph.ops[i].operands
        if i in self.group_of:
            return "'insert' is in another kernel already"
        if base.name in inside or part.name not in inside or self.users[part.name] != [i] or part.name in self.outputs:
            return "'insert' needs memory that holds what it inserts into, and a part that nothing else reads"
        return ""

    def _own_producers(self, i: int, reached: set[str]) -> list[int]:
        """Elementwise ops without a group, not reached from this one, that only op `i` or each other read, and that
        compute as many elements as it does: the other branches of what ends in `i`."""
        found: list[int] = []
        stack, elements = [i], self.graph.ops[i].results[0].type.elements
        while stack:
            reader = stack.pop()
            for v in self.graph.ops[reader].operands:
                source = self.position.get(v.name)
                if source is None or source in self.group_of or v.name in reached or v.name in self.outputs:
                    continue
                mine = kind_of(self.graph.ops[source]) == "map" and self.users[v.name] == [reader]
                if mine and OPS[self.graph.ops[source].name].kind is Kind.ELEMENTWISE and v.type.elements == elements:
                    found.append(source)
                    stack.append(source)
        return sorted(found)

    def _join(self, members: list[int], joined: Sequence[int]) -> str:
        """Add ops to a group; why that cannot be, or ""."""
        members += joined
        members.sort()
        why_not = self._check(members)
        if why_not:
            for i in joined:
                members.remove(i)
        return why_not

    def _check(self, members: Sequence[int]) -> str:
        """Why the ops do not form one kernel, whatever its tiles; "" when they do."""
        body, _ = self._body(members)
        try:
            check_group(body, self.target)
        except NotFusable as error:
            return str(error)
        return ""

    # -- bodies --------------------------------------------------------------------------------------------------

    def _needed(self, members: Sequence[int]) -> list[int]:
        """Members, the views through which their operands are read, and scalar constants."""
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
                on_chain = OPS[self.graph.ops[reader].name].kind in CHAIN_KINDS
                number = scalar_constant(op) is not None and on_chain
                view = "view" not in apart and is_view(op) and self._readable(op, self.graph.ops[reader])
                pad = "pad" not in apart and _foldable_pad(op) and OPS[self.graph.ops[i].name].kind in CHAIN_KINDS
                if number or view or pad or self._unpacked(op, self.graph.ops[reader]):
                    wanted.add(source)
                    stack.append((source, reader))
        return sorted(wanted)

    def _readable(self, view_op: Op, reader: Op) -> bool:
        """Whether `reader` should read through `view_op`: a strided view expresses it and its rows are not single
        elements of a large tensor."""
        _, view = self._view(view_op.results[0])
        if view is None:
            return False
        if reader.name == "scatter_nd":  # updates its data in place
            return self._is_alias(view_op)
        return not self._slow(view, reader)

    def _body(self, members: Sequence[int]) -> tuple[Graph, tuple[Value, ...]]:
        """The body graph of a group, and its results. Its parameters carry the outer names."""
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

    # -- views that need a copy ----------------------------------------------------------------------------------

    def _copies(self) -> None:
        """Give a group of its own to every view or pad that is needed in memory and is not there yet."""
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
        """Copy as many of the views that lead to view `i` as it takes to make it a strided view of memory."""
        op = self.graph.ops[i]
        if self._view(op.results[0])[1] is not None:
            return
        source = self.position[op.operands[0].name]
        self._ground(source, pending)
        if self._view(op.results[0])[1] is None:
            self._materialise(source, pending)

    def _materialise(self, i: int, pending: list[int]) -> None:
        if i in self.group_of or self.graph.ops[i].name == "const":
            return
        self.group_of[i] = len(self.groups)
        self.groups.append([i])
        pending += self._outside([i])

    def _outside(self, members: Sequence[int]) -> list[int]:
        """Positions of the ops whose results the group reads as parameters."""
        body, _ = self._body(members)
        return [self.position[p.name] for p in body.params if p.name in self.position]

    def _view(self, value: Value) -> tuple[Value, View | None]:
        """The value in memory that `value` is a view of, and the view (None: not expressible)."""
        i = self.position.get(value.name)
        if i is None or i in self.group_of or not is_view(self.graph.ops[i]):
            return value, View.contiguous(value.type.dims)
        op = self.graph.ops[i]
        root, view = self._view(op.operands[0])
        return root, None if view is None else views.apply(op, view)

    def _slow(self, view: View, reader: Op) -> bool:
        merged = views.coalesced(view)
        if merged.elements < SMALL or not merged.shape or merged.strides[-1] in (0, 1):
            return False
        if is_view(reader):
            return False
        return not (reader.name in ("matmul", "attention") and 1 in merged.strides[-2:])

    # -- the new graph -------------------------------------------------------------------------------------------

    def _assemble(self) -> Graph:
        """Top-level ops: constants, aliases and groups, ordered by their dependences."""
        order = nx.DiGraph()
        ops: list[Op] = []
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
        for key, (_, op) in nodes.items():
            order.add_node(key, at=min(self.position[r.name] for r in op.results))
            for v in op.operands:
                if v.name in top:
                    order.add_edge(top[v.name], key)
        for key in nx.lexicographical_topological_sort(order, key=lambda k: (order.nodes[k]["at"], k)):
            ops.append(nodes[key][1])
        graph = Graph(self.graph.name, self.graph.params, self.graph.results, tuple(ops))
        return _prune(_with_output_copies(_with_scatter_copies(graph, self.builder), self.builder))

    def _is_alias(self, op: Op) -> bool:
        """Whether a view's elements are all those of some value in memory, in order."""
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
        anchored = sorted(members, key=lambda i: kind_of(self.graph.ops[i]) == "map")  # the anchor's names come first
        locs = dict.fromkeys(name for i in anchored for name in self.graph.ops[i].loc)
        kind = check_group(renamed, self.target)
        return Op("group", GroupAttrs(kind), body.params, results, tuple(locs), renamed)


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


def _copy_group(value: Value, builder: Builder, loc: tuple[str, ...]) -> Op:
    """A group that copies `value`."""
    inner = Value(builder.fresh(f"{value.name}.in"), value.type)
    out = Value(builder.fresh(f"{value.name}.out"), value.type)
    copy = Op("reshape", ReshapeAttrs(value.type.dims), (inner,), (out,))
    body = Graph("body", (inner,), (out,), (copy,))
    result = Value(builder.fresh(f"{value.name}.copy"), value.type)
    return Op("group", GroupAttrs("copy"), (value,), (result,), loc, body)


def _with_scatter_copies(graph: Graph, builder: Builder) -> Graph:
    """A scatter updates its data in place, so it gets data of its own."""
    ops: list[Op] = []
    for op in graph.ops:
        position = updated_operand(op)
        if position is not None:
            copy = _copy_group(op.operands[position], builder, op.loc)
            ops.append(copy)
            operands = (*op.operands[:position], copy.result, *op.operands[position + 1 :])
            op = replace(op, operands=operands)
        ops.append(op)
    return graph.with_ops(ops)


def _with_output_copies(graph: Graph, builder: Builder) -> Graph:
    """Results that are parameters, constants or aliases of those get memory of their own by a copy."""
    fixed = {p.name for p in graph.params} | {r.name for op in graph.ops if op.name == "const" for r in op.results}
    for op in graph.ops:
        if op.name == "reshape" and op.operands[0].name in fixed:
            fixed.add(op.results[0].name)
    ops, results = list(graph.ops), []
    made: dict[str, Value] = {}
    for value in graph.results:
        if value.name in fixed and value.name not in made:
            ops.append(_copy_group(value, builder, ()))
            made[value.name] = ops[-1].result
        results.append(made.get(value.name, value))
    return Graph(graph.name, graph.params, tuple(results), tuple(ops))

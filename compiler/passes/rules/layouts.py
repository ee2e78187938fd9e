"""Layout assignment: propagates channels-last forms and chooses among them by minimum cut.

A transpose is not an op here but a way to read the tensor before it, its *root*: a reader of transpose(v, q) in perm p
reads v in perm q o p. What remains is values with one storing op and some reading ops. Convolutions and pools read and
store channels last; from them, forms propagate along the graph to every op that can run in one. Each such op then
either takes its form or stays as it is. Reading a value in a perm other than its stored one costs its size, once for
all readers that agree. The cheapest choice is a minimum cut, computed per connected component; components whose
neighbours agree need none.

Invariant: choices affect only cost. Any choice is correct, because the layout pass transposes where perms differ."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ppuc.compiler.passes.digraph import Flow, strong_components
from ppuc.compiler.passes.rules.permutations import (
    Form,
    Perm,
    channels_last,
    compose,
    form_from_operand,
    form_of_result,
    identity,
    inverse,
    same_bytes,
    swapped,
)
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.view import TransposeAttrs


def is_channels_first(op: Op) -> bool:
    """Whether `op` is a convolution or pool in channels-first form."""
    return op.name in ("conv", "pool") and op.attrs.layout == "nchw"  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Read:
    """Operand `index` of op `reader` (None: a graph result) is transpose(root, perm)."""

    reader: Op | None
    index: int
    perm: Perm


@dataclass(slots=True)
class Reads:
    """Roots of all values and their readers. `constant` names values that depend on constants alone, whose layout is
    free at run time. `flattened` names reshapes that merge all but some leading dimensions for a matmul with constant
    weights: the rows of the weights can be permuted instead of the merged dimensions."""

    root: dict[str, tuple[Value, Perm]] = field(default_factory=dict)
    readers: dict[str, list[Read]] = field(default_factory=dict)
    producer: dict[str, Op] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    flattened: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Reads:
        reads = cls()
        for param in graph.params:
            reads._add_root(param)
        for op in graph.ops:
            if isinstance(op.attrs, TransposeAttrs):
                value, perm = reads.root[op.operands[0].name]
                reads.root[op.result.name] = value, compose(perm, op.attrs.perm)
                continue
            for index, operand in enumerate(op.operands):
                value, perm = reads.root[operand.name]
                reads.readers[value.name].append(Read(op, index, perm))
            for result in op.results:
                reads._add_root(result)
                reads.producer[result.name] = op
                if all(reads.root[v.name][0].name in reads.constant for v in op.operands):
                    reads.constant.add(result.name)
        for result in graph.results:
            value, perm = reads.root[result.name]
            reads.readers[value.name].append(Read(None, 0, perm))
        for op in graph.ops:
            reads._note_flattening(op)
        return reads

    def _note_flattening(self, op: Op) -> None:
        if op.attrs != MatmulAttrs() or op.operands[1].name not in self.constant or op.operands[1].type.rank != 2:
            return
        flat = self.producer.get(op.operands[0].name)
        if flat is None or flat.name != "reshape" or len(self.readers[flat.result.name]) != 1:
            return
        dims, depth = flat.operands[0].type.dims, op.operands[0].type.dims[-1]
        lead = next((i for i in range(len(dims)) if math.prod(dims[i:]) == depth), None)
        if lead is not None:
            self.flattened[flat.result.name] = lead

    def _add_root(self, value: Value) -> None:
        self.root[value.name] = value, identity(value.type.rank)
        self.readers[value.name] = []


def spread_forms(graph: Graph, reads: Reads, upward: bool) -> dict[str, Form]:
    """Result name -> the form its op could take. Forms propagate in both directions, first from convolutions and pools,
    then from transposes, which offer to their producers first (`upward`) or to their consumers first. The first offer
    decides, even if it keeps the op as it is; only changed forms are returned."""
    forms: dict[str, Form] = {}
    seen: set[tuple[str, Perm]] = set()
    windows = [op for op in graph.ops if is_channels_first(op)]
    _spread(reads, forms, seen, [_rooted(reads, op.operands[0], channels_last(op.result.type.rank)) for op in windows])
    _spread(reads, forms, seen, [(op.result, channels_last(op.result.type.rank)) for op in windows])
    turns = [reads.root[op.result.name] for op in graph.ops if isinstance(op.attrs, TransposeAttrs)]
    above, below = turns, [(value, identity(len(perm))) for value, perm in turns]
    for offers in (above, below) if upward else (below, above):
        for offer in offers:
            _spread(reads, forms, seen, [offer])
    return {name: form for name, form in forms.items() if not _is_plain(form)}


def _is_plain(form: Form) -> bool:
    return all(perm is None or perm == identity(len(perm)) for perm in (*form.operands, form.result))


def _spread(
    reads: Reads, forms: dict[str, Form], seen: set[tuple[str, Perm]], offers: Iterable[tuple[Value, Perm]]
) -> None:
    """Offer a perm for a value to its storing op and its readers, transitively; through transposes last."""
    near, far = deque(offers), deque[tuple[Value, Perm]]()
    while near or far:
        value, perm = near.popleft() if near else far.popleft()
        if (value.name, perm) in seen:
            continue
        seen.add((value.name, perm))
        _offer_to_producer(reads, forms, value, perm, near)
        for read in reads.readers[value.name]:
            _offer_to_reader(reads, forms, read, perm, near if read.perm == identity(len(perm)) else far)


def _rooted(reads: Reads, value: Value, perm: Perm) -> tuple[Value, Perm]:
    root, through = reads.root[value.name]
    return root, compose(through, perm)


def _offer_to_producer(
    reads: Reads, forms: dict[str, Form], value: Value, perm: Perm, queue: deque[tuple[Value, Perm]]
) -> None:
    op = reads.producer.get(value.name)
    if op is None or value.name in forms or is_channels_first(op):
        return
    if (form := form_of_result(op, perm)) is not None:
        _take(reads, forms, op, form, queue)


def _offer_to_reader(
    reads: Reads, forms: dict[str, Form], read: Read, perm: Perm, queue: deque[tuple[Value, Perm]]
) -> None:
    op = read.reader
    if op is None or len(op.results) != 1 or op.result.name in forms or is_channels_first(op) or op.body is not None:
        return
    form = form_from_operand(op, read.index, compose(inverse(read.perm), perm))
    if form is not None:
        _take(reads, forms, op, form, queue)


def _take(reads: Reads, forms: dict[str, Form], op: Op, form: Form, queue: deque[tuple[Value, Perm]]) -> None:
    forms[op.result.name] = form
    queue.append((op.result, form.result))
    for operand, perm in zip(op.operands, form.operands, strict=True):
        if perm is not None and operand.type.rank == len(perm):
            queue.append(_rooted(reads, operand, perm))


Table = tuple[tuple[int, int], tuple[int, int]]
"""cost[stored in form][read in form]."""
_TRANSPOSE = 64
"""Cost of an element that is transposed, in units of a reshape that moves none: reshapes only decide between equals."""


@dataclass(frozen=True, slots=True)
class _Edge:
    """A root with the choices of its storing op and of a reader; None stands for an op without a choice."""

    value: Value
    storing: str | None
    reading: str | None
    table: Table


def choose(graph: Graph, reads: Reads) -> dict[str, Form]:
    """Result name -> form, for the ops that should take theirs."""
    best: dict[str, Form] = {}
    if not (least := _total(reads, best)):
        return best
    tried: dict[str, Form] = {}
    for upward in (False, True):
        forms = spread_forms(graph, reads, upward)
        if forms == tried:  # without transposes, both directions offer the same
            continue
        tried = forms
        edges = [edge for name in reads.readers for edge in _edges(reads, forms, name)]
        chosen = {name: forms[name] for part in _parts(edges, forms) for name in _cut(part)}
        if (total := _total(reads, chosen)) < least:
            best, least = chosen, total
    return best


def _total(reads: Reads, chosen: dict[str, Form]) -> int:
    """Cost of the graph if exactly the ops in `chosen` take their forms: one copy per value and perm it is read in."""
    total = 0
    for name in reads.readers:
        if name in reads.constant:
            continue
        value = reads.root[name][0]
        stored = _stored(reads, chosen, name)[1]
        copies: dict[Perm, int] = {}
        for read in reads.readers[name]:
            costs = {perm: _cost(reads, value, read, stored, perm) for perm in _wanted(read, chosen)[1]}
            perm = min(costs, key=lambda p: costs[p])
            copies[perm] = max(copies.get(perm, 0), costs[perm])
        total += sum(copies.values())
    return total


def _stored(reads: Reads, forms: dict[str, Form], name: str) -> tuple[Perm, Perm]:
    """The perms in which a root is stored when its op stays as it is, and when it takes its form."""
    plain = reads.root[name][1]
    op, form = reads.producer.get(name), forms.get(name)
    if op is not None and is_channels_first(op):
        return (channels_last(len(plain)),) * 2
    return plain, form.result if form is not None else plain


def _edges(reads: Reads, forms: dict[str, Form], name: str) -> Iterator[_Edge]:
    """The edges of one root that can have a cost."""
    value = reads.root[name][0]
    if name in reads.constant:
        return
    form, stored = forms.get(name), _stored(reads, forms, name)
    for read in reads.readers[name]:
        wanted = _wanted(read, forms)
        table: Table = tuple(  # type: ignore[assignment]
            tuple(min(_cost(reads, value, read, s, w) for w in choices) for choices in wanted) for s in stored
        )
        if any(any(row) for row in table):
            reading = read.reader.results[0].name if read.reader is not None else ""
            yield _Edge(value, name if form else None, reading if reading in forms else None, table)


def _cost(reads: Reads, value: Value, read: Read, stored: Perm, wanted: Perm) -> int:
    """Cost of reading a value in perm `wanted` that is stored in perm `stored`."""
    reshape = read.reader.result.name if read.reader is not None and read.reader.name == "reshape" else None
    if same_bytes(value.type.dims, stored, wanted):
        # A reshape is indifferent to the positions of dimensions of size one.
        return 0 if stored == wanted or reshape is not None else 1
    lead = None if reshape is None else reads.flattened.get(reshape)
    if lead is not None and stored[:lead] == wanted[:lead]:
        return 1
    return _TRANSPOSE * (value.type.elements + 1)


def _wanted(read: Read, forms: dict[str, Form]) -> tuple[tuple[Perm, ...], tuple[Perm, ...]]:
    """The perms of the root that a reader accepts without and with its form."""
    op = read.reader
    plain: tuple[Perm, ...] = (read.perm,)
    if op is None:
        return plain, plain
    rank = len(read.perm)
    if is_channels_first(op):
        last = (compose(read.perm, channels_last(rank)),) if read.index == 0 else plain
        return last, last
    if op.name == "matmul":
        plain = (read.perm, compose(read.perm, swapped(rank)))
    form = forms.get(op.results[0].name)
    perm = form.operands[read.index] if form is not None else None
    if perm is None:
        return plain, plain
    # An operand of lower rank is broadcast against the others: it is permuted separately, at the cost of its few bytes.
    return plain, (compose(read.perm, perm),) if len(perm) == rank else plain


def _parts(edges: Iterable[_Edge], forms: dict[str, Form]) -> Iterator[list[_Edge]]:
    """Edges grouped into components connected by choices; components without a choice are left out."""
    links: dict[str, list[str]] = {name: [] for name in forms}
    where: list[tuple[str, _Edge]] = []
    last: dict[str, str] = {}
    for edge in edges:
        ends = [end for end in (edge.storing, edge.reading) if end is not None]
        if not ends:
            continue
        _link(links, ends[0], ends[-1])
        # Readers of one value share the cost of a copy, so their choices belong together.
        if edge.reading is not None:
            _link(links, last.setdefault(edge.value.name, edge.reading), edge.reading)
        where.append((ends[0], edge))
    part_of = {name: i for i, part in enumerate(strong_components(links)) for name in part}
    parts: dict[int, list[_Edge]] = {}
    for end, edge in where:
        parts.setdefault(part_of[end], []).append(edge)
    yield from parts.values()


def _link(links: dict[str, list[str]], one: str, other: str) -> None:
    links[one].append(other)
    links[other].append(one)


_FORM, _STAY = ("form",), ("stay",)


def _cut(edges: list[_Edge]) -> set[str]:
    """The cheapest choices of one component: ops on the source side of a minimum cut take their forms."""
    flow = Flow()
    groups: dict[tuple[str, str | None, Table, bool], list[_Edge]] = {}
    for edge in edges:
        groups.setdefault((edge.value.name, edge.storing, edge.table, edge.reading is None), []).append(edge)
    for group in groups.values():
        first = group[0]
        (neither, other), (same, both) = first.table
        agree = neither == both == 0 and other == same
        if agree and first.storing is not None and first.reading is not None and len(group) > 1:
            _add_shared(flow, group)
        else:
            for edge in group if first.reading is not None else group[:1]:
                _add_pair(flow, edge)
    # Of several minimum cuts, the one with the fewest forms.
    return {n for n in flow.source_side(_FORM, _STAY) if isinstance(n, str)}


def _add_pair(flow: Flow, edge: _Edge) -> None:
    """The cost table of one storing and one reading choice as edges; a table that no cut can express is rounded down to
    the nearest one that a cut can."""
    cost = edge.table
    if edge.storing is None or edge.reading is None:
        end = edge.storing or edge.reading
        stay, take = (cost[0][0], cost[1][0]) if edge.storing is not None else (cost[0][0], cost[0][1])
        flow.add(_FORM, end, max(stay - take, 0))
        flow.add(end, _STAY, max(take - stay, 0))
        return
    if edge.storing == edge.reading:
        return
    (neither, reading), (storing, both) = cost
    both = min(both, storing + reading - neither)
    # E(s, r) = neither + (storing - neither) s + (both - storing) r + (reading + storing - neither - both) (1 - s) r
    for end, slope in ((edge.storing, storing - neither), (edge.reading, both - storing)):
        flow.add(end, _STAY, max(slope, 0))
        flow.add(_FORM, end, max(-slope, 0))
    flow.add(edge.reading, edge.storing, reading + storing - neither - both)


def _add_shared(flow: Flow, group: list[_Edge]) -> None:
    """One value with several readers that differ only in their choice: the other copy is paid for once."""
    n, storing = group[0].table[0][1], group[0].storing
    any_takes, any_stays = ("takes", group[0].value.name), ("stays", group[0].value.name)
    flow.add(any_takes, storing, n)
    flow.add(storing, any_stays, n)
    for edge in group:
        flow.add(edge.reading, any_takes, math.inf)
        flow.add(any_stays, edge.reading, math.inf)

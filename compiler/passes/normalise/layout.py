"""Channels last for convolutions and pools. Graph inputs and outputs keep their layout.

`rules/layouts.py` decides which other ops run channels last to remove or shrink transposes. This pass rebuilds the
graph: it tracks the perms in which each value exists and transposes it when a reader needs another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import CHANNELS_LAST, Contract
from ppuc.compiler.passes.locs import joined, listed
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.compiler.passes.rewriter import to_fixpoint, with_graph
from ppuc.compiler.passes.rules.group_norm import group_rules
from ppuc.compiler.passes.rules.layouts import Reads, choose, is_channels_first
from ppuc.compiler.passes.rules.permutations import Form, Perm, channels_last, compose, identity, same_bytes, swapped
from ppuc.ir.analysis import users
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.view import ReshapeAttrs, TransposeAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.targets.description import Target

_MAX_ROUNDS = 8
"""Each round offers an op one form and is strictly cheaper than the previous one; two rounds usually suffice."""


class _Emitter:
    """Rebuilds a graph with the chosen ops in their forms."""

    def __init__(self, graph: Graph, reads: Reads, forms: dict[str, Form]) -> None:
        self.graph = graph
        self._reads = reads
        self._forms = forms
        self._b = Builder(all_names(graph))
        self._stored: dict[str, dict[Perm, Value]] = {p.name: {identity(p.type.rank): p} for p in graph.params}
        self._transposes: dict[str, tuple[str, ...]] = {}

    def run(self) -> Graph:
        for op in self.graph.ops:
            if op.name == "transpose":
                below = self._transposes.get(op.operands[0].name, ())
                self._transposes[op.result.name] = joined(below, op.loc)
                continue
            self._b.loc = op.loc
            self._emit(op)
        results = tuple(self._read(v, identity(v.type.rank)) for v in self.graph.results)
        return without_dead_ops(Graph(self.graph.name, self.graph.params, results, tuple(self._b.ops)))

    def _emit(self, op: Op) -> None:
        if is_channels_first(op):
            self._window(op)
        elif op.results and (form := self._forms.get(op.results[0].name)) is not None:
            operands = [self._aligned(v, p) for v, p in zip(op.operands, form.operands, strict=True)]
            self._keep(op, form.result, self._b(op.name, *operands, attrs=form.attrs, hint=op.result.name))
            self._count("follow-layout", op)
        elif op.name == "matmul":
            self._matmul(op)
        else:
            operands = [self._read(v, identity(v.type.rank)) for v in op.operands]
            self._as_is(op, operands)

    def _as_is(self, op: Op, operands: Sequence[Value], **changes: object) -> None:
        if tuple(operands) != op.operands or changes:
            op = replace(op, operands=tuple(operands), **changes)  # type: ignore[arg-type]
        self._b.ops.append(op)
        for result in op.results:
            self._stored[result.name] = {identity(result.type.rank): result}

    def _keep(self, op: Op, perm: Perm, value: Value) -> None:
        self._stored[op.result.name] = {perm: value}

    def _window(self, op: Op) -> None:
        """conv or pool of x[N, C, *S] -> of x[N, *S, C]; the kernel w[O, C/g, *K] -> w[*K, C/g, O]."""
        assert isinstance(op.attrs, ConvAttrs | PoolAttrs)
        rank = op.result.type.rank
        operands = [self._read(op.operands[0], channels_last(rank))]
        if op.name == "conv":
            operands.append(self._read(op.operands[1], (*range(2, rank), 1, 0)))
        value = self._b(op.name, *operands, attrs=replace(op.attrs, layout="nhwc"), hint=op.result.name)
        self._keep(op, channels_last(rank), value)
        self._count("channels-last", op)

    def _count(self, decision: str, op: Op) -> None:
        if (remarks := listener()) is not None:
            remarks.count(decision, op)

    def _matmul(self, op: Op) -> None:
        """Reads operands that exist with their last two dimensions swapped as they are stored."""
        attrs = op.attrs
        assert isinstance(attrs, MatmulAttrs)
        flags, operands = [attrs.transpose_a, attrs.transpose_b], []
        for i, v in enumerate(op.operands):
            plain, other = identity(v.type.rank), swapped(v.type.rank)
            swap = self._exists(v, other) and not self._exists(v, plain)
            flags[i] ^= swap
            operands.append(self._read(v, other if swap else plain))
        self._as_is(op, operands, attrs=replace(attrs, transpose_a=flags[0], transpose_b=flags[1]))

    def _aligned(self, value: Value, perm: Perm | None) -> Value:
        """`value` in `perm`; a value of lower rank first gets leading dimensions of size one."""
        rank = value.type.rank
        if perm is None or rank in (0, len(perm)):
            return self._read(value, identity(rank) if perm is None or rank == 0 else perm)
        plain = self._read(value, identity(rank))
        dims = (1,) * (len(perm) - rank) + value.type.dims
        return self._transposed(self._reshaped(plain, dims), perm)

    def _exists(self, value: Value, perm: Perm) -> bool:
        root, through = self._reads.root[value.name]
        wanted = compose(through, perm)
        return any(same_bytes(root.type.dims, wanted, p) for p in self._stored[root.name])

    def _read(self, value: Value, perm: Perm) -> Value:
        """transpose(value, perm), from a perm in which its root exists."""
        root, through = self._reads.root[value.name]
        wanted = compose(through, perm)
        stored = self._stored[root.name]
        if wanted in stored:
            return stored[wanted]
        loc = self._b.loc
        self._b.loc = listed(joined(self._transposes.get(value.name, ()), loc))
        near = next((p for p in stored if same_bytes(root.type.dims, p, wanted)), None)
        base = near if near is not None else next(iter(stored))
        stored[wanted] = self._transposed(stored[base], tuple(base.index(d) for d in wanted))
        self._b.loc = loc
        return stored[wanted]

    def _transposed(self, value: Value, perm: Perm) -> Value:
        if same_bytes(value.type.dims, perm, identity(len(perm))):
            return self._reshaped(value, tuple(value.type.dims[p] for p in perm))
        return self._b("transpose", value, attrs=TransposeAttrs(perm), hint=value.name)

    def _reshaped(self, value: Value, dims: tuple[int, ...]) -> Value:
        if value.type.dims == dims:
            return value
        return self._b("reshape", value, attrs=ReshapeAttrs(dims), hint=value.name)


@dataclass(frozen=True)
class Layout(Pass):
    """Store activations channels last, with minimum transpose cost.

    %y = relu(conv(%x, %w) {layout = nchw})
    ->
    %t = transpose(%x) {perm = (0, 2, 3, 1)}; %z = relu(conv(%t, %w1) {layout = nhwc})
    %y = transpose(%z) {perm = (0, 3, 1, 2)}
    """

    name: ClassVar[str] = "layout"
    required: ClassVar[str] = "kernels of convolutions and pools need channels last"
    ensures: ClassVar[tuple[Contract, ...]] = (CHANNELS_LAST,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with every conv and pool channels last."""
        graph = module.graph
        if any(is_channels_first(op) for op in graph.ops) and (rules := group_rules(graph)) is not None:
            graph = to_fixpoint(graph, rules)
        for _ in range(_MAX_ROUNDS):
            reads = Reads.of(graph)
            chosen = choose(graph, reads)
            if not chosen and not any(is_channels_first(op) for op in graph.ops):
                break
            graph = _Emitter(graph, reads, chosen).run()
        if (remarks := listener()) is not None:
            _remark_transposes(graph, remarks)
        return with_graph(module, graph)


def _remark_transposes(graph: Graph, remarks: Collector) -> None:
    """A remark on every remaining transpose of an activation, with the op that stores its operand and the readers that
    need it."""
    reads = Reads.of(graph)
    readers = users(graph)
    for op in graph.ops:
        if op.name != "transpose" or reads.root[op.result.name][0].name in reads.constant:
            continue
        source = graph.producer(op.operands[0])
        stored = f"'{source.name}' stores it" if source is not None else "an input of the model has it"
        wanted = [f"'{name}'" for name in dict.fromkeys(reader.name for reader in readers[op.result.name])]
        wanted += ["an output of the model"] if op.result in graph.results else []
        why = f"{stored} in another dimension order than required by {' and '.join(wanted)}"
        remarks.missed("transposed", op.result.name, op.loc, why, bytes=op.result.type.bytes)

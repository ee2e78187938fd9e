"""Analyses a fused group: relates every op to the group's iteration domain.

A group has an iteration *domain*: the shape of its anchor (the matmul's result, the reduction's operand, the largest
elementwise result). Every value of its body is related to the domain in one of three ways:
  external  a strided view of a parameter (a chain of view ops), perhaps of a constant;
  chain     computed elementwise or by reduction at points of the domain; its shape broadcasts to the domain, possibly
            after a `pull`: the reshapes and transposes that lead from the domain to the value's own shape;
  anchor    the accumulator that the chain starts from.
External operands of a chain op are broadcast to the op's shape and mapped back through the pull, so a residual added
after a reshape is read through a reshaped view. Slices and concatenations of computed values are not computed: a
result behind them is stored in parts.

Invariant: `analyse` raises NotFusable exactly if some op of the body cannot be related in one of these ways; fusion
calls it before it commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ppuc.compiler.lowering.tiling.not_fusable import NotFusable as NotFusable
from ppuc.compiler.lowering.tiling.pieces import MOVES, Piece, back, follow, whole
from ppuc.ir import views
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.view import ReshapeAttrs
from ppuc.ir.types import DType, TensorType

MOST_PARTS = 16
"""Maximum parts of a result: each is a store of every tile, which writes what lies in the part."""


@dataclass(frozen=True, slots=True)
class External:
    """An operand in memory: parameter `value` of the body seen through `view`; `low` shifts it for constant padding
    (index i of the view reads i - low, outside reads `pad`)."""

    value: Value
    view: View
    low: tuple[int, ...] = ()
    extent: tuple[int, ...] = ()
    pad: float = 0.0

    @property
    def padded(self) -> bool:
        return bool(self.low)


@dataclass(slots=True)
class Chain:
    """The elementwise and reducing ops of a group, in order, over `domain`."""

    domain: tuple[int, ...]
    anchor: Value | None
    ops: list[Op] = field(default_factory=list)
    pulls: dict[str, tuple[Op, ...]] = field(default_factory=dict)
    externals: dict[str, External] = field(default_factory=dict)
    """External operand key (see `key`) -> its view in domain coordinates (rank of the domain, size 1 or stride 0 where
    it is broadcast)."""
    constants: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, tuple[External, ...]] = field(default_factory=dict)
    """Body result name -> the views, in domain coordinates, of the row-major result it is stored to. One of several
    holds a box of the domain: point i writes index i - low of the view, or nothing if it has none."""
    alias: dict[str, str] = field(default_factory=dict)
    """Name of a view-op result on the chain -> the chain value that holds its elements."""
    moved: set[str] = field(default_factory=set)
    """Slices and concatenations of chain values, and views of these."""
    squeezed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Reduced values that were reshaped by dropping or adding axes of size 1 -> their shape in domain axes."""
    direct: dict[str, str] = field(default_factory=dict)
    """Body results that are views of memory (copies, pads) -> their external key."""
    reduce_axes: tuple[int, ...] = ()
    spans: dict[str, frozenset[int]] = field(default_factory=dict)
    """Chain value -> the domain axes along which its tiles have more than one element: those of its operands, excluding
    broadcast axes and immediates."""
    operand_keys: dict[tuple[str, int], str] = field(default_factory=dict)

    def rounds_on_store(self, op: Op) -> bool:
        """Whether `op`, a cast between floats, is a result of the group without other readers."""
        result = op.results[0]
        floats = result.type.dtype.is_float and op.operands[0].type.dtype.is_float
        stored = [n for n in self.outputs if self.alias.get(n, n) == result.name]
        return floats and bool(stored) and not any(v.name == result.name for o in self.ops for v in o.operands)


def scalar_constant(op: Op | None) -> float | int | None:
    """The number a `const` op of one element holds, else None."""
    if op is None or op.name != "const" or op.results[0].type.elements != 1:
        return None
    number = op.attrs.value.array().reshape(-1)[0]  # type: ignore[attr-defined]
    dtype = op.results[0].type.dtype
    return float(number) if dtype.is_float else int(number)


def stored_part(body: Graph, result: Value) -> tuple[Value, View]:
    """The value that a kernel stores for `result` of `body`, and its view in the row-major memory of `result`: all of
    it, or the part of an `insert`."""
    op = body.producer(result)
    whole = View.contiguous(result.type.dims)
    if op is None or op.name != "insert":
        return result, whole
    part = op.operands[1]
    return part, views.take_slice(whole, op.attrs.starts, part.type.dims, (1,) * part.type.rank)  # type: ignore[attr-defined]


class Resolver:
    """Follows view ops of a body from a value back to the parameter it is a view of."""

    def __init__(self, body: Graph) -> None:
        self.body = body
        self.params = {p.name for p in body.params}
        self._known: dict[str, External | None] = {}

    def external(self, value: Value) -> External | None:
        """The view of `value` in memory; None if it is computed or needs a copy."""
        if value.name not in self._known:
            self._known[value.name] = self._follow(value)
        return self._known[value.name]

    def _follow(self, value: Value) -> External | None:
        if value.name in self.params:
            return External(value, View.contiguous(value.type.dims))
        op = self.body.producer(value)
        if op is None or not op.operands:
            return None
        source = self.external(op.operands[0])
        if source is None:
            return None
        if OPS[op.name].kind is Kind.VIEW:
            if source.padded:
                return None
            view = views.apply(op, source.view)
            return None if view is None else External(source.value, view)
        if op.name == "cast" and widens(op):  # widened when the tile is read
            return source
        if op.name == "pad":
            attrs = op.attrs
            if attrs.mode != "constant" or any(attrs.interior) or source.padded:  # type: ignore[attr-defined]
                return None
            low, high = attrs.low, attrs.high  # type: ignore[attr-defined]
            if any(n < 0 for n in (*low, *high)):
                return None
            return External(source.value, source.view, tuple(low), op.results[0].type.dims, attrs.value)  # type: ignore[attr-defined]
        return None


def widens(op: Op) -> bool:
    """Whether a cast preserves every value and the compute dtype, so that reading the operand is equivalent."""
    source, result = op.operands[0].type.dtype, op.results[0].type.dtype
    return source.is_float and source.bits < 32 and (result is DType.F32 or (result.bits == 16 and source.bits <= 8))


def unpacks(op: Op) -> bool:
    """Whether a cast widens 8-bit floats: weights stored narrower than they are multiplied."""
    return op.name == "cast" and widens(op) and op.operands[0].type.dtype.bits <= 8


CHAIN_KINDS = (Kind.ELEMENTWISE, Kind.REDUCTION, Kind.SCAN)


def op_axes(op: Op) -> tuple[int, ...]:
    """Operand axes that a reduction or scan runs along; () for elementwise ops."""
    kind = OPS[op.name].kind
    if kind is Kind.ELEMENTWISE:
        return ()
    attrs = op.attrs
    return tuple(attrs.axes) if op.name == "reduce" else (attrs.axis,)  # type: ignore[attr-defined]


def analyse(body: Graph, anchor: Value | None, domain: tuple[int, ...], skip: frozenset[str] = frozenset()) -> Chain:
    """Relate every op of `body`, except those in `skip` (by result name), to the domain.

    `anchor` is the value that the chain starts from (None for pure elementwise groups). Raises NotFusable.
    """
    chain = Chain(domain, anchor)
    resolver = Resolver(body)
    if anchor is not None:
        chain.spans[anchor.name] = frozenset(range(len(domain)))
        chain.pulls[anchor.name] = () if anchor.type.dims == domain else (_coarsening(anchor, domain),)
    for op in body.ops:
        result = op.results[0]
        if result.name in skip or op.name == "insert":
            continue
        number = scalar_constant(op)
        if number is not None:
            chain.constants[result.name] = number
            continue
        if op.name == "const":
            raise NotFusable(f"constant {result} of {result.type} must be a parameter of the group")
        kind = OPS[op.name].kind
        if kind is Kind.VIEW and op.operands[0].name in chain.constants:
            chain.constants[result.name] = chain.constants[op.operands[0].name]
        elif _moves(chain, op):
            chain.moved.add(result.name)
        elif kind is Kind.VIEW and op.operands[0].name in chain.pulls:
            _view_on_chain(chain, op)
        elif resolver.external(result) is not None:
            continue
        elif kind in CHAIN_KINDS:
            _chain_op(chain, resolver, op)
        else:
            raise NotFusable(f"'{op.name}' of {op.operands[0] if op.operands else 'nothing'} has no place in the group")
    for value in body.results:
        _output(chain, resolver, value)
    return chain


def _moves(chain: Chain, op: Op) -> bool:
    """Whether `op` moves computed elements in another way than the reshapes and transposes of a pull."""
    moved = any(v.name in chain.moved for v in op.operands)
    return op.name in MOVES and (moved or (op.name in ("slice", "concat") and op.operands[0].name in chain.pulls))


def _coarsening(anchor: Value, domain: tuple[int, ...]) -> Op:
    """The reshape from a domain that splits the anchor's axes to the anchor's own shape."""
    fine = Value(f"{anchor.name}.split", TensorType(anchor.type.dtype, domain))
    return Op("reshape", ReshapeAttrs(anchor.type.dims), (fine,), (anchor,))


def _view_on_chain(chain: Chain, op: Op) -> None:
    source, result = op.operands[0], op.results[0]
    pull = chain.pulls[source.name]
    if op.name not in ("reshape", "transpose"):
        raise NotFusable(f"'{op.name}' of a computed value drops or repeats elements")
    chain.alias[result.name] = chain.alias.get(source.name, source.name)
    if source.name in chain.squeezed or source.type.elements != np.prod(chain.domain, dtype=np.int64):
        aligned = chain.squeezed.get(source.name, source.type.dims)
        if pull or op.name != "reshape" or not _same_but_ones(source.type.dims, result.type.dims):
            raise NotFusable(f"'{op.name}' of a reduced value")
        if result.type.dims != aligned:
            chain.squeezed[result.name] = aligned
        chain.pulls[result.name] = pull
        return
    if pull and pull[-1].name == op.name == "reshape" and pull[-1].operands[0].type.dims == result.type.dims:
        chain.pulls[result.name] = pull[:-1]  # back in the shape before the last reshape
        return
    chain.pulls[result.name] = (*pull, op)


def _set_span(chain: Chain, op: Op, axes: Sequence[int]) -> None:
    """Record the axes that `op` spans. Raises NotFusable if it combines elements along a broadcast axis of its operand
    in a way that depends on their number or positions."""
    span: set[int] = set()
    for i, operand in enumerate(op.operands):
        key = chain.operand_keys.get((op.results[0].name, i))
        if key is None:
            span |= chain.spans.get(chain.alias.get(operand.name, operand.name), frozenset())
        else:
            external = chain.externals[key]
            strides = enumerate(zip(external.view.shape, external.view.strides, strict=True))
            span |= {a for a, (size, stride) in strides if external.padded or (size != 1 and stride != 0)}
    if op.name in ("argreduce", "cumsum") and op.operands[0].type.dims[axes[0]] == 1:
        span = set() if op.name == "argreduce" or op.attrs.exclusive else span  # type: ignore[attr-defined]
    missing = [a for a in axes if op.operands[0].type.dims[a] != 1 and a not in span]
    if missing and not _only_extremes(op):
        raise NotFusable(f"'{op.name}' along an axis that is broadcast")
    chain.spans[op.results[0].name] = frozenset(span if op.name == "cumsum" else span - set(axes))


def _only_extremes(op: Op) -> bool:
    """Whether a reduction is idempotent: many equal elements give the same result as one."""
    return getattr(op.attrs, "kind", "") in ("max", "min") and not getattr(op.attrs, "last", False)


def _same_but_ones(a: Sequence[int], b: Sequence[int]) -> bool:
    return [d for d in a if d != 1] == [d for d in b if d != 1]


def _chain_op(chain: Chain, resolver: Resolver, op: Op) -> None:
    inner = [v for v in op.operands if v.name in chain.pulls]
    if any(v.name in chain.squeezed for v in inner):
        _squeezed_op(chain, op)
        return
    pulls = {chain.pulls[v.name] for v in inner}
    if len(pulls) > 1:
        raise NotFusable("operands reach the op through different reshapes")
    pull = pulls.pop() if pulls else ()
    shape = op.results[0].type.dims
    current = pull[-1].results[0].type.dims if pull else chain.domain
    axes = op_axes(op)
    if axes and pull:
        raise NotFusable("a reduction after a reshape")
    if pull and shape != current:
        raise NotFusable("a computed value is broadcast after a reshape")
    if not axes:
        _check_broadcast(shape, current)
    else:
        _add_reduction(chain, op, axes)
    for i, operand in enumerate(op.operands):
        if operand.name in chain.pulls or operand.name in chain.constants:
            continue
        source = resolver.external(operand)
        if source is None:
            raise NotFusable(f"operand {operand} is neither in memory nor computed in the group")
        target = shape if not axes else operand.type.dims
        key = f"{operand.name}|{','.join(p.results[0].name for p in pull)}"
        chain.operand_keys[op.results[0].name, i] = key
        chain.externals[key] = _to_domain(source, target, pull, chain.domain)
    _set_span(chain, op, axes)
    chain.ops.append(op)
    chain.pulls[op.results[0].name] = pull


def _squeezed_op(chain: Chain, op: Op) -> None:
    """Relate an elementwise op on reduced values whose axes of size 1 were dropped: it is computed with those axes."""
    operands = [v for v in op.operands if v.name not in chain.constants]
    shapes = {(v.type.dims, chain.squeezed.get(v.name)) for v in operands}
    if len(shapes) != 1 or op_axes(op) or op.results[0].type.dims != operands[0].type.dims:
        raise NotFusable("a reduced value is used after its axes were dropped")
    _set_span(chain, op, ())
    chain.ops.append(op)
    chain.pulls[op.results[0].name] = chain.pulls[operands[0].name]
    chain.squeezed[op.results[0].name] = chain.squeezed[operands[0].name]


def _add_reduction(chain: Chain, op: Op, axes: tuple[int, ...]) -> None:
    operand = op.operands[0]
    dims = operand.type.dims
    if len(dims) != len(chain.domain) or any(dims[a] != chain.domain[a] for a in axes):
        raise NotFusable("a reduction over another domain")
    keep = op.name == "cumsum" or getattr(op.attrs, "keepdims", True)
    if not keep:
        raise NotFusable("a reduction that drops its axes (keepdims is expected here)")
    axes = tuple(a for a in axes if dims[a] != 1)
    if chain.reduce_axes and axes and chain.reduce_axes != axes:
        raise NotFusable("reductions along different axes")
    chain.reduce_axes = chain.reduce_axes or axes


def _check_broadcast(shape: Sequence[int], current: Sequence[int]) -> None:
    if len(shape) > len(current):
        raise NotFusable(f"shape {list(shape)} has a higher rank than the domain {list(current)}")
    for have, want in zip(reversed(shape), reversed(current), strict=False):
        if have not in (1, want):
            raise NotFusable(f"shape {list(shape)} does not broadcast to the domain {list(current)}")


def _to_domain(source: External, shape: tuple[int, ...], pull: tuple[Op, ...], domain: tuple[int, ...]) -> External:
    """`source` broadcast to the op's `shape`, through the inverse of `pull`, in domain rank."""
    if source.padded:
        lead = len(domain) - len(source.extent)
        if pull or lead < 0 or (1,) * lead + source.extent != domain:
            raise NotFusable("a padded operand is broadcast or reshaped")
        view = View((1,) * lead + source.view.shape, (0,) * lead + source.view.strides, source.view.offset)
        return External(source.value, view, (0,) * lead + source.low, domain, source.pad)
    view = source.view if not pull else views.expand(source.view, shape)
    for op in reversed(pull):
        back = views.undo(op, view)
        if back is None:
            raise NotFusable("an operand cannot be read through the reshape without a copy")
        view = back
    lead = len(domain) - len(view.shape)
    return External(source.value, View((1,) * lead + view.shape, (0,) * lead + view.strides, view.offset))


def _output(chain: Chain, resolver: Resolver, result: Value) -> None:
    value, view = stored_part(resolver.body, result)
    if value.name in chain.moved:
        _moved_output(chain, resolver.body, result, whole(value, view))
        return
    if value.name not in chain.pulls:
        source = resolver.external(value)
        if source is None:
            raise NotFusable(f"result {value} is not computed by the group")
        if chain.ops or chain.anchor is not None or value.type.dims != chain.domain:
            raise NotFusable(f"result {value} is only a view")
        chain.direct[result.name] = result.name
        chain.externals[result.name] = _to_domain(source, value.type.dims, (), chain.domain)
        chain.outputs[result.name] = (External(result, view),)
        return
    if value is not result:
        chain.alias[result.name] = chain.alias.get(value.name, value.name)
    if value.name in chain.squeezed:
        if value is not result:
            raise NotFusable("a reduced value whose axes were dropped is part of a larger tensor")
        view = View.contiguous(chain.squeezed[value.name])
    seen: View | None = view
    for op in reversed(chain.pulls[value.name]):
        seen = views.undo(op, seen) if seen is not None else None
    if seen is None:
        raise NotFusable("the result cannot be stored through the reshape without a copy")
    lead = len(chain.domain) - len(seen.shape)
    if lead < 0:
        raise NotFusable("the result has a higher rank than the domain")
    partial = [a for a, n in enumerate((1,) * lead + seen.shape) if n != chain.domain[a]]
    if set(partial) - set(chain.reduce_axes):
        raise NotFusable(f"result {value} does not span the group's domain")
    stored = View((1,) * lead + seen.shape, (0,) * lead + seen.strides, seen.offset)
    chain.outputs[result.name] = (External(result, stored),)


def _moved_output(chain: Chain, body: Graph, result: Value, stored: Piece) -> None:
    """Record the parts in which a result behind slices and concatenations is stored."""
    pieces = follow(body, stored, lambda p: p.value.name in chain.pulls)
    sources = {chain.alias.get(p.value.name, p.value.name) for p in pieces}
    if len(sources) != 1:
        raise NotFusable(f"result {result} is made of several computed values")
    chain.alias[result.name] = sources.pop()
    for piece in pieces:
        if piece.value.type.elements != np.prod(chain.domain, dtype=np.int64):
            raise NotFusable("a value that does not span the group's domain is stored in parts")
    chain.outputs[result.name] = parts_of(result, [p for piece in pieces for p in _pulled(chain, piece)], chain.domain)


def _pulled(chain: Chain, piece: Piece) -> list[Piece]:
    """A piece of a chain value as pieces of the domain."""
    found = [piece]
    for op in reversed(chain.pulls[piece.value.name]):
        found = [before for p in found for before in back(op, p)]
    return found


def parts_of(result: Value, pieces: Sequence[Piece], domain: tuple[int, ...]) -> tuple[External, ...]:
    """The parts of a result that store boxes of the domain, the largest first. Raises NotFusable."""
    if len(pieces) > MOST_PARTS:
        raise NotFusable(f"the result would be stored in {len(pieces)} parts, at most {MOST_PARTS} are worth it")
    return tuple(_placed(p, result, domain) for p in sorted(pieces, key=lambda p: -p.elements))


def _placed(piece: Piece, result: Value, domain: tuple[int, ...]) -> External:
    """Where `result` stores a box of the domain. Raises NotFusable if the piece is none."""
    atoms = piece.boxed()
    lead = (0,) * (len(domain) - len(atoms))
    shape = (*(1 for _ in lead), *(1 if a is None else a.extent for a in atoms))
    strides = (*lead, *(0 if a is None else a.stride for a in atoms))
    return External(result, View(shape, strides, piece.offset), (*lead, *piece.starts), domain)

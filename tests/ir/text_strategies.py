"""Hypothesis strategies for IR objects that print and parse; they need not verify."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from ppuc.ir.affine import Affine, affine, axis
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Bound, Buffer, Gather, Kernel, Load, Loop, Mma, Param, Stmt, Store, TileRef, Vec, View
from ppuc.ir.ops import OPS
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.structure import ConstAttrs, GroupAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.program import (
    Bump,
    Copy,
    CounterGroup,
    Instr,
    KernelProgram,
    MemTensor,
    Program,
    Queue,
    Ring,
    RingUse,
    Segment,
    StreamLoop,
    StreamNode,
    Wait,
)
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, Space, TensorType
from ppuc.ir.vector import Step, VecParam, VectorProgram

dtypes = st.sampled_from(list(DType))
spaces = st.sampled_from(list(Space))
names = st.from_regex(r"[A-Za-z0-9_.]{1,6}", fullmatch=True)
texts = st.text(max_size=8)
locs = st.lists(texts, max_size=2).map(tuple)
sizes = st.integers(0, 9)
shapes = st.lists(sizes, max_size=3).map(tuple)
types = st.builds(TensorType, dtypes, st.lists(sizes | st.sampled_from(["N", "batch"]), max_size=3).map(tuple))
floats = st.floats(allow_nan=False)


def distinct(low: int, high: int) -> st.SearchStrategy[list[str]]:
    """Distinct names."""
    return st.lists(names, min_size=low, max_size=high, unique=True)


@st.composite
def resources(draw: st.DrawFn) -> Resource:
    """Constants of any dtype and any bits, NaNs with payloads included."""
    dtype, shape = draw(dtypes), draw(st.lists(st.integers(0, 5), max_size=2).map(tuple))
    count = math.prod(shape) * dtype.bytes
    data: np.ndarray = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    if dtype is DType.BOOL:
        data = data & 1
    elif dtype is DType.F4E2M1:
        data = data & 15
    return Resource.of(data.view(dtype.numpy).reshape(shape), draw(texts))


@st.composite
def values(draw: st.DrawFn, name: str) -> Value:
    return Value(name, draw(types), draw(st.none() | spaces))


@st.composite
def graphs(draw: st.DrawFn, depth: int = 1) -> Graph:
    """Ops of every attribute kind in definition-before-use order, groups nested up to `depth`."""
    pool = draw(distinct(3, 8))
    scope = [draw(values(pool.pop())) for _ in range(2)]
    params = tuple(scope)
    ops = []
    while pool:
        ops.append(draw(_ops(scope, pool.pop(), depth)))
        scope.extend(ops[-1].results)
    results = tuple(draw(st.lists(st.sampled_from(scope), max_size=2)))
    return Graph(draw(texts), params, results, tuple(ops))


@st.composite
def _ops(draw: st.DrawFn, scope: list[Value], name: str, depth: int) -> Op:
    operands = tuple(draw(st.lists(st.sampled_from(scope), max_size=3)))
    result, loc = (draw(values(name)),), draw(locs)
    ints = st.lists(st.integers(), max_size=12).map(tuple)
    kind = draw(st.sampled_from(["add", "const", "cast", "pad", "transpose"] + ["group"] * (depth > 0)))
    if kind == "group":
        return Op(kind, GroupAttrs(draw(texts), draw(texts)), operands, result, loc, draw(graphs(depth=depth - 1)))
    attrs = {
        "add": st.just(OPS["add"].attrs()),
        "const": st.builds(ConstAttrs, resources()),
        "cast": st.builds(CastAttrs, dtypes, st.booleans()),
        "pad": st.builds(PadAttrs, ints, ints, ints, floats, texts),
        "transpose": st.builds(TransposeAttrs, ints),
    }
    return Op(kind, draw(attrs[kind]), operands, result, loc)


@st.composite
def affines(draw: st.DrawFn, loops: tuple[str, ...], axes: int) -> Affine:
    """Any expression over `loops` and `axes` tile axes."""
    keys = [*loops, *(f"${i}" for i in range(axes))]
    terms = draw(st.dictionaries(st.sampled_from(keys), st.integers(-9, 9), max_size=3)) if keys else {}
    return affine(draw(st.integers(-99, 99)), terms)


@st.composite
def _indices(draw: st.DrawFn, loops: tuple[str, ...], rank: int) -> tuple[Affine, ...]:
    if draw(st.booleans()):
        return tuple(draw(affines(loops, 0)) + axis(d) for d in range(rank))
    return tuple(draw(st.lists(affines(loops, rank), max_size=3)))


@st.composite
def statements(
    draw: st.DrawFn, params: list[str], tiles: dict[str, int], loops: tuple[str, ...]
) -> Load | Store | Mma | Vec:
    """One statement with any of its optional fields."""
    tile = st.sampled_from(list(tiles))
    bounds = st.lists(st.none() | st.builds(Bound, affines(loops, 0), st.integers(-5, 99)), max_size=3).map(tuple)
    gather = st.none() | st.builds(Gather, sizes, tile, sizes)
    kind = draw(st.sampled_from(["load", "store", "mma", "vec"]))
    if kind in ("load", "store"):
        buffer, param = draw(tile), draw(st.sampled_from(params))
        index = draw(_indices(loops, tiles[buffer]))
        if kind == "load":
            return Load(buffer, param, index, draw(floats), draw(gather))
        return Store(param, buffer, index, draw(gather), draw(st.sampled_from(["", "add", "max"])))
    if kind == "mma":
        refs = st.builds(TileRef, tile, st.lists(affines(loops, 2), max_size=3).map(tuple), shapes)
        start = tuple(draw(st.lists(st.sampled_from(loops), max_size=2))) if loops else ()
        flags = st.booleans()
        return Mma(draw(tile), draw(refs), draw(refs), start, draw(sizes), draw(flags), draw(flags), draw(bounds))
    outs = tuple(draw(st.lists(tile, min_size=1, max_size=2)))
    ins = tuple(draw(st.lists(tile, max_size=2)))
    return Vec(draw(texts), outs, ins, draw(bounds), tuple(draw(st.lists(affines(loops, 0), max_size=2))))


@st.composite
def _params(draw: st.DrawFn, name: str) -> Param:
    shape = draw(shapes)
    view = View.contiguous(shape)
    if draw(st.booleans()):
        strides = draw(st.lists(st.integers(-9, 99), min_size=len(shape), max_size=len(shape)))
        view = View(shape, tuple(strides), draw(st.integers(-9, 99)))
    return Param(name, draw(names | st.just(name)), draw(dtypes), view, draw(spaces), draw(st.booleans()))


def _grids() -> st.SearchStrategy[tuple[tuple[str, int], ...]]:
    axis_name = st.from_regex(r"[a-z][a-z0-9_]{0,3}", fullmatch=True)
    return st.lists(st.tuples(axis_name, sizes), max_size=2).map(tuple)


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    """Kernels with up to three nested loops."""
    pool = draw(distinct(7, 7))
    params = tuple(draw(_params(name)) for name in pool[:2])
    buffers = tuple(Buffer(n, draw(dtypes), draw(shapes), draw(spaces), draw(sizes)) for n in pool[2:4])
    tiles = {b.name: len(b.shape) for b in buffers}

    def body(loops: tuple[str, ...], free: list[str]) -> tuple[Stmt, ...]:
        stmts: list[Stmt] = draw(st.lists(statements(pool[:2], tiles, loops), max_size=2))
        deeper: bool = draw(st.booleans())
        if free and deeper:
            var, over = free[0], draw(st.none() | st.just("cm"))
            start, stop, step = draw(st.integers(-5, 5)), draw(st.integers(-5, 99)), draw(st.integers(1, 64))
            stmts.append(Loop(var, stop, step, body((*loops, var), free[1:]), over, start))
        return tuple(stmts)

    return Kernel(draw(texts), draw(_grids()), params, buffers, body((), pool[4:]), draw(locs), draw(sizes))


@st.composite
def vectors(draw: st.DrawFn) -> VectorProgram:
    """Straight lines of steps with any fields."""
    pool = draw(distinct(3, 7))
    params = tuple(VecParam(n, draw(dtypes), draw(st.booleans())) for n in pool[:2])
    scope, steps = pool[:2], []
    for name in pool[2:]:
        number = draw(floats | st.integers(-(2**63), 2**63 - 1))
        args = tuple(draw(st.lists(st.sampled_from(scope), max_size=2)))
        ints = tuple(draw(st.lists(st.integers(-9, 9), max_size=10)))
        steps.append(Step(name, draw(st.sampled_from(["add", "window"])), args, ints, number, draw(st.none() | dtypes)))
        scope = [*scope, name]
    results = tuple(draw(st.lists(st.tuples(st.sampled_from(scope), dtypes), max_size=2)))
    return VectorProgram(draw(texts), params, results, tuple(steps))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs of one segment with one kernel."""
    pool = draw(distinct(9, 9))
    roles = st.sampled_from(["input", "output", "const", "temp"])
    tensors = tuple(
        MemTensor(n, draw(dtypes), draw(sizes), draw(spaces), draw(sizes), draw(roles), draw(texts)) for n in pool[:2]
    )
    expects = st.lists(st.integers(0, 2), max_size=20).map(tuple)
    counters = tuple(
        CounterGroup(n, draw(st.sampled_from(pool[:2])), draw(texts), draw(sizes), draw(sizes), draw(expects))
        for n in pool[2:4]
    )
    waits = st.lists(st.builds(Wait, st.sampled_from(pool[2:4]), st.booleans()), max_size=2).map(tuple)
    bumps = st.lists(st.builds(Bump, st.sampled_from(pool[2:4]), st.booleans()), max_size=2).map(tuple)
    tensor = st.sampled_from(pool[:2])
    copies = st.lists(st.builds(Copy, sizes, tensor, tensor, sizes, sizes, waits, bumps, locs), max_size=2).map(tuple)
    ends = st.lists(st.tuples(texts, tensor), max_size=2).map(tuple)
    kernel = _kernel_program(pool[4:], waits, bumps)
    segment = Segment(draw(texts), draw(st.lists(kernel, max_size=2).map(tuple)), draw(copies), counters)
    return Program(draw(texts), draw(texts), draw(texts), tensors, draw(ends), draw(ends), (segment,))


@st.composite
def _kernel_program(
    draw: st.DrawFn,
    pool: list[str],
    waits: st.SearchStrategy[tuple[Wait, ...]],
    bumps: st.SearchStrategy[tuple[Bump, ...]],
) -> KernelProgram:
    queues = st.sampled_from(list(Queue))
    params = (draw(_params(pool[0])),)
    after = st.lists(names | st.tuples(names, names).map("/".join), max_size=2).map(tuple)
    consumers = st.lists(queues, max_size=2).map(tuple)
    rings = tuple(
        Ring(n, draw(dtypes), draw(shapes), draw(spaces), 64, 128, 2, draw(queues), draw(consumers), draw(after))
        for n in pool[1:3]
    )
    tiles = {r.name: len(r.shape) for r in rings}
    kinds = st.sampled_from(["claim", "push", "wait", "pop"])
    uses = st.lists(st.builds(RingUse, kinds, st.sampled_from(list(tiles)), sizes), max_size=3).map(tuple)

    def nodes(loops: tuple[str, ...], free: list[str]) -> tuple[StreamNode, ...]:
        found: list[StreamNode] = []
        for stmt in draw(st.lists(statements([pool[0]], tiles, loops), max_size=2)):
            op = type(stmt).__name__.lower() + draw(st.sampled_from(["", ".box"]))
            found.append(Instr(op, stmt, draw(uses), draw(waits), draw(bumps)))
        if free:
            over = draw(st.none() | st.just("cm"))
            found.append(
                StreamLoop(free[0], 0, draw(sizes), draw(st.integers(1, 9)), over, nodes((*loops, free[0]), []))
            )
        return tuple(found)

    streams = tuple((draw(queues), nodes((), pool[3:])) for _ in range(draw(st.integers(0, 2))))
    return KernelProgram(draw(texts), draw(_grids()), params, rings, streams, draw(locs), draw(sizes))

"""Programs without one of their waits: the hazard checker reports exactly those that leave a conflict unordered.

Which those are is decided by unrolling the program (`tests.simulator.happens_before`); a wait whose removal leaves
everything ordered is redundant (loads end in order, so the wait for the last of them covers the others), and the values
stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.ir.program import Instr, KernelProgram, Program, Segment, StreamLoop, StreamNode
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from ppuc.targets.simulator.run import RawResult
from tests.property.graph_generator import generate
from tests.simulator.happens_before import Unrolled
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled, simulated


def two_layers() -> Graph:
    s = Sketch()
    h = s.op("relu", s.op("add", s.matmul(s.param(70, 20), s.weight(20, 33)), s.weight(33)))
    return s.graph(s.matmul(h, s.weight(33, 7)))


def reused_memory() -> Graph:
    """Tensors that take half of a small l2 each, so that later ones lie where earlier ones were."""
    s = Sketch()
    x = s.param(70, 90)
    for _ in range(4):
        x = s.op("sub", s.op("exp", s.op("neg", s.op("abs", x))), s.reduce("max", s.op("abs", x), 0))
    return s.graph(x)


def image_and_rows() -> Graph:
    """A convolution, a pool and a softmax whose rows are walked in chunks."""
    s = Sketch()
    y = s.pool("max", s.op("relu", s.conv(s.param(1, 5, 9, 8), 6, 3)), 2, 2)
    z = s.param(3, 4100)
    e = s.op("exp", s.op("sub", z, s.reduce("max", z, 1)))
    return s.graph(y, s.op("div", e, s.reduce("sum", e, 1)))


def slow_products() -> Graph:
    """Each tile of a residual is small and each product slow, so that nothing but claims keeps the loads of residuals
    from running several tiles ahead."""
    s = Sketch()
    y = s.conv(s.param(1, 3, 12, 12), 16, 3)
    return s.graph(s.op("relu", s.op("add", y, s.param(*y.type.dims))))


def four_layers() -> Graph:
    s = Sketch()
    x = s.param(34, 20)
    for _ in range(4):
        x = s.op("relu", s.matmul(x, s.weight(20, 20)))
    return s.graph(x)


GRAPHS = (two_layers, reused_memory, image_and_rows, slow_products)


def instrs(body: Sequence[StreamNode]) -> Iterator[Instr]:
    for node in body:
        if isinstance(node, Instr):
            yield node
        else:
            yield from instrs(node.body)


def swapped(body: Sequence[StreamNode], old: Instr, new: Instr) -> tuple[StreamNode, ...]:
    return tuple(
        replace(n, body=swapped(n.body, old, new)) if isinstance(n, StreamLoop) else new if n is old else n
        for n in body
    )


def without_each(program: Program) -> Iterator[tuple[str, Program]]:
    """The program without one claim, wait, counter wait or take-over, and what was left out."""
    (segment,) = program.segments

    def rebuilt(changed: Segment) -> Program:
        return replace(program, segments=(changed,))

    def with_kernel(i: int, kernel: KernelProgram) -> Program:
        return rebuilt(replace(segment, kernels=(*segment.kernels[:i], kernel, *segment.kernels[i + 1 :])))

    for i, copy in enumerate(segment.copies):
        for wait in copy.waits:
            changed = replace(copy, waits=tuple(w for w in copy.waits if w is not wait))
            copies = (*segment.copies[:i], changed, *segment.copies[i + 1 :])
            yield f"copy of {copy.dst}: counter {wait.group}", rebuilt(replace(segment, copies=copies))
    for i, kernel in enumerate(segment.kernels):
        for at, ring in enumerate(kernel.rings):
            for old in ring.after:
                less = replace(ring, after=tuple(o for o in ring.after if o != old))
                others = (*kernel.rings[:at], less, *kernel.rings[at + 1 :])
                yield f"{kernel.name}: %{ring.name} after {old}", with_kernel(i, replace(kernel, rings=others))
        for instr in (instr for _, body in kernel.streams for instr in instrs(body)):
            parts = [(f"{u.kind} %{u.ring}", u) for u in instr.rings if u.kind in ("claim", "wait")]
            for what, part in [*parts, *((f"counter {w.group}", w) for w in instr.waits)]:
                rings = tuple(u for u in instr.rings if u is not part)
                less_waiting = replace(instr, rings=rings, waits=tuple(w for w in instr.waits if w is not part))
                streams = tuple((q, swapped(body, instr, less_waiting)) for q, body in kernel.streams)
                yield f"{kernel.name}: {what}", with_kernel(i, replace(kernel, streams=streams))


def agree(module: Module, machine: Target, inputs: dict[str, np.ndarray]) -> dict[str, bool]:
    """What was left out -> whether the checker reported it, after both judges agreed on every mutation."""
    program = module.program
    assert program is not None
    unrolled = Unrolled(program, machine.cu)
    assert not unrolled.unordered(program)
    right = simulated(module, machine, inputs)
    found = {}
    for what, broken in without_each(program):
        result = simulated(replace(module, program=broken), machine, inputs)
        expected = unrolled.unordered(broken)
        assert bool(result.profile.hazards) == bool(expected), f"{what}: {[*map(str, expected)][:3]}"
        assert expected or same_outputs(result, right), what
        found[what] = bool(expected)
    return found


def same_outputs(a: RawResult, b: RawResult) -> bool:
    return all(np.array_equal(a.outputs[name], b.outputs[name]) for name in a.outputs)


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
@pytest.mark.parametrize("build", GRAPHS)
def test_every_missing_wait_is_reported_or_redundant(build: Callable[[], Graph], target: str) -> None:
    graph = build()
    inputs = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    machine = load_target(target)
    found = agree(compiled(module_of(graph), machine, inputs), machine, inputs)
    assert sum(found.values()) >= len(found) // 4


@pytest.mark.parametrize("build", [two_layers, image_and_rows, four_layers])
def test_every_missing_wait_where_counters_are_taken_over(build: Callable[[], Graph]) -> None:
    """Some take-overs are ordered by other waits already, others are not."""
    graph = build()
    inputs = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    machine = override(load_target("ppu-tiny"), "sync.counters_per_chip=3")
    module = compiled(module_of(graph), machine, inputs)
    assert module.program is not None
    (segment,) = module.program.segments
    assert sum(len(group.expect) for group in segment.counters) > segment.counters_used
    agree(module, machine, inputs)


def test_what_each_wait_of_two_layers_is_for() -> None:
    """The wait for a tile is covered by that for one that a later load brings."""
    graph = two_layers()
    inputs = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    machine = load_target("ppu-tiny")
    found = agree(compiled(module_of(graph), machine, inputs), machine, inputs)
    assert found["node_6: counter relu.full"]
    assert all(found[f"node_6: {what}"] for what in ("wait %o", "wait %c", "wait %at", "claim %bt", "claim %at"))
    assert not found["node_6: wait %bt"]


@pytest.mark.parametrize("seed", range(6))
def test_mutations_of_random_graphs(seed: int) -> None:
    """Small ones without gathers and scatters, whose accesses the unrolling does not know."""
    machine = load_target("ppu-tiny")
    for at in range(100 * seed, 100 * seed + 100):
        graph, inputs = generate(at, layers=4)
        module = compiled(module_of(graph), machine, inputs)
        if moves_by_index(module) or module.program is None or len(Unrolled(module.program, machine.cu).events) > 500:
            continue
        if len([*without_each(module.program)]) in range(10, 60):
            agree(module, machine, inputs)
            return
    pytest.fail("no graph of a suitable size")


def moves_by_index(module: Module) -> bool:
    return any(
        getattr(s, "gather", None) or getattr(s, "scatter", None) for k in module.kernels for _, s in k.statements()
    )

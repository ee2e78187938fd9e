"""The passes `allocate` and `emit`: addresses, rings and counters."""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.passes.emit.rings import RingOwners, claiming_units, ring_uses, sites_of
from ppuc.ir.affine import axis, var
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Buffer, Kernel, Load, Loop, Param, Store, View
from ppuc.ir.module import Module
from ppuc.ir.program import Instr, Program, Queue, RingUse, StreamNode
from ppuc.ir.types import DType, Space
from tests.passes.late_passes import LARGE, TINY, TO_KERNELS, after, checked
from tests.support.pass_graphs import Sketch


def two_layers() -> Graph:
    s = Sketch()
    h = s.op("relu", s.op("add", s.matmul(s.param(70, 20), s.weight(20, 33)), s.weight(33)))
    return s.graph(s.matmul(h, s.weight(33, 7)))


def program_of(module: Module) -> Program:
    assert module.program is not None
    return module.program


def test_kernels_take_l1_from_alternate_ends() -> None:
    module = checked(two_layers())
    first, second = program_of(module).segments[0].kernels
    assert min(r.base for r in first.rings if r.space is Space.L1) == 0
    assert max(r.base + r.slot_bytes * r.depth for r in second.rings if r.space is Space.L1) == TINY.l1.bytes
    rings = [(r.base, r.base + r.slot_bytes * r.depth) for r in first.rings if r.space is Space.L1]
    assert all(a[1] <= b[0] for a, b in zip(sorted(rings), sorted(rings)[1:], strict=False))


def test_a_reader_waits_for_the_blocks_it_touches() -> None:
    module = checked(two_layers())
    segment = program_of(module).segments[0]
    (hidden,) = (g for g in segment.counters if g.tensor == module.graph.ops[-1].operands[0].name and g.kind == "full")
    assert len(hidden.expect) > 1
    second = segment.kernels[1]
    waits = [
        (instr.stmt.src, wait.group, wait.touched)
        for _, body in second.streams
        for instr in flat(body)
        if isinstance(instr.stmt, Load)
        for wait in instr.waits
    ]
    assert ("relu", hidden.name, True) in waits


def flat(body: Sequence[StreamNode]) -> list[Instr]:
    """Instructions of a stream, loops opened."""
    found: list[Instr] = []
    for node in body:
        found += [node] if isinstance(node, Instr) else flat(node.body)
    return found


def idle_units_kernel() -> Kernel:
    """A concat of a long and a short operand: units that the short one gives nothing never claim its ring."""
    s = Sketch()
    module = after(s.graph(s.concat(s.param(4000), s.param(40), axis=0)), TO_KERNELS, LARGE)
    return module.kernels[0]


def test_units_without_an_iteration_claim_nothing() -> None:
    kernel = idle_units_kernel()
    sites = sites_of(kernel)
    units = claiming_units(kernel, sites, ring_uses(kernel, sites)[0], LARGE.cu)
    assert units["t"] == frozenset(range(kernel.units))
    assert units["t.1"] < units["t"]


def sibling_loops(*, carried: bool = False) -> Kernel:
    """Two loops, one after another, that load a tile and store it; with `carried`, the second stores first."""
    view = View.contiguous((8, 4))
    params = (Param("x", "x", DType.F32, view, Space.HBM), Param("y", "y", DType.F32, view, Space.HBM, written=True))

    def loop(name: str, start: int, swapped: bool) -> Loop:
        where = (var(name) + axis(0), axis(1))
        load, store = Load("t", "x", where), Store("y", "t", where)
        return Loop(name, start + 4, 2, (store, load) if swapped else (load, store), start=start)

    body = (loop("i", 0, False), loop("j", 4, carried))
    return Kernel("k", (), params, (Buffer("t", DType.F32, (2, 4), Space.L1, 2),), body)


def test_loops_that_follow_one_another_share_rings_but_no_slots() -> None:
    kernel = sibling_loops()
    uses, queues = ring_uses(kernel, sites_of(kernel))
    assert queues == {"t": (Queue.LOAD, (Queue.STORE,))}
    for number, kinds in enumerate((("claim", "push"), ("wait", "pop"), ("claim", "push"), ("wait", "pop"))):
        assert uses[number] == tuple(RingUse(kind, "t", 1) for kind in kinds)


def test_a_tile_carried_from_one_loop_to_the_next_keeps_its_slot() -> None:
    kernel = sibling_loops(carried=True)
    uses, _ = ring_uses(kernel, sites_of(kernel))
    assert uses[0] == (RingUse("claim", "t", 0),)
    assert {use.level for found in uses.values() for use in found} == {0}


def test_rings_come_after_earlier_holders_on_units_that_did_not_claim_in_between() -> None:
    owners = RingOwners()
    assert owners.take(Space.L1, 0, 100, "a", frozenset(range(8))) == ()
    assert owners.take(Space.L1, 0, 100, "b", frozenset(range(2))) == ("a",)
    assert owners.take(Space.L1, 50, 100, "c", frozenset(range(8))) == ("a", "b")
    assert owners.take(Space.L1, 60, 10, "d", frozenset(range(8))) == ("c",)
    assert owners.take(Space.L1, 0, 50, "e", frozenset(range(8))) == ("a", "b")
    assert owners.take(Space.L1, 40, 20, "f", frozenset(range(8))) == ("c", "e")
    assert owners.take(Space.ACC, 0, 100, "g", frozenset(range(8))) == ()


def test_kernels_hold_their_locations_to_the_last_instruction() -> None:
    module = checked(two_layers())
    assert [k.loc for k in program_of(module).segments[0].kernels] == [k.loc for k in module.kernels]
    assert all(k.loc for k in module.kernels)

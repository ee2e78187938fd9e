"""Measures single kernels on the simulator.

The cost model ranks tilings; measurement decides among the best. The kernel runs alone, with operands in their assigned
memories and available from the start; values are not computed. Invariant: the result depends only on the kernel and the
target.
"""

from __future__ import annotations

from dataclasses import replace

from ppuc.compiler.passes.emit.rings import RingOwners, sites_of
from ppuc.compiler.passes.emit.streams import kernel_program
from ppuc.compiler.passes.memory.allocate import ring_placements
from ppuc.ir.kernel import Kernel, View
from ppuc.ir.program import MemTensor, Program, Segment
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target


def cycles_alone(kernel: Kernel, vectors: tuple[VectorProgram, ...], target: Target) -> float:
    """Cycles from launch to the last store when `kernel` runs alone."""
    from ppuc.targets.simulator.run import simulate  # lazy: loads compiled code

    tensors = _tensors(kernel)
    places = {(p.space, p.name): p for p in ring_placements(kernel, target, from_top=False)}
    alone = kernel_program(kernel, sites_of(kernel), places, RingOwners(), lambda site: ((), ()), target.cu)
    segment = Segment("alone", (alone,), (), ())
    program = Program("alone", target.name, target.hash, tensors, (), (), (segment,))
    return simulate(program, vectors, target, {}, None, check_hazards=False).profile.cycles


def _tensors(kernel: Kernel) -> tuple[MemTensor, ...]:
    """A tensor for each name in the kernel, large enough for its views. All share one address, as no values are
    computed."""
    found: dict[str, MemTensor] = {}
    for p in kernel.params:
        elements = _reach(p.view)
        known = found.get(p.tensor)
        if known is not None:
            found[p.tensor] = replace(known, elements=max(known.elements, elements))
        else:
            found[p.tensor] = MemTensor(p.tensor, p.dtype, elements, p.space, 0, "temp", p.tensor)
    return tuple(found.values())


def _reach(view: View) -> int:
    """Elements that a tensor needs to contain `view`."""
    steps = zip(view.shape, view.strides, strict=True)
    return view.offset + sum(max(0, (size - 1) * stride) for size, stride in steps) + 1

"""The invariants of every level. Verifiers run after every pass and raise VerificationError with all findings.

Module
  M1  inputs name distinct graph parameters, all of them; outputs name graph results.
  M2  kernel names and vector program names are distinct.
  M3  a group that names a kernel names one of the module's.
  M4  a placement has a size and an address of at least 0, no name is placed twice in one memory, and what is placed is
      a value of the graph or, in l1 and acc, a buffer of a kernel.
  M5  the program is for the module's target, and has the module's inputs and outputs.

Graph (a group's body is a graph of its own)
  G1  names consist of letters, digits, `_` and `.`; dimensions are sizes or symbols.
  G2  a value is defined once.
  G3  a value is defined before it is used, in the same graph.
  G4  a use has the type and space of its definition.
  G5  every op has a record.
  G6  attributes are of the record's class, and every field of its declared type.
  G7  the number of operands is one that the record allows.
  G8  result types are what the record infers (except of groups).
  G9  a group and only a group has a body, whose parameters and results have the types of the op's operands and results.

Kernel
  K1  names are well-formed; buffers and parameters, loops, and grid axes are distinct; an axis has at least one unit.
  K2  a buffer lies in l1 or acc, has a depth and no empty axis; a parameter lies elsewhere, its view has a stride a
      dimension and at most 8 dimensions.
  K3  statements name existing buffers and parameters; a stored parameter is marked written.
  K4  in text order, a buffer is written before it is read.
  K5  affines name enclosing loops and existing axes of the tile; bounds, scalars and `start` name loops only.
  K6  an index has one affine a dimension; a tile axis moves along at most one dimension.
  K7  loads and stores move tiles of at most 5 axes between l1 and parameters of the same element type.
  K8  mma reads l1 and accumulates in acc, in f32 (i32 of integers); contracted axes and the product's shape agree.
  K9  vec matches its program: numbers and element types of tiles, scalars, one bound an axis.
  K10 a loop advances; it runs over an axis of the grid, and over each axis once on any path; at most 32 are nested.
  K11 an index list holds integers in l1, one for each position of its tile axis; combinations are known.
  K12 units store disjoint boxes: a store is inside a loop over each grid axis, whose step leaves the box.

Vector program
  V1  names are well-formed and distinct.
  V2  a value is defined before it is used; there is a result.
  V3  every step is an elementwise op, a reduction or a structural step, with the right number of arguments.
  V4  `ints` and `dtype` are what the step's op needs.

Program
  P1  names are distinct in their scope, and well-formed unless of kernels or segments; inputs and outputs name tensors.
  P2  an instruction stands on the queue of its operation.
  P3  ring operations name rings of the kernel and levels within the loops around; claims and pushes stand on the ring's
      producer queue, waits and pops on one of its consumer queues.
  P4  on each queue, claims and pushes, waits and pops alternate, at one level and inside the same loops to that level;
      only a queue that reads what it produces itself, before it pushes, pops without a wait.
  P5  an instruction writes rings that its queue produces and reads rings that it consumes.
  P6  a ring's slots hold its tile; a ring that takes over bytes of an earlier one comes after it.
  P7  a tensor has a place in host, hbm or l2 and a known role; parameters agree with their tensors and stay inside.
  P8  a counter group has one counter a block ("done": one), and groups do not share counters.
  P9  waits and bumps name counter groups; only groups with blocks are `touched`.
  P10 statements obey K2, K3 and K5 to K12.
  P11 copies stay inside both tensors, which hold the same element type.

Not checked here: that boxes are disjoint beyond steps of single loops (K12: index lists are data, and interleaved boxes
are taken as disjoint); that what a wait waits for is ever signalled, or that no wait is missing (the simulator reports
deadlocks and hazards); that a program keeps within the limits of its machine (`ppuc.targets.limits` does), and that
tensors which share bytes are never live together (lifetimes are the allocator's); that tile ranks inside a vector
program fit (they follow from the statement); that a kernel's parameters name graph values (passes may add scratch
tensors).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Kernel
from ppuc.ir.module import Module
from ppuc.ir.program import Program
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram
from ppuc.ir.verify.findings import Finding, Findings
from ppuc.ir.verify.graph import check_graph
from ppuc.ir.verify.kernel import check_kernel
from ppuc.ir.verify.program import check_program
from ppuc.ir.verify.vector import check_vector

__all__ = [
    "Finding",
    "VerificationError",
    "verify_graph",
    "verify_kernel",
    "verify_module",
    "verify_program",
    "verify_vector",
]

_SHOWN = 40


class VerificationError(InternalError):
    """IR that breaks its own rules. `findings` holds all of them; the text shows the first ones."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        shown = [str(f) for f in self.findings[:_SHOWN]]
        more = len(self.findings) - len(shown)
        super().__init__("\n".join([*shown, f"... and {more} more"] if more else shown))


Vectors = Mapping[str, VectorProgram] | Iterable[VectorProgram]


def verify_graph(graph: Graph) -> None:
    """Raise VerificationError unless G1 to G9 hold."""
    findings = Findings()
    check_graph(graph, findings)
    _raise(findings)


def verify_kernel(kernel: Kernel, vectors: Vectors = ()) -> None:
    """Raise VerificationError unless K1 to K12 hold."""
    findings = Findings()
    check_kernel(kernel, _by_name(vectors), findings)
    _raise(findings)


def verify_vector(vector: VectorProgram) -> None:
    """Raise VerificationError unless V1 to V4 hold."""
    findings = Findings()
    check_vector(vector, findings)
    _raise(findings)


def verify_program(program: Program, vectors: Vectors = ()) -> None:
    """Raise VerificationError unless P1 to P11 hold."""
    findings = Findings()
    check_program(program, _by_name(vectors), findings)
    _raise(findings)


def verify_module(module: Module) -> None:
    """Raise VerificationError unless every level and the module as a whole are well-formed."""
    findings = Findings()
    vectors = _by_name(module.vectors)
    check_graph(module.graph, findings)
    for vector in module.vectors:
        check_vector(vector, findings)
    for kernel in module.kernels:
        check_kernel(kernel, vectors, findings)
    if module.program is not None:
        check_program(module.program, vectors, findings)
    _check_module(module, findings)
    _raise(findings)


def _by_name(vectors: Vectors) -> Mapping[str, VectorProgram]:
    return vectors if isinstance(vectors, Mapping) else {v.name: v for v in vectors}


def _raise(findings: Findings) -> None:
    if findings.items:
        raise VerificationError(findings.items)


def _check_module(module: Module, findings: Findings) -> None:
    params = Counter(value for _, value in module.inputs)
    for name, value in module.inputs:
        if params[value] > 1 or value not in {p.name for p in module.graph.params}:
            findings.add("M1", f"input '{name}'", f"%{value} is no parameter of the graph, or an input already")
    for param in module.graph.params:
        if param.name not in params:
            findings.add("M1", f"{param}", "is a parameter of the graph but no input")
    results = {r.name for r in module.graph.results}
    for name, value in module.outputs:
        if value not in results:
            findings.add("M1", f"output '{name}'", f"%{value} is no result of the graph")
    for kind, names in (("kernel", [k.name for k in module.kernels]), ("vector", [v.name for v in module.vectors])):
        for name, count in Counter(names).items():
            if count > 1:
                findings.add("M2", f"{kind} @{name}", "the name is defined twice")
    _check_groups(module, findings)
    _check_placement(module, findings)
    if module.program is not None:
        _check_program_of(module, module.program, findings)


def _check_program_of(module: Module, program: Program, findings: Findings) -> None:
    entity = f"program @{program.name}"
    if (program.target, program.target_hash) != (module.target, module.target_hash):
        findings.add("M5", entity, f"is for target {program.target}, the module for {module.target}")
    if any(finding.rule == "M1" for finding in findings.items):
        return
    for kind in ("inputs", "outputs"):
        has, wanted = ([name for name, _ in getattr(part, kind)] for part in (program, module))
        if has != wanted:
            findings.add(
                "M5", entity, f"has {kind} {', '.join(has) or 'none'}, the module {', '.join(wanted) or 'none'}"
            )


def _check_groups(module: Module, findings: Findings) -> None:
    kernels = {k.name for k in module.kernels}
    for op in module.graph.ops:
        name = getattr(op.attrs, "kernel", "") if op.name == "group" else ""
        if name and name not in kernels:
            findings.add("M3", f"{op.results[0]}", f"there is no kernel @{name}")


def _check_placement(module: Module, findings: Findings) -> None:
    if not module.placement:
        return
    placed: set[tuple[str, str]] = set()
    values = {v.name for v in module.graph.params} | {r.name for op in module.graph.ops for r in op.results}
    buffers = {(b.space, f"{kernel.name}/{b.name}") for kernel in module.kernels for b in kernel.buffers}
    for place in module.placement:
        key = (place.name, place.space.value)
        if key in placed:
            findings.add("M4", f"'{place.name}'", f"is placed twice in {place.space}")
        placed.add(key)
        if place.space in (Space.L1, Space.ACC):
            if (place.space, place.name) not in buffers:
                findings.add("M4", f"'{place.name}'", f"is no buffer of a kernel in {place.space}")
        elif place.name not in values:
            findings.add("M4", f"'{place.name}'", "is no value of the graph")
        if place.address < 0 or place.bytes < 0:
            findings.add("M4", f"'{place.name}'", f"{place.bytes} bytes at {place.address} is no place")

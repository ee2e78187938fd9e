"""The invariants of every level. Verifiers run after every pass and raise VerificationError with all findings.

Each module of this package begins with the numbered invariants that it checks: `module` M1 to M5, `graph` G1 to G9,
`kernel` K1 to K12, `vector` V1 to V4, `program` P1 to P12.

Not checked here: that boxes are disjoint beyond steps of single loops (K12: index lists are data, and interleaved boxes
are assumed disjoint); that every wait is eventually signalled, and that no wait is missing (the simulator reports
deadlocks and hazards); target limits (`ppuc.targets.limits` checks them); that tensors which share bytes have disjoint
live ranges (the allocator ensures it); tile ranks inside a vector program (they follow from the statement); that a
kernel's parameters name graph values (passes may add scratch tensors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Kernel
from ppuc.ir.module import Module
from ppuc.ir.program import Program
from ppuc.ir.vector import VectorProgram
from ppuc.ir.verify.findings import Checked, Finding, Findings
from ppuc.ir.verify.graph import check_graph
from ppuc.ir.verify.kernel import check_kernel
from ppuc.ir.verify.module import check_module
from ppuc.ir.verify.program import check_program
from ppuc.ir.verify.vector import check_vector

__all__ = [
    "Checked",
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
    """IR that violates its invariants. `findings` holds all violations; the text shows the first ones."""

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
    """Raise VerificationError unless P1 to P12 hold."""
    findings = Findings()
    check_program(program, _by_name(vectors), findings)
    _raise(findings)


def verify_module(module: Module, checked: Checked | None = None) -> None:
    """Raise VerificationError unless every level and the module as a whole are well-formed. `checked` remembers the
    module: the next one that is verified with it is checked where it differs."""
    findings = Findings(checked)
    vectors = _by_name(module.vectors)
    findings.checked.begin(module.vectors)
    check_graph(module.graph, findings)
    for vector in module.vectors:
        check_vector(vector, findings)
    for kernel in module.kernels:
        if not findings.checked.holds(kernel):
            check_kernel(kernel, vectors, findings)
    if module.program is not None:
        check_program(module.program, vectors, findings)
    check_module(module, findings)
    _raise(findings)
    findings.checked.end()


def _by_name(vectors: Vectors) -> Mapping[str, VectorProgram]:
    return vectors if isinstance(vectors, Mapping) else {v.name: v for v in vectors}


def _raise(findings: Findings) -> None:
    if findings.items:
        raise VerificationError(findings.items)

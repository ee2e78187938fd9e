"""The kernels of a program for reports: loops over tiles, vector programs, rings, streams, and tensors they access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ppuc.ir.kernel import Kernel, Loop, Stmt, Vec
from ppuc.ir.module import Module
from ppuc.ir.program import Program
from ppuc.ir.text.print_kernel import print_kernel, print_vector
from ppuc.ir.text.print_program import print_kernel_program
from ppuc.ir.types import TensorType


def kernel_records(program: Program, modules: Sequence[Module]) -> dict[str, dict[str, Any]]:
    """By name: ONNX nodes, tensors read and written, streams as text, and from `modules`, where the compilation was
    watched, the kernel and its vector programs as text (else null)."""
    lowered = {kernel.name: (kernel, module) for module in modules for kernel in module.kernels}
    return {
        kernel.name: {
            "loc": list(kernel.loc),
            "reads": list(dict.fromkeys(p.tensor for p in kernel.params if not p.written)),
            "writes": list(dict.fromkeys(p.tensor for p in kernel.params if p.written)),
            "streams": print_kernel_program(kernel),
            "loops": _loops(*lowered[kernel.name]) if kernel.name in lowered else None,
        }
        for segment in program.segments
        for kernel in segment.kernels
    }


def _loops(kernel: Kernel, module: Module) -> str:
    used = set(_vectors(kernel.body))
    return print_kernel(kernel) + "".join("\n" + print_vector(v) for v in module.vectors if v.name in used)


def _vectors(body: Sequence[Stmt]) -> Iterator[str]:
    for stmt in body:
        if isinstance(stmt, Loop):
            yield from _vectors(stmt.body)
        elif isinstance(stmt, Vec):
            yield stmt.program


def tensor_records(program: Program) -> dict[str, dict[str, Any]]:
    """By name: type, memory, role, bytes, the tensor of the model that each tensor of the program holds, and the tensor
    that a copy fills it from (null: kernels write it)."""
    copied = {copy.dst: copy.src for segment in program.segments for copy in segment.copies}
    return {
        t.name: {
            "type": str(TensorType(t.dtype, (t.elements,))),
            "space": str(t.space),
            "role": t.role,
            "bytes": t.bytes,
            "source": t.source,
            "copy_of": copied.get(t.name),
        }
        for t in program.tensors
    }

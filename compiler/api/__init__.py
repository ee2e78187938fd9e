"""Compile ONNX models for a PPU-class accelerator and simulate them.

    program = ppuc.compile("net.onnx", precision="bf16", dims={"N": 1})
    program.save("net.ppu")
    result = program.run({"x": array})          # result.outputs, result.profile
    ppuc.verify(program, {"x": array}).ok       # against ONNX Runtime

Invariant: importing this package imports nothing else of ppuc; each name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppuc.compiler import onnx_backend
    from ppuc.compiler.entry import compile, load, verify
    from ppuc.compiler.host.registry import host_op
    from ppuc.compiler.program.compiled import CompiledProgram, ProgramResult
    from ppuc.compiler.verification import Verification
    from ppuc.compiler.version import VERSION as __version__  # noqa: N811 - the name that packages use
    from ppuc.ir.errors import InternalError, PpucError

_HOMES = {
    "CompiledProgram": ("ppuc.compiler.program.compiled", "CompiledProgram"),
    "InternalError": ("ppuc.ir.errors", "InternalError"),
    "PpucError": ("ppuc.ir.errors", "PpucError"),
    "ProgramResult": ("ppuc.compiler.program.compiled", "ProgramResult"),
    "Verification": ("ppuc.compiler.verification", "Verification"),
    "__version__": ("ppuc.compiler.version", "VERSION"),
    "compile": ("ppuc.compiler.entry", "compile"),
    "host_op": ("ppuc.compiler.host.registry", "host_op"),
    "load": ("ppuc.compiler.entry", "load"),
    "onnx_backend": ("ppuc.compiler.onnx_backend", ""),
    "verify": ("ppuc.compiler.entry", "verify"),
}

__all__ = [
    "CompiledProgram",
    "InternalError",
    "PpucError",
    "ProgramResult",
    "Verification",
    "__version__",
    "compile",
    "host_op",
    "load",
    "onnx_backend",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppuc' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute) if attribute else import_module(module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""The functions of `import ppuc`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppuc.compiler.driver import compile_model
from ppuc.compiler.runtime import CompiledProgram, load_program
from ppuc.compiler.verification import Verification, verify_program
from ppuc.targets.description import Target

if TYPE_CHECKING:
    import onnx


def compile(
    source: str | Path | onnx.ModelProto,
    target: str | Target = "",
    precision: str = "model",
    dims: Mapping[str, int] | None = None,
    *,
    dump: str | Path | None = None,
) -> CompiledProgram:
    """Compile an ONNX model (a path or a ModelProto). `target` is a built-in name, a .toml path or a Target ("": the
    default one); `precision` one of model, fp32, bf16, fp16; `dims` binds symbolic dimensions; `dump` is a folder for
    the program after every pass. Raises PpucError."""
    folder = Path(dump) if dump is not None else None
    made = compile_model(source, target=target, precision=precision, dims=dims, dump=folder)
    return CompiledProgram(made.artifact, made.target, source, made.passes)


def load(path: str | Path, target: Target | None = None) -> CompiledProgram:
    """Load a `.ppu` file. `target` replaces the machine it names. Raises PpucError."""
    return load_program(path, target)


def verify(
    program: CompiledProgram, inputs: Mapping[str, np.ndarray] | None = None, *, layers: bool = False
) -> Verification:
    """Run `program` and ONNX Runtime on the same inputs (seeded random ones when None) and compare the outputs, and
    with `layers` the inner tensors. Raises PpucError."""
    return verify_program(program, inputs, layers)

"""The functions of `import ppuc`.

Invariant: each loads what it needs when it is called, so a program that is only loaded and run waits for no compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from ppuc.compiler.runtime import CompiledProgram
    from ppuc.compiler.verification import Verification
    from ppuc.targets.description import Target


def compile(
    source: str | Path | onnx.ModelProto,
    target: str | Target = "",
    precision: str = "model",
    dims: Mapping[str, int] | None = None,
    *,
    calibrate: str | Path | Iterable[Mapping[str, np.ndarray]] | None = None,
    policy: str | Path | None = None,
    alias: Mapping[str, str] | None = None,
    dump: str | Path | None = None,
) -> CompiledProgram:
    """Compile an ONNX model (a path or a ModelProto). `target` is a built-in name, a .toml path or a Target ("": the
    default one); `precision` one of model, fp32, bf16, fp16, fp8, int8, mixed; `dims` binds symbolic dimensions; `dump`
    is a folder for the program after every pass. Precisions fp8 and int8 take scales from samples: `calibrate` is an
    .npz, a folder, or an iterable of dicts of arrays; `policy` is a file that decides every layer. `alias` names, by
    input, the output that is this input with something appended and shares its memory (a cache of keys or values).
    Raises PpucError."""
    from ppuc.compiler.driver import compile_model
    from ppuc.compiler.quantization.data import Data
    from ppuc.compiler.quantization.quantize import Quantization
    from ppuc.compiler.runtime import CompiledProgram

    folder = Path(dump) if dump is not None else None
    data = Data(calibrate) if calibrate is not None else None
    how = Quantization(data, Path(policy) if policy is not None else None)
    made = compile_model(
        source, target=target, precision=precision, dims=dims, quantization=how, aliases=alias, dump=folder
    )
    return CompiledProgram(made.artifact, made.target, source, made.passes)


def load(path: str | Path, target: Target | None = None) -> CompiledProgram:
    """Load a `.ppu` file. `target` replaces the machine it names. Raises PpucError."""
    from ppuc.compiler.runtime import load_program

    return load_program(path, target)


def verify(
    program: CompiledProgram, inputs: Mapping[str, np.ndarray] | None = None, *, layers: bool = False
) -> Verification:
    """Run `program` and ONNX Runtime on the same inputs (seeded random ones when None) and compare the outputs, and
    with `layers` the inner tensors. Raises PpucError."""
    from ppuc.compiler.verification import verify_program

    return verify_program(program, inputs, layers)

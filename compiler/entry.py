"""The functions of `import ppuc`.

Invariant: each loads what it needs when it is called, so a program that is only loaded and run waits for no compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from ppuc.compiler.pipeline.manager import CompiledModel
    from ppuc.compiler.runtime import CompiledProgram
    from ppuc.compiler.variants import Variants
    from ppuc.compiler.verification import Verification
    from ppuc.targets.description import Target


def compile(
    source: str | Path | onnx.ModelProto,
    target: str | Target = "",
    precision: str = "model",
    dims: Mapping[str, int | Sequence[int]] | None = None,
    *,
    calibrate: str | Path | Iterable[Mapping[str, np.ndarray]] | None = None,
    policy: str | Path | None = None,
    alias: Mapping[str, str] | None = None,
    tune: int = 1,
    pad: Sequence[str] = (),
    values: Mapping[str, np.ndarray] | None = None,
    host: bool = True,
    host_ops: Sequence[str | Path] = (),
    dump: str | Path | None = None,
) -> CompiledProgram:
    """Compile an ONNX model (a path or a ModelProto). `target` is a built-in name, a .toml path or a Target ("": the
    default one); `precision` one of model, fp32, bf16, fp16, fp8, int8, mixed; `dims` binds symbolic dimensions; `dump`
    is a folder for the program after every pass. Precisions fp8 and int8 take scales from samples: `calibrate` is an
    .npz, a folder, or an iterable of dicts of arrays; `policy` is a file that decides every layer. `alias` names, by
    input, the output that is this input with something appended and shares its memory (a cache of keys or values);
    `tune` is how many tilings of each matmul and convolution are measured.

    Several sizes of a dimension (`dims={"batch": (1, 8)}`) give a program for each combination; a run takes the one for
    its inputs, padding those of dimensions in `pad` to the next size. `values` are those of inputs that may be fixed,
    because sizes or axes depend on them. With `host`, what the PPU cannot run goes to the host; `host_ops` are Python
    files with functions for ops that nobody else knows (`host_op`). Raises PpucError."""
    from ppuc.compiler.driver import compile_model
    from ppuc.compiler.quantization.data import Data
    from ppuc.compiler.quantization.quantize import Quantization
    from ppuc.compiler.runtime import CompiledProgram
    from ppuc.compiler.variants import combinations

    folder = Path(dump) if dump is not None else None
    data = Data(calibrate) if calibrate is not None else None
    how = Quantization(data, Path(policy) if policy is not None else None)
    choices = combinations({n: [s] if isinstance(s, int) else list(s) for n, s in (dims or {}).items()})
    every = [
        compile_model(
            source,
            target=target,
            precision=precision,
            dims=sizes,
            quantization=how,
            aliases=alias,
            tune=tune,
            values=values,
            host=host,
            host_ops=host_ops,
            dump=folder,
        )
        for sizes in choices
    ]
    found = variants_of(source, choices, every, pad)
    made = every[0]
    return CompiledProgram(made.artifact, made.target, source, made.passes, tuple(host_ops), found, made.quantized)


def variants_of(
    source: str | Path | onnx.ModelProto,
    choices: Sequence[Mapping[str, int]],
    made: Sequence[CompiledModel],
    pad: Sequence[str],
) -> Variants | None:
    """What one model compiled for several choices of sizes makes; None for a single one. Raises UsageError when `pad`
    names a dimension that has not several sizes."""
    from ppuc.compiler.frontend.expose import symbols_of
    from ppuc.compiler.variants import Variant, Variants
    from ppuc.ir.errors import UsageError

    for name in pad:
        if len({sizes.get(name) for sizes in choices}) < 2:
            raise UsageError.of("--pad", f"dimension '{name}' has not several sizes", hint=f"as in --dim {name}=1,8")
    if len(choices) == 1:
        return None
    every = tuple(Variant(dict(s), m.artifact, m.quantized) for s, m in zip(choices, made, strict=True))
    return Variants(every, tuple(pad), symbols_of(source))


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

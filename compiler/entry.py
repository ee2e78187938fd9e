"""The functions of `import ppuc`.

Invariant: each function imports its dependences when called, so loading and running a program does not import the
compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from ppuc.compiler.options import CompileOptions, Instrumentation
    from ppuc.compiler.program.compiled import CompiledProgram
    from ppuc.compiler.verification import Verification
    from ppuc.targets.description import Target


def compile(
    source: str | Path | onnx.ModelProto,
    target: str | Target = "",
    precision: str = "model",
    dims: Mapping[str, int | Sequence[int]] | None = None,
    *,
    calibrate: str | Path | Iterable[Mapping[str, np.ndarray]] | None = None,
    preprocess: str | Path | None = None,
    policy: str | Path | None = None,
    force: bool = False,
    alias: Mapping[str, str] | None = None,
    tune: int = 1,
    pipeline: str = "default",
    disable_passes: Sequence[str] = (),
    pad: Sequence[str] = (),
    values: Mapping[str, np.ndarray] | None = None,
    host: bool = True,
    host_ops: Sequence[str | Path] = (),
    dump: str | Path | None = None,
    lenient: bool = False,
) -> CompiledProgram:
    """Compile an ONNX model (a path or a ModelProto). `target` is a built-in name, a .toml path or a Target ("": the
    default one); `precision` is one of model, fp32, bf16, fp16, fp8, int8, 8bit, mixed, mxfp8, mxfp4, nvfp4; `dims`
    binds symbolic dimensions; `dump` is a folder for the program after every pass. Precisions fp8, int8 and 8bit take
    scales from samples: `calibrate` is an .npz, a folder, or an iterable of dicts of arrays; `preprocess` is a TOML
    file that says how the model wants the images of a folder; an output that held-out samples show to be ruined is an
    error, unless with `force`. `policy` is a file with the format of every layer. `alias` maps an input to the output
    that extends it and shares its memory (a key or value cache); `tune` is the number of tilings of each matmul and
    convolution to measure. `pipeline` names the passes (`ppuc passes` lists pipelines), `disable_passes` are passes to
    disable.

    Several sizes of a dimension (`dims={"batch": (1, 8)}`) give a program for each combination; a run selects the one
    for its inputs, padding those of dimensions in `pad` to the next size. `values` are values of inputs that may be
    fixed, because sizes or axes depend on them. With `host`, nodes that the PPU cannot run go to the host; `host_ops`
    are Python files with functions for custom ops (`host_op`). A model that violates ONNX is refused; `lenient` accepts
    it with its most likely meaning, with a warning for each violation. Raises PpucError."""
    from ppuc.compiler.options import CompileOptions, HostPolicy, Instrumentation, Quantization
    from ppuc.compiler.program.variants import combinations
    from ppuc.compiler.quantization.data import Data
    from ppuc.compiler.quantization.images import read_preprocessing
    from ppuc.ir.errors import UsageError
    from ppuc.targets.description import resolve_target

    if calibrate is None and preprocess is not None:
        raise UsageError.of("preprocess", "has no effect without calibrate")
    how = read_preprocessing(Path(preprocess)) if preprocess is not None else None
    data = Data(calibrate, how) if calibrate is not None else None
    options = CompileOptions(
        resolve_target(target),
        precision,
        values=values or {},
        aliases=alias or {},
        tune=tune,
        pipeline=pipeline,
        disabled=tuple(disable_passes),
        quantization=Quantization(data, Path(policy) if policy is not None else None, force=force),
        host=HostPolicy(host, tuple(map(Path, host_ops))),
        lenient=lenient,
    )
    choices = combinations(_sizes(dims))
    watch = Instrumentation(dump=Path(dump) if dump is not None else None)
    return compile_program(source, options, watch, choices, pad)


def _sizes(dims: Mapping[str, int | Sequence[int]] | None) -> dict[str, list[int]]:
    """The sizes of each dimension. Raises UsageError unless they are whole numbers."""
    from ppuc.ir.errors import UsageError

    expected = "a whole number, or several, by name, as in {'batch': 1}"
    if not isinstance(dims or {}, Mapping):
        raise UsageError.of("dims", "are not a dict", got=type(dims).__name__, expected=expected)
    found: dict[str, list[int]] = {}
    for name, given in (dims or {}).items():
        sizes: list[Any] = list(given) if isinstance(given, list | tuple | range) else [given]
        if not sizes or not all(hasattr(s, "__index__") and not isinstance(s, bool) for s in sizes):
            what = f"the size of '{name}' is not a whole number"
            raise UsageError.of("dims", what, got=repr(given), expected=expected)
        found[str(name)] = [int(s) for s in sizes]
    return found


def compile_program(
    source: str | Path | onnx.ModelProto,
    options: CompileOptions,
    watch: Instrumentation | None = None,
    choices: Sequence[Mapping[str, int]] = (),
    pad: Sequence[str] = (),
) -> CompiledProgram:
    """Compile an ONNX model, for each of `choices` of sizes instead of `options.dims` when there are several; a run may
    pad inputs along the dimensions `pad`. What each choice is dumped into is a folder called after its sizes; only the
    first is watched, and its quantization studied. Raises PpucError."""
    from ppuc.compiler.driver import compile_model
    from ppuc.compiler.frontend.conformance.check import conforming
    from ppuc.compiler.options import UNWATCHED
    from ppuc.compiler.program.compiled import CompiledProgram

    watch = watch or UNWATCHED
    choices = choices or (options.dims,)
    check_pad(pad, choices)
    model = conforming(source, options.lenient, watch.warn)
    if len(choices) == 1:
        options = replace(options, dims=choices[0])
        made = compile_model(model, options, watch)
        return CompiledProgram(made.artifact, options, source, made.passes, quantized=made.quantized)
    from ppuc.compiler.frontend.expose import symbols_of
    from ppuc.compiler.program.variants import Variant, Variants

    every = []
    for number, sizes in enumerate(choices):
        named = ",".join(f"{name}={size}" for name, size in sizes.items())
        own = watch.within(named)
        own = replace(own, studied=None, seen=None) if number else own
        made = compile_model(model, replace(options, dims=sizes), own)
        every.append(Variant(dict(sizes), made.artifact, made.passes, made.quantized))
    first = every[0]
    variants = Variants(tuple(every), tuple(pad), symbols_of(source))
    return CompiledProgram(first.artifact, options, source, first.passes, variants, first.quantized)


def check_pad(pad: Sequence[str], choices: Sequence[Mapping[str, int]]) -> None:
    """Raise UsageError if `pad` names a dimension without several sizes."""
    from ppuc.ir.errors import UsageError

    for name in pad:
        if len({sizes.get(name) for sizes in choices}) < 2:
            raise UsageError.of(
                "--pad", f"dimension '{name}' does not have several sizes", hint=f"as in --dim {name}=1,8"
            )


def load(path: str | Path, target: Target | None = None, *, host_ops: Sequence[str | Path] = ()) -> CompiledProgram:
    """Load a `.ppu` file. `target` overrides the recorded one; `host_ops` are the files that it was compiled with.
    Raises PpucError."""
    from ppuc.compiler.options import HostPolicy
    from ppuc.compiler.program.compiled import load_program

    return load_program(path, target, HostPolicy(ops=tuple(map(Path, host_ops))))


def verify(
    program: CompiledProgram, inputs: Mapping[str, np.ndarray] | None = None, *, layers: bool = False
) -> Verification:
    """Run `program` and ONNX Runtime on the same inputs (seeded random ones when None) and compare the outputs, and
    with `layers` the inner tensors. Raises PpucError."""
    from ppuc.compiler.verification import verify_program

    return verify_program(program, inputs, layers)

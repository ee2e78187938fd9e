"""From a model file to an artifact: the pipeline for what the PPU runs, host steps for what it does not.

Invariant: a model is refused only when neither can run it, and then for the PPU's reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppuc.compiler.alias import aliased
from ppuc.compiler.host.request import HostedRequest
from ppuc.compiler.inputs import (
    FIXED,
    RANGE_OPTION,
    checked_inputs,
    fixed_text,
    generate_all,
    input_ranges,
    input_specs,
)
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.dump import DumpFolder
from ppuc.compiler.pipeline.layers import PLACE, keeping_layers
from ppuc.compiler.pipeline.manager import CompiledModel, Progress, Run
from ppuc.compiler.pipeline.recheck import Recheck
from ppuc.compiler.precisions import PRECISIONS, named_precision
from ppuc.ir.errors import Diagnostic, ModelError, PpucError, UsageError
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.targets.description import Target, load_target

if TYPE_CHECKING:
    import onnx

    from ppuc.compiler.frontend.hosting import HostNode
    from ppuc.compiler.frontend.load import ImportedModel
    from ppuc.compiler.host.client import HostWorker
    from ppuc.compiler.host.quantize import PartsQuantizer
    from ppuc.compiler.quantization.quantize import Quantization


@dataclass(frozen=True, slots=True)
class Examination:
    """The graphs that the PPU would run, the host's nodes, those that are compiled when the program runs, those that
    nobody can run, and what else stands in the way."""

    graphs: tuple[Graph, ...] = ()
    host: tuple[HostNode, ...] = ()
    later: tuple[HostNode, ...] = ()
    refused: tuple[HostNode, ...] = ()
    problems: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class FirstModule:
    """What the passes start from. `quantized` is the module with its layers quantized and no memory shared yet; None at
    precisions that quantize nothing."""

    module: Module
    quantized: Module | None = None


def import_model(
    run: Run,
    source: str | Path | onnx.ModelProto,
    precision: str,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    aliases: Mapping[str, str] | None = None,
    quantization: Quantization | None = None,
) -> FirstModule:
    """Import `source` for `run`, which records it as the step `import`, and quantize its layers at a precision that
    asks for it: the step `quantize`. Raises ModelError and UsageError."""
    from ppuc.compiler.frontend.load import load_model

    started = run.begin("import")
    if quantization is not None:
        shapes = {**quantization.shapes(source, dims or {}), **(shapes or {})}
    imported = load_model(source, dims=dims, shapes=shapes, values=values)
    module = initial_module(imported, run.target, precision)
    if not PRECISIONS[precision].quantized:
        return FirstModule(run.started(aliased(module, aliases or {}), since=started))
    run.started(module, since=started)
    from ppuc.compiler.quantization.quantize import quantized_module

    started = run.begin("quantize")
    quantized = quantized_module(module, run.target, quantization)
    return FirstModule(run.started(aliased(quantized, aliases or {}), "quantize", started), quantized)


def initial_module(imported: ImportedModel, target: Target, precision: str) -> Module:
    """The module that the first pass sees. Its options hold whatever later levels need to know of the model."""
    ranges = input_ranges(imported.graph)
    options = {"model": imported.name, "model_sha256": imported.digest(), "precision": precision}
    options |= {RANGE_OPTION + name: str(ranges[v.name]) for name, v in imported.inputs if v.name in ranges}
    options |= {FIXED + name: fixed_text(array) for name, array in imported.fixed.items()}
    return Module(
        target=target.name,
        target_hash=target.hash,
        options=tuple(sorted(options.items())),
        inputs=tuple((name, value.name) for name, value in imported.inputs),
        outputs=tuple((name, value.name) for name, value in imported.outputs),
        graph=imported.graph,
    )


def compile_model(
    source: str | Path | onnx.ModelProto,
    *,
    target: str | Target = "",
    precision: str = "model",
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dump: Path | None = None,
    check_passes: bool = False,
    inputs: Mapping[str, np.ndarray] | None = None,
    keep_layers: bool = False,
    quantization: Quantization | None = None,
    aliases: Mapping[str, str] | None = None,
    tune: int = 1,
    progress: Progress | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    host: bool = True,
    host_ops: Sequence[str | Path] = (),
) -> CompiledModel:
    """Compile an ONNX model. `quantization` says how layers are quantized at precisions fp8, int8 and mixed (None:
    all of them, activation scales computed at run time). `aliases` names, by input, the output that shares its memory.
    `tune` is how many tilings of each matmul and convolution are measured on the simulator. `check_passes` re-executes
    the module after every pass on `inputs` (by ONNX name; random ones when None). `keep_layers` makes the result of
    every kernel an output. `values` are those of inputs that may be fixed: the ones that sizes depend on are. What the
    PPU cannot run goes to the host, with `host`; `host_ops` are Python files with functions for ops that nobody else
    knows. Raises ModelError, UsageError, TargetError or CapacityError for what the caller can mend, DivergenceError
    when a pass changed the model's values."""
    from ppuc.compiler.frontend.scope import ExpansionError
    from ppuc.compiler.passes.tile import Tile
    from ppuc.compiler.pipeline.default import PIPELINE

    machine = resolve_target(target)
    named_precision(precision)
    passes = keeping_layers(PIPELINE) if keep_layers else PIPELINE
    if tune > 1:
        passes = tuple(replace(step, tries=tune) if isinstance(step, Tile) else step for step in passes)
    run = Run(machine, passes, DumpFolder(dump) if dump is not None else None, progress)
    try:
        first = import_model(run, source, precision, dims, shapes, values, aliases, quantization)
        made = _compiled(run, first.module, precision, check_passes, inputs)
        return replace(made, quantized=first.quantized)
    except ModelError as error:
        if not host or isinstance(error, ExpansionError):
            raise
        if quantization is not None:
            shapes = {**quantization.shapes(source, dims or {}), **(shapes or {})}
        request = HostedRequest(
            source, machine, precision, dims or {}, shapes or {}, values or {}, aliases or {}, keep_layers
        )
        return _hosted(request, error, passes, host_ops, dump, progress, check_passes, quantization)


def _compiled(
    run: Run, module: Module, precision: str, check_passes: bool, inputs: Mapping[str, np.ndarray] | None
) -> CompiledModel:
    if check_passes:
        specs = input_specs(module)
        arrays = checked_inputs(specs, inputs, "--inputs") if inputs is not None else generate_all(specs)
        run.recheck = Recheck(module, arrays, precision)
    return run.to_end(module)


def _hosted(
    request: HostedRequest,
    error: ModelError,
    passes: Sequence[Pass],
    host_ops: Sequence[str | Path],
    dump: Path | None,
    progress: Progress | None,
    check_passes: bool,
    quantization: Quantization | None,
) -> CompiledModel:
    """The model with the help of the host; `error` is why it cannot do without."""
    from ppuc.compiler.host.client import worker
    from ppuc.compiler.host.compile import compile_hosted

    def compile_part(module: Module, number: int) -> CompiledModel:
        folder = dump if dump is None or number == 0 else dump / f"segment{number}"
        run = Run(request.target, passes, DumpFolder(folder) if folder is not None else None, progress)
        return _compiled(run, run.started(module), request.precision, check_passes, None)

    hosts = worker(host_ops)
    artifact, made = compile_hosted(request, error, hosts, compile_part, _quantizer(request, quantization, hosts))
    records = tuple(
        replace(p, name=f"segment {n}: {p.name}" if n else p.name) for n, m in enumerate(made) for p in m.passes
    )
    modules = tuple(m.module for m in made if m.module is not None)
    return CompiledModel(modules[0] if modules else None, artifact, request.target, records, modules)


def _quantizer(request: HostedRequest, how: Quantization | None, hosts: HostWorker) -> PartsQuantizer | None:
    """What quantizes the parts of a model with host steps; None when nothing is quantized."""
    if not PRECISIONS[request.precision].quantized:
        return None
    from ppuc.compiler.host.quantize import PartsQuantizer
    from ppuc.compiler.quantization.quantize import Quantization

    return PartsQuantizer(request.target, request.precision, how or Quantization(), hosts)


def examine(request: HostedRequest, host_ops: Sequence[str | Path] = ()) -> Examination:
    """What compiling would meet, found by importing and running the passes before placing: everything short of whether
    tiles fit. Raises UsageError when sizes do not suit the model."""
    from ppuc.compiler.frontend.scope import ExpansionError
    from ppuc.compiler.host.client import worker
    from ppuc.compiler.host.compile import divided
    from ppuc.compiler.host.partition import HostPart
    from ppuc.compiler.pipeline.default import PIPELINE

    at = next(i for i, step in enumerate(PIPELINE) if step.name == PLACE)

    def passed(module: Module, number: int = 0) -> Graph:
        Run(request.target, PIPELINE[:at]).run(module)
        return module.graph

    try:
        try:
            first = Run(request.target, PIPELINE[:at])
            return Examination((passed(import_model(first, *request.imports).module),))
        except ModelError as error:
            if isinstance(error, ExpansionError):
                raise
            hosts = worker(host_ops)
            change = _quantizer(request, None, hosts)
            _, parts, graphs = divided(request, error, hosts, passed, change, examining=True)
            nodes = [n for p in parts if isinstance(p, HostPart) for n in p.nodes]
            host = tuple(n for n in nodes if not n.later and not n.refused)
            later, refused = (tuple(n for n in nodes if getattr(n, kind)) for kind in ("later", "refused"))
            return Examination(tuple(graphs), host, later, refused)
    except PpucError as error:
        if isinstance(error, UsageError):
            raise
        return Examination(problems=error.diagnostics)


def resolve_target(target: str | Target) -> Target:
    """The target of that name or file; the default one for ""."""
    if isinstance(target, Target):
        return target
    from ppuc.targets.description import default_target

    return load_target(target or default_target())

"""Compiles a model file into an artifact: the pipeline for the PPU's part, host steps for the rest.

Invariant: a model is refused only if neither side can run it, with the PPU's reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ppuc.compiler.alias import aliased
from ppuc.compiler.inputs import (
    RANGE_OPTION,
    checked_inputs,
    default_values,
    fixed_values,
    generate_all,
    input_ranges,
    input_specs,
    out_of_range,
    values_text,
    without_fixed,
)
from ppuc.compiler.options import UNWATCHED, CompileOptions, Instrumentation
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.pipeline.collection import rare_collections
from ppuc.compiler.pipeline.dump import DumpFolder, segment_folder
from ppuc.compiler.pipeline.layers import PLACE
from ppuc.compiler.pipeline.manager import CompiledModel, PassRecord, QuantizedModule, Run
from ppuc.compiler.pipeline.packed_remarks import with_remarks
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.compiler.precisions import PRECISIONS
from ppuc.ir.errors import Diagnostic, ModelError, PpucError, UsageError
from ppuc.ir.graph import Graph
from ppuc.ir.interpret import OutOfRangeError
from ppuc.ir.module import Module

if TYPE_CHECKING:
    from ppuc.compiler.frontend.load import ImportedModel
    from ppuc.compiler.frontend.offload.hosting import HostNode
    from ppuc.compiler.frontend.offload.load_hosted import HostedModel
    from ppuc.compiler.frontend.source import ModelSource, Source
    from ppuc.compiler.host.partition import Part
    from ppuc.compiler.host.quantize import PartsQuantizer


@dataclass(frozen=True, slots=True)
class Examination:
    """The graphs for the PPU, the host's nodes, nodes compiled at run time, refused nodes, and other errors."""

    graphs: tuple[Graph, ...] = ()
    host: tuple[HostNode, ...] = ()
    deferred: tuple[HostNode, ...] = ()
    refused: tuple[HostNode, ...] = ()
    problems: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class FirstModule:
    """The initial module of the passes. `quantized` is the model with quantized layers, before aliasing; None at
    precisions without quantization."""

    module: Module
    quantized: QuantizedModule | None = None


def import_model(
    run: Run, source: ModelSource, options: CompileOptions, watch: Instrumentation = UNWATCHED
) -> FirstModule:
    """Import `source` for `run`, which records it as the step `import`, and quantize its layers at a precision that
    asks for it: the step `quantize`. Raises ModelError and UsageError."""
    from ppuc.compiler.frontend.load import load_model

    quantizes = PRECISIONS[options.precision].quantized

    def first() -> Module:
        own = with_shapes_of_data(options, source)
        imported = load_model(source, dims=own.dims, shapes=own.shapes, values=own.values)
        _remark_values(imported)
        module = initial_module(imported, own)
        return module if quantizes else aliased(module, options.aliases)

    if not quantizes:
        return FirstModule(run.before("import", first))
    from ppuc.compiler.quantization.quantize import quantized_module

    step = Quantize.then_sharing(options.aliases)
    run.prior = (step,)
    module = run.before("import", first)
    made: list[QuantizedModule] = []

    def quantized() -> Module:
        made.append(quantized_module(module, options, watch, run.dump.folder if run.dump is not None else None))
        return aliased(made[0].module, options.aliases)

    return FirstModule(run.before(step.name, quantized, done=(step,)), made[0])


def _remark_values(imported: ImportedModel) -> None:
    """Remark on inputs whose values the program depends on."""
    if (remarks := listener()) is not None:
        for name in imported.fixed:
            remarks.note("fixed", name, (), "sizes or branches depend on this input: it is a constant of the program")
        for name in imported.defaults:
            remarks.note("default", name, (), "an initializer that is an input: its value in the file unless given")


def with_shapes_of_data(options: CompileOptions, source: ModelSource) -> CompileOptions:
    """`options` with open dimensions bound to the shapes of calibration data. Raises ModelError, InputError."""
    data = options.quantization.data
    if data is None:
        return options
    from ppuc.compiler.frontend.bind import declarations_of

    found = data.shapes({d.name: d.shape for d in declarations_of(source, overridable=True)}, options.dims)
    return replace(options, shapes={**found, **options.shapes})


def initial_module(imported: ImportedModel, options: CompileOptions) -> Module:
    """The module before the first pass. Its options hold everything that later levels need to know about the model."""
    ranges = input_ranges(imported.graph)
    about = {"model": imported.name, "model_sha256": imported.digest(), **options.recorded()}
    about |= {RANGE_OPTION + name: str(ranges[v.name]) for name, v in imported.inputs if v.name in ranges}
    about |= values_text(imported.fixed, imported.defaults)
    return Module(
        target=options.target.name,
        target_hash=options.target.hash,
        options=tuple(sorted(about.items())),
        inputs=tuple((name, value.name) for name, value in imported.inputs),
        outputs=tuple((name, value.name) for name, value in imported.outputs),
        graph=imported.graph,
    )


@rare_collections()
@np.errstate(all="ignore")
def compile_model(source: ModelSource, options: CompileOptions, watch: Instrumentation = UNWATCHED) -> CompiledModel:
    """Compile an ONNX model. Nodes that the PPU cannot run go to the host if allowed. Raises ModelError, UsageError,
    InputError or CapacityError for errors that the caller can fix, DivergenceError if a pass changes the model's
    values."""
    from ppuc.compiler.frontend.inlining import ExpansionError
    from ppuc.compiler.frontend.source import read_source

    run = _run(options, watch)
    read = read_source(source)
    try:
        first = import_model(run, read, options, watch)
        return replace(_compiled(run, first.module, watch), quantized=first.quantized)
    except ModelError as error:
        if not options.host.allowed or isinstance(error, ExpansionError):
            raise
        return _hosted(read, options, error, watch)


def _run(options: CompileOptions, watch: Instrumentation) -> Run:
    dump = DumpFolder(watch.dump) if watch.dump is not None else None
    run = Run(options.target, passes_of(options), dump, watch.progress, listening=True)
    run.seen = watch.seen
    return run


def _compiled(run: Run, module: Module, watch: Instrumentation) -> CompiledModel:
    if watch.check_passes:
        from ppuc.compiler.pipeline.recheck import Recheck

        specs, about = input_specs(module), dict(module.options)
        arrays = generate_all(specs)
        if watch.inputs is not None:
            given = without_fixed(fixed_values(about), watch.inputs, "--inputs")
            arrays = checked_inputs(specs, {**default_values(about), **given}, "--inputs")
        try:
            run.recheck = Recheck(module, arrays, module.option("precision"))
        except OutOfRangeError as error:
            names = {value: name for name, value in module.inputs}
            where = "--check-passes" if watch.inputs is None else "--inputs"
            raise out_of_range(error, module.graph, names, where) from error
    return run.to_end(module)


def _hosted(source: Source, options: CompileOptions, error: ModelError, watch: Instrumentation) -> CompiledModel:
    """Compile the model with host steps; `error` is why it needs them."""
    from ppuc.compiler.host.check_passes import PartsToCheck
    from ppuc.compiler.host.compile import compile_hosted
    from ppuc.compiler.host.partition import HostPart

    on_host: list[HostNode] = []

    def compile_part(module: Module, number: int) -> CompiledModel:
        inputs = checked.given[number] if checked is not None else None
        own = replace(watch.within(segment_folder(number)), inputs=inputs)
        run = _run(options, own)

        def part() -> Module:
            if number == 0:
                _remark_hosted(on_host)
            return module

        return _compiled(run, run.before("import", part), own)

    def change(hosted: HostedModel, parts: Sequence[Part], modules: Sequence[Module]) -> list[Module]:
        on_host[:] = [node for part in parts if isinstance(part, HostPart) for node in part.nodes]
        changed = checked or quantizer
        return changed(hosted, parts, modules) if changed is not None else list(modules)

    options = with_shapes_of_data(options, source)
    quantizer = _quantizer(options, watch)
    checked = PartsToCheck(options, watch, quantizer) if watch.check_passes else None
    artifact, made = compile_hosted(source, options, error, compile_part, change)
    records = tuple(_of_segment(p, n) for n, m in enumerate(made) for p in m.passes)
    modules = tuple(m.module for m in made if m.module is not None)
    compiled = CompiledModel(modules[0] if modules else None, artifact, records, modules)
    return replace(compiled, artifact=with_remarks(artifact, compiled.remarks))


def _remark_hosted(nodes: Sequence[HostNode]) -> None:
    """Remark on what the host computes, and what is compiled when the program runs."""
    if (remarks := listener()) is not None:
        for node in nodes:
            where = "deferred" if node.deferred else "host"
            remarks.note(where, node.label, (node.label,), node.reason.text, op=node.op)


def _of_segment(record: PassRecord, number: int) -> PassRecord:
    """The record of a pass, labelled with its segment."""
    if number == 0:
        return record
    remarks = tuple(replace(remark, segment=number) for remark in record.remarks)
    return replace(record, name=f"segment {number}: {record.name}", remarks=remarks)


def _quantizer(options: CompileOptions, watch: Instrumentation) -> PartsQuantizer | None:
    """The quantizer of a model with host steps; None without quantization."""
    if not PRECISIONS[options.precision].quantized:
        return None
    from ppuc.compiler.host.quantize import PartsQuantizer

    return PartsQuantizer(options, watch)


@rare_collections()
def examine(source: ModelSource, options: CompileOptions) -> Examination:
    """Examine a model by importing it, running the passes before memory assignment, and searching tiles for every
    kernel; only the fit of whole tensors is not checked. Calibration data provide only shapes. Raises ModelError for a
    file that is not a model, UsageError for sizes that do not fit it."""
    from ppuc.compiler.frontend.inlining import ExpansionError
    from ppuc.compiler.frontend.source import read_source
    from ppuc.compiler.host.compile import divided
    from ppuc.compiler.host.partition import HostPart
    from ppuc.compiler.passes.tile import without_tiling

    upto, source = passes_of(options, PLACE), read_source(source)
    options = with_shapes_of_data(options, source)
    options = replace(options, quantization=replace(options.quantization, data=None, repair=True))

    def passed(module: Module, number: int = 0) -> tuple[Graph, tuple[Diagnostic, ...]]:
        return module.graph, without_tiling(Run(options.target, upto).run(module).graph, options.target)

    try:
        try:
            graph, problems = passed(import_model(Run(options.target, upto), source, options).module)
            return Examination((graph,), problems=problems)
        except ModelError as error:
            if isinstance(error, ExpansionError):
                raise
            change = _quantizer(options, UNWATCHED)
            _, parts, examined = divided(source, options, error, passed, change, examining=True)
            nodes = [n for p in parts if isinstance(p, HostPart) for n in p.nodes]
            host = tuple(n for n in nodes if not n.deferred and not n.refused)
            deferred, refused = (tuple(n for n in nodes if getattr(n, kind)) for kind in ("deferred", "refused"))
            problems = tuple(p for _, found in examined for p in found)
            return Examination(tuple(g for g, _ in examined), host, deferred, refused, problems)
    except PpucError as error:
        if isinstance(error, UsageError):
            raise
        return Examination(problems=error.diagnostics)

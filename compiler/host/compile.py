"""Compiles models with host nodes: each PPU part by the usual pipeline, into one artifact.

Nodes that the pipeline refuses (for example because the target lacks their format) are also moved to the host, and the
model is imported again, until every node is assigned.

Invariant: every host model has been loaded by its evaluator; no node is on the host without a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ppuc.compiler.alias import DECLARED, OPTION, aliased, check_names
from ppuc.compiler.frontend.inlining import UnknownOpsError
from ppuc.compiler.frontend.offload.hosting import HostNode, HostOperand, HostTensor, node_model
from ppuc.compiler.frontend.offload.load_hosted import HostedModel, load_hosted
from ppuc.compiler.frontend.offload.reason import Cause, Reason
from ppuc.compiler.frontend.source import ModelSource, Source, read_source
from ppuc.compiler.frontend.tensors import type_text
from ppuc.compiler.host.client import HostError, HostWorker, worker
from ppuc.compiler.host.join import Joined, join
from ppuc.compiler.host.partition import DeferredPart, HostPart, Part, PpuPart, partition
from ppuc.compiler.host.plan import PLAN, DeferredStep, HostedNode, HostStep, Plan, PpuStep, Step
from ppuc.compiler.inputs import RANGE_OPTION, input_ranges, values_text
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.pipeline.chosen import passes_of, recorded, recorded_text
from ppuc.compiler.pipeline.layers import PREFIX as LAYER
from ppuc.compiler.pipeline.layers import kept_name
from ppuc.compiler.pipeline.link import NODES
from ppuc.compiler.version import VERSION
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, ModelError, UsageError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.module import Module
from ppuc.targets.artifact import Artifact, IOSpec

if TYPE_CHECKING:
    from ppuc.compiler.pipeline.manager import CompiledModel

T = TypeVar("T")
Change = Callable[[HostedModel, Sequence[Part], Sequence[Module]], list[Module]]
"""Transforms the modules of all PPU parts of a model together."""


def compile_hosted(
    source: ModelSource,
    options: CompileOptions,
    error: ModelError,
    compile_part: Callable[[Module, int], CompiledModel],
    change: Change | None = None,
) -> tuple[Artifact, tuple[CompiledModel, ...]]:
    """The artifact and the compiled model of each segment; `error` is why the PPU alone cannot run the model. Raises
    ModelError for nodes that neither side can run (`error` if the host does not help), CapacityError if the parts do
    not fit."""
    hosted, parts, made = divided(source, options, error, compile_part, change)
    return _artifact(hosted, parts, made, options), tuple(made)


def divided(
    source: ModelSource,
    options: CompileOptions,
    error: ModelError,
    each_part: Callable[[Module, int], T],
    change: Change | None = None,
    examining: bool = False,
) -> tuple[HostedModel, tuple[Part, ...], list[T]]:
    """The model, its parts, and the results of `each_part` on the PPU modules, with the segment number, after `change`
    has transformed them all. When `examining`, nodes that neither side can run are among the parts, marked as
    refused."""
    hosts = worker(options.host.ops)
    if hosts.files:
        hosts.start()
    source = read_source(source)
    forced: dict[str, Reason] = {}
    while True:
        hosted = _imported(source, options, error, forced, hosts, examining)
        parts = partition(hosted)
        if examining:
            parts = _with_unknown_marked(hosted, parts, hosts)
        else:
            _check_host_parts(hosted, parts, hosts)
        graphs = [p.graph for p in parts if isinstance(p, PpuPart)]
        modules = [part_module(g, hosted, options) for g in graphs]
        try:
            if change is not None:
                modules = change(hosted, parts, modules)
            modules = _aliased(hosted, modules, options.aliases)
            return hosted, parts, [each_part(module, number) for number, module in enumerate(modules)]
        except HostError:
            raise
        except ModelError as refused:
            forced |= _blamed(refused, graphs, forced)


def _imported(
    source: Source,
    options: CompileOptions,
    error: ModelError,
    forced: Mapping[str, Reason],
    hosts: HostWorker,
    examining: bool,
) -> HostedModel:
    """The model with its host nodes. Prefer the first import's error, except about unknown ops."""
    what = (source, options.dims, options.shapes, options.values)
    try:
        return load_hosted(*what, forced=forced, custom=hosts.custom, probe=hosts, examining=examining)
    except ModelError as refused:
        if isinstance(refused, UnknownOpsError) or isinstance(error, UnknownOpsError):
            raise
        raise error from refused


def part_module(graph: Graph, hosted: HostedModel, options: CompileOptions) -> Module:
    """The module of one part; its inputs and outputs have the plan's names."""
    about = {"model": hosted.name, "model_sha256": hosted.digest, **options.recorded()}
    return Module(
        target=options.target.name,
        target_hash=options.target.hash,
        options=tuple(sorted(about.items())),
        inputs=tuple((p.name, p.name) for p in graph.params),
        outputs=tuple((r.name, r.name) for r in graph.results),
        graph=graph,
    )


def _aliased(hosted: HostedModel, modules: list[Module], aliases: Mapping[str, str]) -> list[Module]:
    """The modules with outputs aliased to inputs. Raises UsageError, also for pairs that no single module contains."""
    if not aliases:
        return modules
    inputs, outputs = ({name: o.name for name, o in pairs} for pairs in (hosted.inputs, hosted.outputs))
    check_names(aliases, inputs, outputs)
    pairs = {inputs[past]: outputs[present] for past, present in aliases.items()}
    homes = [{i: o for i, o in pairs.items() if i in dict(m.inputs) and o in dict(m.outputs)} for m in modules]
    for past, present in aliases.items():
        if not any(inputs[past] in home for home in homes):
            what = f"'{past}={present}' aliases tensors that are not in one PPU part of the model"
            hint = "`ppuc check` shows the host nodes between them"
            about = (Entity(EntityKind.INPUT, past), Entity(EntityKind.OUTPUT, present))
            raise UsageError.of("--alias", what, hint=hint, entities=about)
    return [aliased(module, home) for module, home in zip(modules, homes, strict=True)]


def _blamed(error: ModelError, graphs: Sequence[Graph], forced: Mapping[str, Reason]) -> dict[str, Reason]:
    """The nodes of `graphs` that a pipeline error is about, with its reason. Raises the error if none of them is still
    on the PPU."""
    on_ppu = {name for graph in graphs for op in graph.ops if op.name != "const" for name in op.loc} - forced.keys()
    found = {n: Reason.of(d) for d in error.diagnostics for n in d.about(EntityKind.NODE) if n in on_ppu}
    if not found:
        raise error
    return found


def _check_host_parts(hosted: HostedModel, parts: Sequence[Part], worker: HostWorker) -> None:
    """Raise ModelError naming every node that the host does not support either."""
    faults = []
    for part in parts:
        if isinstance(part, HostPart) and not isinstance(part, DeferredPart):
            try:
                worker.load(part.model, hosted.name)
            except HostError as error:
                faults.append(_unknown(hosted, part, error))
    if faults:
        raise ModelError(faults)


def _with_unknown_marked(hosted: HostedModel, parts: Sequence[Part], worker: HostWorker) -> tuple[Part, ...]:
    """`parts`, with nodes that the host fails to load marked as refused, with its message."""
    found = []
    for part in parts:
        if isinstance(part, HostPart) and not isinstance(part, DeferredPart) and not part.nodes[0].refused:
            try:
                worker.load(part.model, hosted.name)
            except HostError:
                part = replace(part, nodes=tuple(_asked(n, hosted, worker) for n in part.nodes))
        found.append(part)
    return tuple(found)


def _asked(node: HostNode, hosted: HostedModel, worker: HostWorker) -> HostNode:
    """`node`, marked as refused if the host does not load it alone."""
    outputs = [o for o in node.outputs if o is not None]
    model = node_model([node], outputs, hosted.functions).SerializeToString(deterministic=True)
    try:
        worker.load(model, hosted.name)
    except HostError as error:
        text = f"neither the PPU nor the host can run it: {error.diagnostics[0].got}"
        return replace(node, refused=Reason(text, Cause.UNKNOWN))
    return node


def _unknown(hosted: HostedModel, part: HostPart, error: HostError) -> Diagnostic:
    nodes = ", ".join(f"'{n.label}' ({n.op})" for n in part.nodes[:8])
    more = f" and {len(part.nodes) - 8} more" if len(part.nodes) > 8 else ""
    return Diagnostic(
        hosted.name,
        f"neither the PPU nor the host can run {nodes}{more}",
        got=f"PPU: {part.nodes[0].reason}; host: {error.diagnostics[0].got}",
        hint="supply custom ops as Python functions with --host-ops FILE.py",
        entities=Entity.each(EntityKind.NODE, (n.label for n in part.nodes)),
    )


def _artifact(
    hosted: HostedModel, parts: Sequence[Part], made: Sequence[CompiledModel], options: CompileOptions
) -> Artifact:
    """One artifact with the plan in its metadata."""
    joined = join(hosted.graph.name, [m.artifact for m in made], options.target)
    plan, host = _plan(hosted, parts, [m.artifact for m in made], joined, options.keep_layers)
    artifact = replace(joined.artifact, inputs=_specs(hosted.inputs), outputs=_specs(hosted.outputs), host=host)
    return replace(artifact, meta=_meta(hosted, plan, [m.artifact for m in made], joined, options))


def _plan(
    hosted: HostedModel, parts: Sequence[Part], artifacts: Sequence[Artifact], joined: Joined, keep_layers: bool
) -> tuple[Plan, dict[str, bytes]]:
    """The plan, and its host models."""
    steps: list[Step] = []
    layers: list[tuple[str, str]] = []
    types = _types(hosted, parts)
    host: dict[str, bytes] = {}
    for part in parts:
        if isinstance(part, HostPart):
            steps.append(_host_step(part, str(len(host))))
            host[str(len(host))] = part.model
            continue
        number = sum(isinstance(s, PpuStep) for s in steps)
        own, place = artifacts[number], joined.tensors[number]
        kept = {o.name: kept_name(number, o.name.removeprefix(LAYER)) for o in own.outputs}
        names = {n: k if n.startswith(LAYER) else n for n, k in kept.items()}
        inputs = tuple((i.name, place[i.tensor]) for i in own.inputs)
        steps.append(PpuStep(number, inputs, tuple((names[o.name], place[o.tensor]) for o in own.outputs)))
        types |= {names[o.name]: str(o.type) for o in own.outputs if o.name.startswith(LAYER)}
        layers += [(k, names[n]) for n, k in kept.items()] if keep_layers else []
    plan = Plan(
        steps=tuple(steps),
        inputs=tuple((name, operand.name) for name, operand in hosted.inputs),
        outputs=(*((name, operand.name) for name, operand in hosted.outputs), *layers),
        host_inputs=_foreign(hosted.inputs),
        host_outputs=_foreign(hosted.outputs),
        types=tuple(sorted(types.items())),
    )
    return plan, host


def _host_step(part: HostPart, name: str) -> HostStep | DeferredStep:
    """The step of a part with model name `name`."""
    nodes = tuple(HostedNode(n.label, n.op, n.reason.text) for n in part.nodes)
    takes, gives = _names(part.inputs), _names(part.outputs)
    if isinstance(part, DeferredPart):
        return DeferredStep(name, takes, gives, nodes, part.control)
    return HostStep(name, takes, gives, nodes, part.nodes[0].custom)


def _meta(
    hosted: HostedModel, plan: Plan, artifacts: Sequence[Artifact], joined: Joined, options: CompileOptions
) -> dict[str, str]:
    """The metadata of the artifact: those of the first part, except entries on inputs and kernels."""
    booked: dict[str, str] = {}
    for names, artifact in zip(joined.kernels, artifacts, strict=True):
        booked |= {names[k]: n for k, n in json.loads(artifact.meta.get(NODES, "{}")).items()}
    about = {"model": hosted.name, "model_sha256": hosted.digest, **options.recorded()}
    meta = dict(artifacts[0].meta) if artifacts else about | recorded_text(recorded(passes_of(options)))
    meta = {k: v for k, v in meta.items() if not k.startswith((OPTION, DECLARED))}
    meta |= {OPTION + past: present for past, present in options.aliases.items()}
    meta |= {"compiler": VERSION, NODES: json.dumps(booked, sort_keys=True), PLAN: plan.to_json()}
    ranges = input_ranges(hosted.graph)
    meta |= {RANGE_OPTION + n: str(ranges[v.name]) for n, v in hosted.inputs if v.name in ranges}
    return meta | values_text(hosted.fixed, hosted.defaults)


def _names(operands: Sequence[HostOperand]) -> tuple[str, ...]:
    return tuple(o.name for o in operands)


def _specs(pairs: Sequence[tuple[str, HostOperand]]) -> tuple[IOSpec, ...]:
    """Specs of the values that the PPU can hold; the plan locates them."""
    return tuple(IOSpec(name, operand.name, operand.type) for name, operand in pairs if isinstance(operand, Value))


def _foreign(pairs: Sequence[tuple[str, HostOperand]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, type_text(operand.type)) for name, operand in pairs if isinstance(operand, HostTensor))


def _types(hosted: HostedModel, parts: Sequence[Part]) -> dict[str, str]:
    values = [v for p in parts if isinstance(p, PpuPart) for v in (*p.graph.params, *p.graph.results)]
    values += [o for p in parts if isinstance(p, HostPart) for o in (*p.inputs, *p.outputs) if isinstance(o, Value)]
    values += [o for _, o in (*hosted.inputs, *hosted.outputs) if isinstance(o, Value)]
    return {v.name: str(v.type) for v in values}

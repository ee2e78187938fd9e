"""Compares a program with host steps with the model's own outputs.

The oracle is ONNX Runtime on the file; for a model that it cannot load (custom ops, or ops that only onnx.reference
supports), it is the host worker on the whole file.

Invariant: tolerances follow the same rule as for models without host steps; host nodes count as f32 arithmetic, parts
compiled at run time once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.comparing.choices import given_choices
from ppuc.compiler.comparing.indices import judged_by_value
from ppuc.compiler.comparing.reference import doubtful
from ppuc.compiler.comparing.undefined import defined, undefined_elements, with_undefined_note
from ppuc.compiler.driver import compile_model
from ppuc.compiler.frontend.expose import moved_model, node_outputs, whole_bytes
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.frontend.offload.hosting import HostOperand
from ppuc.compiler.frontend.offload.load_hosted import HostedModel, load_hosted
from ppuc.compiler.frontend.offload.reason import Reason
from ppuc.compiler.host.client import worker
from ppuc.compiler.host.deferred import DeferredProgram, DeferredRun
from ppuc.compiler.host.partition import PpuPart, partition
from ppuc.compiler.host.plan import Plan, PpuStep
from ppuc.compiler.pipeline.layers import PREFIX, final_node, kept_name, layer_candidates, matching, node_values
from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.program.compiled import CompiledProgram, ProgramResult
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.conditioning import Move, rounds, sensitivities_of_outputs
from ppuc.compiler.validation.judge import on_other_sides
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.sides import drawn
from ppuc.compiler.validation.tolerance import (
    NO_ERROR,
    ExpectedError,
    Tolerance,
    exact,
    expected_errors,
    host_error,
    inherited_error,
    stored_as,
    tolerance_of,
    typical_step,
)
from ppuc.compiler.validation.values import compare_values
from ppuc.ir.errors import ModelError, UsageError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.types import DType

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class _Reference:
    """The model `source` on `inputs`, with which a program is compared: what it is partitioned into, and the errors
    that a correct program may have, by tensor."""

    program: CompiledProgram
    hosted: HostedModel
    errors: Mapping[str, ExpectedError]
    source: str | Path | onnx.ModelProto
    inputs: Mapping[str, Any]

    def tolerances(self, node: str) -> list[Tolerance]:
        """What the output of an ONNX node may be off."""
        return [tolerance_of(self.errors.get(_values_of_nodes(self.hosted).get(node, ""), NO_ERROR))]

    def outputs(self, result: ProgramResult) -> tuple[Comparison, ...]:
        """The outputs of a run; of one that is a sequence, each element."""
        want = _oracle(self, [name for name, _ in self.hosted.outputs])
        undefined = _undefined(self, want)
        found: dict[str, list[Comparison]] = {}
        for name, operand in self.hosted.outputs:
            open_ones = undefined.get(name)
            pair = (result.outputs[name], want[name])
            a, b = pair if open_ones is None else (defined(array, open_ones) for array in pair)
            compared = _compared(name, a, b, self.errors.get(operand.name, NO_ERROR))
            found[name] = [with_undefined_note(c, open_ones) for c in compared]
        found |= _by_value(self, result, found, want)
        if not all(c.ok for each in found.values() for c in each):
            found |= _excused(self, result, found, want)
        return tuple(c for each in found.values() for c in each)


def verify_hosted(
    program: CompiledProgram, plan: Plan, inputs: Mapping[str, Any], result: ProgramResult, layers: bool = False
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
    """Compare the outputs of `program` on `inputs` with the oracle's and, with `layers`, the results of its kernels
    with ONNX Runtime's. Raises ModelError if there is no oracle."""
    assert program.source is not None
    dense = {n: a for n, a in inputs.items() if n not in dict(plan.host_inputs)}
    hosted = _imported(program, plan, {n: a.shape for n, a in dense.items()})
    errors = _errors(hosted, plan, program.options.precision, result.deferred)
    model = _Reference(program, hosted, errors, program.source, inputs)
    kept = _kept(model) if layers else None
    outputs, inner = model.outputs(result), _layers(model, kept) if kept is not None else ()
    given = given_choices(program, inputs, model.tolerances) if doubtful((*outputs, *inner)) else None
    if given is None:
        return outputs, inner
    model = replace(model, source=given.source, inputs=given.arrays)
    outputs = given.better(outputs, model.outputs(result), {})
    return outputs, given.better(inner, _layers(model, kept), kept.tensors) if kept is not None else ()


def _undefined(model: _Reference, want: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Elements of outputs that the model leaves undefined, where ONNX Runtime can tell."""
    try:
        return undefined_elements(model.source, model.inputs, want)
    except ModelError:
        return {}


def _by_value(
    model: _Reference, result: ProgramResult, found: Mapping[str, list[Comparison]], want: Mapping[str, Any]
) -> dict[str, list[Comparison]]:
    """Indices that differ, judged by the values that they choose, where the oracle knows those."""
    single = {name: each[0] for name, each in found.items() if len(each) == 1 and each[0].name == name}
    try:
        again = judged_by_value(model.source, model.inputs, single, result.outputs, want, model.tolerances)
    except ModelError:
        return {}
    return {c.name: [c] for c in again}


def _values_of_nodes(hosted: HostedModel) -> dict[str, str]:
    """ONNX node -> the tensor of the model that it gives, of nodes that give one."""
    found: dict[str, str] = {}
    for part in partition(hosted):
        if isinstance(part, PpuPart):
            found |= node_values(part.graph)
        else:
            given = {n.label: [o.name for o in n.outputs if o is not None] for n in part.nodes}
            found |= {label: names[0] for label, names in given.items() if len(names) == 1}
    return found


def _excused(
    model: _Reference, result: ProgramResult, found: Mapping[str, list[Comparison]], want: Mapping[str, Any]
) -> dict[str, list[Comparison]]:
    """Comparisons that fail, repeated with a tolerance from the model's conditioning where the oracle can compute
    it."""
    program, hosted = model.program, model.hosted
    graphs = [part.graph for part in partition(hosted) if isinstance(part, PpuPart)]
    graphs += [
        _graph_of(run.program) for run in result.deferred if run.program is not None and run.program.plan is None
    ]
    step = max((typical_step(graph, program.options.precision) for graph in graphs), default=0.0)
    if not step or program.options.host.ops:
        return {}

    def run(move: Move) -> Mapping[str, Any]:
        kept = program.fixed.keys()
        changed = {n: a if n in kept or not isinstance(a, np.ndarray) else move(a) for n, a in model.inputs.items()}
        return Oracle(moved_model(model.source, move)).run(changed)

    try:
        measured = sensitivities_of_outputs(run, want, step, any(map(rounds, graphs)))
    except ModelError:
        return {}
    again: dict[str, list[Comparison]] = {}
    for name, sensitivity in measured.items():
        if name not in found:  # a choice that the model is given
            continue
        (before,) = found[name]
        tolerance = Tolerance(before.tolerance)
        if not before.ok and (widened := sensitivity.widened(tolerance, step)) != tolerance:
            compared = compare(name, result.outputs[name], want[name], widened)
            again[name] = [replace(compared, sensitivity=sensitivity.relative)]
    return again | _on_other_sides(run, result, {**found, **again}, want, step)


def _on_other_sides(
    run: Callable[[Move], Mapping[str, Any]],
    result: ProgramResult,
    found: Mapping[str, list[Comparison]],
    want: Mapping[str, Any],
    step: float,
) -> dict[str, list[Comparison]]:
    """Integer outputs that differ, or prove nothing, and that come from numbers near an edge."""
    differing = {name: each[0] for name, each in found.items() if len(each) == 1 and each[0].mismatches}
    open_ones = {name: c for name, c in differing.items() if c.verdict != "ok" and c.name == name in want}
    try:
        others = drawn(run, want, step, open_ones) if open_ones else {}
    except ModelError:
        return {}
    again = {}
    for name, before in open_ones.items():
        if name in others and np.shape(result.outputs[name]) == np.shape(want[name]):
            better = on_other_sides(before, result.outputs[name], want[name], others[name], exact())
            again[name] = [better or before]
    return again


def _graph_of(program: DeferredProgram) -> Graph:
    """The graph of a program compiled at run time."""
    assert program.source is not None
    shapes = {s.name: s.type.dims for s in program.inputs}
    return load_model(program.source, shapes=shapes, values=program.fixed).graph


@dataclass(frozen=True, slots=True)
class _Kept:
    """Results of kernels `got`, by the name that keeps them, the ONNX node that each stands for, and the tensor that
    each node defines."""

    got: Mapping[str, Any]
    nodes: Mapping[str, str]
    tensors: Mapping[str, str]


def _kept(model: _Reference) -> _Kept:
    """Recompile with every kernel's results as outputs, and run."""
    program = model.program
    assert program.source is not None
    if PRECISIONS[program.options.precision].quantized:
        raise UsageError.of(
            program.name,
            "cannot be compared layer by layer: a part of it runs on the host, and its layers are quantized",
            hint="compare the outputs, or the layers at precision bf16",
        )
    made = compile_model(program.source, program.options_keeping_layers)
    got = replace(program, artifact=made.artifact).run(model.inputs).outputs
    tensors = {node: names[0] for node, names in node_outputs(program.source).items() if len(names) == 1}
    whole = {operand.name for _, operand in model.hosted.outputs}
    chosen: dict[str, str] = {}
    for number, module in enumerate(made.modules):
        given = {value: name for name, value in module.outputs if not name.startswith(PREFIX)}
        for value, candidates in layer_candidates(module.graph).items():
            node, name = final_node(candidates, tuple(tensors)), kept_name(number, given.get(value, value))
            chosen |= {name: node} if node is not None and name in got and given.get(value) not in whole else {}
    return _Kept(got, chosen, tensors)


def _layers(model: _Reference, kept: _Kept) -> tuple[Comparison, ...]:
    """What is kept, where it is an ONNX node's output."""
    want = Oracle(model.source, tuple(kept.tensors[node] for node in kept.nodes.values())).run(model.inputs)
    values = _values_of_nodes(model.hosted)
    found: list[Comparison] = []
    for name, node in kept.nodes.items():
        tensor = kept.tensors[node]
        reference = matching(want[tensor], kept.got[name]) if tensor in want else None
        if reference is not None:
            found += _compared(node, kept.got[name], reference, model.errors.get(values.get(node, ""), NO_ERROR))
    return tuple(found)


def _imported(program: DeferredProgram, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> HostedModel:
    """The model of a program, partitioned as in the plan."""
    assert program.source is not None
    hosts = worker(program.options.host.ops)
    if hosts.files:
        hosts.start()
    forced = {n.node: Reason(n.reason) for n in plan.nodes}
    return load_hosted(
        program.source,
        shapes=shapes,
        values=program.fixed,
        forced=forced,
        custom=hosts.custom,
        probe=hosts,
    )


def _oracle(reference: _Reference, outputs: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(Oracle(reference.source).run(reference.inputs))
    except ModelError:
        program, model = reference.program, whole_bytes(reference.source)
        values = worker(program.options.host.ops).run(model, dict(reference.inputs), f"{program.name} as a whole")
        return dict(zip(outputs, values, strict=True))


def _errors(hosted: HostedModel, plan: Plan, precision: str, runs: Sequence[DeferredRun]) -> dict[str, ExpectedError]:
    """Expected errors of all tensors passed between parts."""
    errors: dict[str, ExpectedError] = {}
    for part in partition(hosted):
        if isinstance(part, PpuPart):
            errors |= expected_errors(part.graph, precision, errors)
            continue
        own = [r for r in runs if r.program is not None and _first_node(plan, r.step) == part.nodes[0].label]
        if own:
            given = inherited_error([errors.get(i.name, NO_ERROR) for i in part.inputs])
            added = [_added(run) for run in own]
            narrow = given.narrow or any(e.narrow for e in added)
            error = ExpectedError(given.variance + sum(e.variance for e in added), narrow)
            errors |= {o.name: error for o in part.outputs}
            continue
        for node in part.nodes:
            error = host_error([errors.get(i.name, NO_ERROR) for i in node.inputs], _largest(node.inputs))
            errors |= {o.name: error for o in node.outputs if o is not None}
    return errors


def _first_node(plan: Plan, step: int) -> str:
    found = plan.steps[step]
    return "" if isinstance(found, PpuStep) else found.nodes[0].node


def _added(run: DeferredRun) -> ExpectedError:
    """The error that all calls of a program add to the error of their inputs."""
    program, result = run.program, run.result
    assert program is not None
    assert program.source is not None
    assert result is not None
    shapes = {s.name: s.type.dims for s in program.inputs}
    if program.plan is not None:
        hosted = _imported(program, program.plan, shapes)
        errors = _errors(hosted, program.plan, program.options.precision, result.deferred)
        names = [operand.name for _, operand in hosted.outputs]
    else:
        imported = load_model(program.source, shapes=shapes, values=program.fixed)
        errors = expected_errors(imported.graph, program.options.precision, {})
        names = [value.name for _, value in imported.outputs]
    once = inherited_error([errors.get(name, NO_ERROR) for name in names])
    return ExpectedError(run.calls * once.variance, once.narrow)


def _largest(operands: Sequence[HostOperand]) -> int:
    return max((o.type.elements for o in operands if isinstance(o, Value)), default=1)


def _compared(name: str, got: Any, want: Any, error: ExpectedError) -> list[Comparison]:
    """One comparison for each tensor of an output; sequences have several."""
    return compare_values(name, got, want, lambda array: stored_as(DType.of(array.dtype), tolerance_of(error)))

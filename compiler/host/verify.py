"""Compares a program with host steps with the model's own outputs.

The oracle is ONNX Runtime on the file; for a model that it cannot load (custom ops, or ops that only onnx.reference
supports), it is the host worker on the whole file.

Invariant: tolerances follow the same rule as for models without host steps; host nodes count as f32 arithmetic, parts
compiled at run time once per call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ppuc.compiler.comparing.indices import judged_by_value
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
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import (
    NO_ERROR,
    ExpectedError,
    Tolerance,
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


def verify_hosted(
    program: CompiledProgram, plan: Plan, inputs: Mapping[str, Any], result: ProgramResult, layers: bool = False
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
    """Compare the outputs of `program` on `inputs` with the oracle's and, with `layers`, the results of its kernels
    with ONNX Runtime's. Raises ModelError if there is no oracle."""
    dense = {n: a for n, a in inputs.items() if n not in dict(plan.host_inputs)}
    hosted = _imported(program, plan, {n: a.shape for n, a in dense.items()})
    errors = _errors(hosted, plan, program.options.precision, result.deferred)
    want = _oracle(program, hosted, inputs)
    undefined = _undefined(program, inputs, want)
    found: dict[str, list[Comparison]] = {}
    for name, operand in hosted.outputs:
        open_ones = undefined.get(name)
        pair = (result.outputs[name], want[name])
        a, b = pair if open_ones is None else (defined(array, open_ones) for array in pair)
        compared = _compared(name, a, b, errors.get(operand.name, NO_ERROR))
        found[name] = [with_undefined_note(c, open_ones) for c in compared]
    found |= _by_value(program, hosted, errors, inputs, result, found, want)
    if not all(c.ok for each in found.values() for c in each):
        found |= _excused(program, hosted, inputs, result, found, want)
    outputs = tuple(c for each in found.values() for c in each)
    return outputs, _layers(program, hosted, errors, inputs) if layers else ()


def _undefined(program: CompiledProgram, inputs: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Elements of outputs that the model leaves undefined, where ONNX Runtime can tell."""
    assert program.source is not None
    try:
        return undefined_elements(program.source, inputs, want)
    except ModelError:
        return {}


def _by_value(
    program: CompiledProgram,
    hosted: HostedModel,
    errors: Mapping[str, ExpectedError],
    inputs: Mapping[str, Any],
    result: ProgramResult,
    found: Mapping[str, list[Comparison]],
    want: Mapping[str, Any],
) -> dict[str, list[Comparison]]:
    """Indices that differ, judged by the values that they choose, where the oracle knows those."""
    assert program.source is not None
    single = {name: each[0] for name, each in found.items() if len(each) == 1 and each[0].name == name}
    values = _values_of_nodes(hosted)

    def allowed(node: str) -> list[Tolerance]:
        return [tolerance_of(errors.get(values.get(node, ""), NO_ERROR))]

    try:
        again = judged_by_value(program.source, inputs, single, result.outputs, want, allowed)
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
    program: CompiledProgram,
    hosted: HostedModel,
    inputs: Mapping[str, Any],
    result: ProgramResult,
    found: Mapping[str, list[Comparison]],
    want: Mapping[str, Any],
) -> dict[str, list[Comparison]]:
    """Comparisons that fail, repeated with a tolerance from the model's conditioning where the oracle can compute
    it."""
    assert program.source is not None
    graphs = [part.graph for part in partition(hosted) if isinstance(part, PpuPart)]
    graphs += [
        _graph_of(run.program) for run in result.deferred if run.program is not None and run.program.plan is None
    ]
    step = max((typical_step(graph, program.options.precision) for graph in graphs), default=0.0)
    if not step or program.options.host.ops:
        return {}

    def run(move: Move) -> Mapping[str, Any]:
        kept = program.fixed.keys()
        changed = {n: a if n in kept or not isinstance(a, np.ndarray) else move(a) for n, a in inputs.items()}
        return Oracle(moved_model(program.source, move)).run(changed)  # type: ignore[arg-type]

    try:
        measured = sensitivities_of_outputs(run, want, step, any(map(rounds, graphs)))
    except ModelError:
        return {}
    again: dict[str, list[Comparison]] = {}
    for name, sensitivity in measured.items():
        (before,) = found[name]
        tolerance = Tolerance(before.tolerance)
        if not before.ok and (widened := sensitivity.widened(tolerance, step)) != tolerance:
            compared = compare(name, result.outputs[name], want[name], widened)
            again[name] = [replace(compared, sensitivity=sensitivity.relative)]
    return again


def _graph_of(program: DeferredProgram) -> Graph:
    """The graph of a program compiled at run time."""
    assert program.source is not None
    shapes = {s.name: s.type.dims for s in program.inputs}
    return load_model(program.source, shapes=shapes, values=program.fixed).graph


def _layers(
    program: CompiledProgram, hosted: HostedModel, errors: Mapping[str, ExpectedError], inputs: Mapping[str, Any]
) -> tuple[Comparison, ...]:
    """Recompile with every kernel's results as outputs, and compare those that are an ONNX node's output."""
    assert program.source is not None
    if PRECISIONS[program.options.precision].quantized:
        raise UsageError.of(
            program.name,
            "cannot be compared layer by layer: a part of it runs on the host, and its layers are quantized",
            hint="compare the outputs, or the layers at precision bf16",
        )
    model = compile_model(program.source, program.options_keeping_layers)
    got = replace(program, artifact=model.artifact).run(inputs).outputs
    tensors = {node: names[0] for node, names in node_outputs(program.source).items() if len(names) == 1}
    whole = {operand.name for _, operand in hosted.outputs}
    chosen: dict[str, str] = {}
    for number, module in enumerate(model.modules):
        given = {value: name for name, value in module.outputs if not name.startswith(PREFIX)}
        for value, candidates in layer_candidates(module.graph).items():
            node, name = final_node(candidates, tuple(tensors)), kept_name(number, given.get(value, value))
            chosen |= {name: node} if node is not None and name in got and given.get(value) not in whole else {}
    want = Oracle(program.source, tuple(tensors[node] for node in chosen.values())).run(inputs)
    values = _values_of_nodes(hosted)
    found: list[Comparison] = []
    for name, node in chosen.items():
        reference = matching(want[tensors[node]], got[name]) if tensors[node] in want else None
        if reference is not None:
            found += _compared(node, got[name], reference, errors.get(values.get(node, ""), NO_ERROR))
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
        probe=hosts.types_of,
    )


def _oracle(program: CompiledProgram, hosted: HostedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    assert program.source is not None
    try:
        return dict(Oracle(program.source).run(inputs))
    except ModelError:
        model = whole_bytes(program.source)
        values = worker(program.options.host.ops).run(model, dict(inputs), f"{program.name} as a whole")
        return dict(zip((name for name, _ in hosted.outputs), values, strict=True))


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

"""Runs a module at whatever level it has reached, on arrays keyed by ONNX name.

Invariant: the most lowered form present runs: the program on the simulator, else the kernels in order, else the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ppuc.compiler.inputs import feeds_of
from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.resource import Resource
from ppuc.targets.description import Target

OnTensor = Callable[[str, np.ndarray], None]
"""Called with the name and value of every graph value that an execution computes (none at program level)."""


def run_module(
    module: Module, target: Target, inputs: Mapping[str, np.ndarray], on_tensor: OnTensor | None = None
) -> dict[str, np.ndarray]:
    """Outputs of `module` by ONNX name for `inputs` by ONNX name (of the declared types)."""
    if module.program is not None:
        return _run_program(module, target, inputs)
    feeds = feeds_of(module, inputs)
    if module.kernels:
        results = _run_kernels(module, feeds, on_tensor)
    else:
        results = run_graph(module.graph, feeds, _hook(on_tensor))
    return {name: results[value] for name, value in module.outputs}


def _hook(on_tensor: OnTensor | None) -> Callable[[Op, Sequence[np.ndarray]], None] | None:
    if on_tensor is None:
        return None

    def on_op(op: Op, results: Sequence[np.ndarray]) -> None:
        for value, array in zip(op.results, results, strict=True):
            on_tensor(value.name, array)

    return on_op


def _run_kernels(module: Module, feeds: Mapping[str, np.ndarray], on_tensor: OnTensor | None) -> dict[str, np.ndarray]:
    """Run groups that name a kernel as that kernel, and other ops as their reference functions, on one flat memory per
    storage root."""
    from ppuc.compiler.passes.memory.live_ranges import storage_roots
    from ppuc.ir.interpret_kernel import run_kernel

    kernels = {k.name: k for k in module.kernels}
    vectors = {v.name: v for v in module.vectors}
    roots = storage_roots(module.graph)
    arrays = {p.name: np.array(feeds[p.name], order="C") for p in module.graph.params}
    memory = {name: _flat(array) for name, array in arrays.items()}
    for op in module.graph.ops:
        kernel = kernels.get(getattr(op.attrs, "kernel", ""))
        if kernel is not None:
            for value in op.results:
                arrays[value.name] = _storage(value, arrays.get(roots[value.name]))
                memory[value.name] = _flat(arrays[value.name])
            run_kernel(kernel, vectors, memory)
        else:
            for value, array in zip(op.results, _reference(op, [arrays[v.name] for v in op.operands]), strict=True):
                arrays[value.name] = np.ascontiguousarray(array).reshape(value.type.dims)
                memory[value.name] = _flat(arrays[value.name])
        if on_tensor is not None:
            for value in op.results:
                on_tensor(value.name, arrays[value.name])
    return {value: arrays[value] for _, value in module.outputs}


def _storage(value: Value, root: np.ndarray | None) -> np.ndarray:
    """The memory that a kernel writes `value` to: its storage root's, or fresh memory."""
    return np.zeros(value.type.dims, value.type.dtype.numpy) if root is None else root.reshape(value.type.dims)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _reference(op: Op, operands: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    if op.body is not None:
        results = run_graph(op.body, dict(zip((p.name for p in op.body.params), operands, strict=True)))
        return [results[v.name] for v in op.body.results]
    record = OPS[op.name]
    if record.reference is None:
        raise InternalError(f"op {op.name} ({', '.join(op.loc)}) has no reference function")
    return record.reference(op.attrs, *operands)


def _run_program(module: Module, target: Target, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from ppuc.targets.simulator.run import simulate

    program = module.program
    assert program is not None
    values, tensors = feeds_of(module, inputs), dict(program.inputs)
    feeds = {tensors[name]: values[value] for name, value in module.inputs}
    raw = simulate(program, module.vectors, target, program_constants(module), feeds)
    types = {value.name: value.type for value in module.graph.results}
    shapes = {name: types[value].dims for name, value in module.outputs}
    return {name: raw.outputs[tensor].reshape(shapes[name]) for name, tensor in program.outputs}


def program_constants(module: Module) -> dict[str, Resource]:
    """Tensor name -> data, for every constant tensor of the module's program."""
    if module.program is None:
        raise InternalError("a module without a program has no program constants")
    data = dict(_graph_constants(module.graph))
    return {t.name: data[t.source] for t in module.program.tensors if t.role == "const"}


def _graph_constants(graph: Graph) -> Mapping[str, Resource]:
    found = dict(graph.constants())
    for op in graph.ops:
        if op.body is not None:
            found.update(_graph_constants(op.body))
    return found

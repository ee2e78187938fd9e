"""`verify --layers`: compares inner tensors of a program with ONNX Runtime's.

Node names determine which tensor of the model a value of the compiled graph holds. If the two differ, and the compiled
graph's outputs are correct, the graph is evaluated to decide: a value that differs there too is compared with the
tensor that it equals, or with none.

Invariant: the assignment of values to tensors depends on the compiled graph and the oracle, never on simulated values,
except that a value which agrees with the tensor of its name is that tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.alias import aliased
from ppuc.compiler.comparing.undefined import defined, undefined_elements, with_undefined_note
from ppuc.compiler.driver import compile_model
from ppuc.compiler.frontend.expose import node_outputs
from ppuc.compiler.frontend.load import ImportedModel
from ppuc.compiler.inputs import feeds_of
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.pipeline.layers import (
    PREFIX,
    final_node,
    held_by,
    kept_layers,
    layer_candidates,
    matching,
    node_values,
)
from ppuc.compiler.pipeline.manager import CompiledModel, Run
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.types import DType

if TYPE_CHECKING:
    import onnx

    from ppuc.targets.simulator.run import Progress


@dataclass(frozen=True, slots=True)
class Layers:
    """The results `got`, by value, of the program of `module` on `arrays`, by input. `nodes` maps each value to the
    ONNX node of its name. `source` is the model that the oracle computes on `arrays`."""

    program: CompiledProgram
    source: str | Path | onnx.ModelProto
    module: Module
    arrays: Mapping[str, np.ndarray]
    got: Mapping[str, np.ndarray]
    nodes: Mapping[str, str]
    tensors: Mapping[str, str]
    """ONNX node -> its output tensor, for nodes with one output."""
    outputs: Mapping[str, np.ndarray]
    """All outputs of the run, by name."""

    def wanted(self, *nodes: str) -> dict[str, Any]:
        """The oracle's outputs, and those of `nodes`, by tensor."""
        return Oracle(self.source, tuple(self.tensors[node] for node in nodes)).run(self.arrays)

    def undefined(self, want: Mapping[str, Any], *nodes: str) -> dict[str, np.ndarray]:
        """Which elements of `want`, that `wanted` gives for the same nodes, the model leaves undefined."""
        tensors = tuple(self.tensors[node] for node in nodes)
        return undefined_elements(self.source, self.arrays, want, tensors)


def run_with_layers(program: CompiledProgram, arrays: Mapping[str, np.ndarray], progress: Progress | None) -> Layers:
    """Recompile `program` with the same quantized layers and every kernel's results as outputs, and run it."""
    assert program.source is not None
    model = _with_layers(program)
    assert model.module is not None
    outputs = replace(program, artifact=model.artifact).run(arrays, progress=progress).outputs
    got = kept_layers(outputs)
    tensors = {node: names[0] for node, names in node_outputs(program.source).items() if len(names) == 1}
    named = {value: final_node(c, tuple(tensors)) for value, c in layer_candidates(model.module.graph).items()}
    # 8-bit codes have no value without their reader's scale.
    numbers = [value for value, array in got.items() if program.quantized is None or DType.of(array.dtype).bits > 8]
    nodes = {value: node for value in numbers if (node := named.get(value)) is not None}
    return Layers(program, program.source, model.module, arrays, got, nodes, tensors, outputs)


def _with_layers(program: CompiledProgram) -> CompiledModel:
    assert program.source is not None
    options = program.options_keeping_layers
    if program.quantized is not None:
        return Run(options.target, passes_of(options)).to_end(aliased(program.quantized.module, options.aliases))
    return compile_model(program.source, options)


def compared_layers(layers: Layers, imported: ImportedModel, judge: Judge) -> tuple[Comparison, ...]:
    """The layers against the oracle's tensors, in execution order."""
    want, values = layers.wanted(*layers.nodes.values()), node_values(imported.graph)

    undefined = layers.undefined(want, *layers.nodes.values())

    def compared(node: str, array: np.ndarray, reference: np.ndarray) -> Comparison:
        places = undefined.get(layers.tensors[node])
        here = matching(places, array) if places is not None else None
        result = judge.compare(node, values.get(node, ""), defined(array, here), defined(reference, here))
        return with_undefined_note(result, here)

    found: dict[str, Comparison] = {}
    for value, node in layers.nodes.items():
        tensor = layers.tensors[node]
        reference = matching(want[tensor], layers.got[value]) if tensor in want else None
        if reference is not None:
            found[value] = compared(node, layers.got[value], reference)
    wrong = [value for value, comparison in found.items() if not comparison.ok]
    meant = _meant(layers, imported, judge, want) if wrong else None
    if meant is None:
        return tuple(found.values())
    again = {value: _as_meant(layers, value, meant[value], compared) for value in wrong}
    return tuple(c for value, before in found.items() if (c := again.get(value, before)) is not None)


def _meant(
    layers: Layers, imported: ImportedModel, judge: Judge, want: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
    """Kept values as evaluated by the compiled graph; None if its outputs differ from the model's, in which case only
    node names determine the expected values."""
    module, named = layers.module, dict(imported.outputs)
    results = run_graph(module.graph, feeds_of(module, layers.arrays))
    for name, value in module.outputs:
        if not name.startswith(PREFIX):
            shaped = results[value].reshape(np.shape(want[name]))
            if not judge.compare(name, named[name].name, shaped, want[name]).ok:
                return None
    return {value: results[value] for value in layers.got}


def _as_meant(
    layers: Layers, value: str, meant: np.ndarray, compared: Callable[[str, np.ndarray, np.ndarray], Comparison]
) -> Comparison | None:
    """Compare the value with the tensor that it equals; None if the model has no such tensor."""
    (op,) = (op for op in layers.module.graph.ops if any(r.name == value for r in op.results))
    others = [node for node in op.loc if node in layers.tensors and node != layers.nodes[value]]
    want = layers.wanted(layers.nodes[value], *others)
    node = held_by(
        meant,
        (layers.nodes[value], *others),
        lambda n: want.get(layers.tensors[n]),
        lambda n, a, b: compared(n, a, b).ok,
    )
    reference = matching(want[layers.tensors[node]], layers.got[value]) if node is not None else None
    return None if node is None or reference is None else compared(node, layers.got[value], reference)

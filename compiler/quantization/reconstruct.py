"""Reconstructs layers to compensate for rounding of activations, weights, and all previous layers.

Layers are processed in the graph's order. For each layer, the operands in the quantized graph and the result in the
original model are sampled on data. Offsets of the operands (offsets.py), then weights and a bias (fit.py), are fitted
so that the quantized product is nearest to that result.

The graph is cut at its layers, and the tensors live there are kept for all samples, so that each op runs once, whatever
the number of layers.

Invariant: a layer's plan depends only on the samples and on the plans of layers before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppuc.compiler.quantization.apply import quantized_graph
from ppuc.compiler.quantization.fit import fitted_layer
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.measure import Difference
from ppuc.compiler.quantization.offsets import best_offset, padded, some_numbers, takes_offsets
from ppuc.compiler.quantization.plan import BLOCKS, LayerPlan, Plan
from ppuc.compiler.quantization.rows import sampled_rows
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.graph import Graph, Op

Tensors = dict[str, list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Options:
    """`offsets`: choose offsets of activations, instead of keeping the plan's. `fit`: fit weights, their scales and
    biases."""

    offsets: bool = True
    fit: bool = True


def reconstructed(
    graph: Graph,
    layers: Sequence[Layer],
    plan: Plan,
    samples: Sequence[Mapping[str, np.ndarray]],
    options: Options | None = None,
    each: Callable[[int], None] | None = None,
) -> Plan:
    """`plan` with the weights, weight scales and biases of its quantized layers reconstructed on `samples` (feeds by
    parameter name)."""
    options = options or Options()
    walk = _Walk(graph, samples)
    offsets: dict[tuple[str, int, str, float, bool], np.ndarray | None] = {}
    done = plan
    for number, layer in enumerate(layers):
        chosen = plan.layers.get(layer.name, LayerPlan("bf16"))
        walk.up_to(layer.op)
        if chosen.quantized and layer.weights is not None and chosen.format not in BLOCKS:
            name = layer.inputs[0].name
            if options.offsets and takes_offsets(layer, chosen):
                key = (
                    name,
                    layer.input_axis,
                    chosen.format,
                    chosen.scales[0],
                    padded(layer),
                )  # shared by all layers that read a tensor
                if key not in offsets:
                    offsets[key] = best_offset(layer, chosen, some_numbers(walk.quantized[name], layer.input_axis))
                chosen = replace(chosen, offset=offsets[key])
            if options.fit:
                rows = sampled_rows(layer, walk.quantized, walk.reference_result(layer.op))
                chosen = fitted_layer(layer, chosen, rows)
            done = done.with_layers({layer.name: chosen})
        walk.run_layer(layer, Plan({layer.name: chosen}))
        if each is not None:
            each(number)
    return done


def differences(
    graph: Graph, layers: Sequence[Layer], plan: Plan, samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Difference]:
    """Layer name -> difference between its result and the original model's, with all preceding layers quantized
    according to `plan`."""
    walk = _Walk(graph, samples)
    found: dict[str, Difference] = {}
    for layer in layers:
        walk.up_to(layer.op)
        wanted = walk.reference_result(layer.op)
        chosen = Plan({layer.name: plan.layers.get(layer.name, LayerPlan("bf16"))})
        found[layer.name] = difference = Difference()
        for got, want in zip(walk.run_layer(layer, chosen), wanted, strict=True):
            difference.add(got, want)
    return found


class _Walk:
    """Runs the model and its quantized form side by side, from layer to layer, on all samples."""

    def __init__(self, graph: Graph, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.graph = graph
        self.count = len(samples)
        self.exact: Tensors = {p.name: [np.asarray(s[p.name]) for s in samples] for p in graph.params}
        self.quantized: Tensors = {name: list(arrays) for name, arrays in self.exact.items()}
        self.last: dict[str, int] = {}
        for i, op in enumerate(graph.ops):
            self.last.update((v.name, i) for v in op.operands)
        self.last.update((v.name, len(graph.ops)) for v in graph.results)
        self.constants = {op.results[0].name: op for op in graph.ops if op.name == "const"}
        self.at = 0

    def up_to(self, stop: Op) -> None:
        """Run the ops before `stop`."""
        end = next(i for i in range(self.at, len(self.graph.ops)) if self.graph.ops[i] is stop)
        ops = [op for op in self.graph.ops[self.at : end] if op.name != "const"]
        if ops:
            emulator = Emulator(self._part(ops, end))
            for tensors in (self.exact, self.quantized):
                self._run(emulator, emulator.graph, emulator.outputs, tensors)
        self.at = end

    def reference_result(self, op: Op) -> list[np.ndarray]:
        """The result of the next op `op` in the original model, for each sample."""
        part = self._part([op], self.at)
        emulator = Emulator(part, [op.results[0].name])
        self._run(emulator, part, emulator.outputs, self.exact)
        return self.exact[op.results[0].name]

    def run_layer(self, layer: Layer, plan: Plan) -> list[np.ndarray]:
        """Run the next layer in the original model and quantized according to `plan`; returns the quantized results,
        for each sample."""
        name = layer.op.results[0].name
        if name not in self.exact:
            self.reference_result(layer.op)
        part = self._part([layer.op], self.at)
        written = quantized_graph(part, plan, [layer])
        emulator = Emulator(written)
        self._run(emulator, part, [name], self.quantized, dict(zip([name], emulator.outputs, strict=True)))
        self.at += 1
        results = self.quantized[name]
        for tensors in (self.exact, self.quantized):
            for dead in [n for n in tensors if self.last.get(n, -1) < self.at]:
                del tensors[dead]
        return results

    def _part(self, ops: Sequence[Op], end: int) -> Graph:
        """`ops` as a graph whose results are the values read at or after op `end`."""
        defined = {r.name for op in ops for r in op.results}
        reads = list({v.name: v for op in ops for v in op.operands if v.name not in defined}.values())
        constants = [self.constants[v.name] for v in reads if v.name in self.constants]
        params = tuple(v for v in reads if v.name not in self.constants)
        results = tuple(r for op in ops for r in op.results if self.last.get(r.name, -1) >= end)
        return Graph(self.graph.name, params, results, (*constants, *ops))

    def _run(
        self,
        emulator: Emulator,
        part: Graph,
        outputs: Sequence[str],
        tensors: Tensors,
        names: Mapping[str, str] | None = None,
    ) -> None:
        found: Tensors = {name: [] for name in outputs}
        for i in range(self.count):
            run = emulator.run({p.name: tensors[p.name][i] for p in part.params})
            for name in outputs:
                found[name].append(run[names[name] if names is not None else name])
        tensors.update(found)

"""Prepares the graph for plans: imported, simplified and decomposed, before target-specific passes.

Invariant: the graph is the result of the pipeline's first passes, so its layers are those that later passes see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ppuc.compiler.inputs import InputSpec, fixed_values, input_specs
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.normalise.legalise import Legalise
from ppuc.compiler.passes.remarks import unheard
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.quantization.apply import quantized_graph
from ppuc.compiler.quantization.block_weights import in_blocks
from ppuc.compiler.quantization.class_axis import found_criteria
from ppuc.compiler.quantization.criteria import Criterion, Judging
from ppuc.compiler.quantization.layers import Layer, find_layers, product_nodes
from ppuc.compiler.quantization.measure import Reference
from ppuc.compiler.quantization.plan import BLOCKS, FORMATS, LayerPlan, Plan
from ppuc.compiler.quantization.simulated import simulated_graph
from ppuc.ir.module import Module
from ppuc.targets.description import Target


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model prepared for quantization with `options`. Plans cover `layers`; `attentions` are quantized only if a
    policy names them. `criteria` say by value name how outputs are judged."""

    module: Module
    options: CompileOptions
    layers: tuple[Layer, ...]
    attentions: tuple[Layer, ...] = ()
    criteria: Mapping[str, Criterion] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """The machine."""
        return self.options.target

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """All layers that a policy can name, in the graph's order."""
        order = {op.results[0].name: i for i, op in enumerate(self.module.graph.ops)}
        return tuple(sorted((*self.layers, *self.attentions), key=lambda layer: order[layer.op.results[0].name]))

    def with_attention(self) -> Prepared:
        """The same model with attention included in `layers`."""
        return replace(self, layers=self.all_layers, attentions=())

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """The model's inputs."""
        return input_specs(self.module)

    @property
    def fixed(self) -> dict[str, np.ndarray]:
        """The model's inputs that were fixed to a value."""
        return fixed_values(dict(self.module.options))

    def feeds(self, samples: Iterable[Mapping[str, np.ndarray]]) -> Iterable[dict[str, np.ndarray]]:
        """Samples by ONNX name converted to feeds by the graph's names, without labels."""
        values = dict(self.module.inputs)
        return ({values[name]: array for name, array in s.items() if name in values} for s in samples)

    def reference(self, feeds: Iterable[Mapping[str, np.ndarray]]) -> Reference:
        """The model's outputs on `feeds` by the graph's names, to compare plans with."""
        return Reference(self.module.graph, feeds, self.criteria)

    def quantized(self, plan: Plan) -> Module:
        """The module with its graph quantized according to `plan`."""
        return with_graph(self.module, quantized_graph(self.module.graph, plan, self.all_layers))

    def simulated(self, plan: Plan) -> Module:
        """The module with operands rounded as in `plan` and f32 arithmetic."""
        return with_graph(self.module, simulated_graph(self.module.graph, plan, self.all_layers))


def prepare(module: Module, options: CompileOptions) -> Prepared:
    """Run the passes that precede quantization on an imported module. Raises UsageError for outputs to be judged that
    it does not have."""
    nodes, criteria = product_nodes(module.graph), _criteria(module, options.quantization.judging)
    with unheard():  # these passes run again on the quantized graph
        for step in passes_of(options, Legalise.name):
            module = step.run(module, options.target)
    found = find_layers(module.graph, nodes)
    return Prepared(
        module,
        options,
        tuple(layer for layer in found if layer.kind != "attention"),
        tuple(layer for layer in found if layer.kind == "attention"),
        {v.name: own for v, own in zip(module.graph.results, criteria, strict=True)},
    )


def _criteria(module: Module, judging: Judging) -> list[Criterion]:
    """The criterion of each of the graph's results, in order."""
    found, types = found_criteria(module.graph), {v.name: v.type for v in module.graph.results}
    named = {name: found[value] for name, value in module.outputs}
    made = judging.criteria(named, {name: types[value].rank for name, value in module.outputs})
    by_value: dict[str, Criterion] = {}
    for name, value in module.outputs:  # of a value that is several outputs, the one that counts most decides
        by_value[value] = max(by_value.get(value, made[name]), made[name], key=lambda own: own.weight)
    return [by_value.get(v.name, found[v.name]) for v in module.graph.results]


def native(target: Target, format: str) -> bool:
    """Whether the tensor engine of `target` multiplies the format; otherwise only weights can be stored in it."""
    return format not in BLOCKS and all(target.tensor.supports(dtype) for dtype in FORMATS[format][:1])


def dynamic_plan(prepared: Prepared, format: str) -> Plan:
    """A plan with every layer in `format` and activation scales computed at run time; needs no data."""
    if native(prepared.target, format):
        return Plan({n.name: LayerPlan(format) for n in prepared.layers if n.kind != "attention"})
    return storage_plan(prepared, format)


def storable(layer: Layer, format: str) -> bool:
    """Whether `format` can store only the layer's weights."""
    return layer.kind == "matmul" and (format not in BLOCKS or in_blocks(layer, format) is not None)


def storage_plan(prepared: Prepared, format: str) -> Plan:
    """A plan that stores the weights of matmuls in `format` and converts them when they are loaded, for machines that
    do not multiply it."""
    stored = [layer for layer in prepared.layers if storable(layer, format)]
    return Plan({layer.name: LayerPlan(format, weights_only=True) for layer in stored})

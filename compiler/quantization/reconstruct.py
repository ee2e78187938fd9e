"""Weights that make up for the rounding of activations, of weights, and of all layers before.

Layers are taken in the graph's order. Of each, the operands x as the quantized graph computes them and the result y
that the model has are sampled on data, as rows of a product. The weights w and a bias then become what brings the
product of *quantized* operands nearest to y, in three steps:

1. ridge regression, w' = argmin |y - x w'|^2 + r |w' - w|^2, with x and y centred: the bias takes the means;
2. a scale for each output channel, out of a binade (phases of the mantissa), of the smallest weighted rounding error;
3. rounding one input after another, what a rounding loses being spread over the inputs still to be rounded, by the
   inverse of x' x (Frantar et al., "GPTQ: accurate post-training quantization", 2022).

The graph is cut at its layers and the tensors that are alive there are kept for all samples, so that everything runs
once, whatever the number of layers.

Invariant: a layer's plan depends only on the samples and on the plans of layers before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppuc.compiler.quantization.apply import SMALLEST, quantized_graph, rounded
from ppuc.compiler.quantization.emulate import Emulator
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.measure import Difference
from ppuc.compiler.quantization.plan import LARGEST, LayerPlan, Plan
from ppuc.compiler.quantization.rows import Rows, as_matrices, from_matrices, sampled_rows
from ppuc.ir.graph import Graph, Op
from ppuc.ir.types import DType

RIDGE = 0.02
"""Strength of the pull towards the model's weights, as a share of the mean square of an operand's channel."""
DAMPING = 0.01
"""Share of the mean diagonal added to x' x before it is inverted."""
PHASES = 16
_BLOCK = 64

Tensors = dict[str, list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Options:
    """`regress`: step 1, with a pull of `ridge`; `compensate`: step 3; `bias`: the bias takes what means differ."""

    regress: bool = True
    compensate: bool = True
    bias: bool = True
    ridge: float = RIDGE


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
    done = plan
    for number, layer in enumerate(layers):
        chosen = plan.layers.get(layer.name, LayerPlan("bf16"))
        walk.up_to(layer.op)
        if chosen.quantized and layer.weights is not None:
            rows = sampled_rows(layer, walk.quantized, walk.wanted_result(layer.op))
            chosen = reconstructed_layer(layer, chosen, rows, options)
            done = done.with_layers({layer.name: chosen})
        walk.through(layer, Plan({layer.name: chosen}))
        if each is not None:
            each(number)
    return done


def differences(
    graph: Graph, layers: Sequence[Layer], plan: Plan, samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Difference]:
    """Layer name -> how far its result is from the model's, all layers before it being quantized as `plan` says."""
    walk = _Walk(graph, samples)
    found: dict[str, Difference] = {}
    for layer in layers:
        walk.up_to(layer.op)
        wanted = walk.wanted_result(layer.op)
        chosen = Plan({layer.name: plan.layers.get(layer.name, LayerPlan("bf16"))})
        found[layer.name] = difference = Difference()
        for got, want in zip(walk.through(layer, chosen), wanted, strict=True):
            difference.add(got, want)
    return found


class _Walk:
    """The model and its quantized form, run side by side from layer to layer on all samples."""

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
        """Run what comes before `stop`."""
        end = next(i for i in range(self.at, len(self.graph.ops)) if self.graph.ops[i] is stop)
        ops = [op for op in self.graph.ops[self.at : end] if op.name != "const"]
        if ops:
            emulator = Emulator(self._part(ops, end))
            for tensors in (self.exact, self.quantized):
                self._run(emulator, emulator.graph, emulator.outputs, tensors)
        self.at = end

    def wanted_result(self, op: Op) -> list[np.ndarray]:
        """The result of `op`, which comes next, in the model."""
        part = self._part([op], self.at)
        emulator = Emulator(part, [op.results[0].name])
        self._run(emulator, part, emulator.outputs, self.exact)
        return self.exact[op.results[0].name]

    def through(self, layer: Layer, plan: Plan) -> list[np.ndarray]:
        """Run the layer, which comes next, exactly and as `plan` has it; returns the latter's results."""
        name = layer.op.results[0].name
        if name not in self.exact:
            self.wanted_result(layer.op)
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
        """`ops` as a graph of what they read, resulting in what is read at or after op `end`."""
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


def reconstructed_layer(layer: Layer, plan: LayerPlan, rows: Rows, options: Options) -> LayerPlan:
    """The plan of one layer with weights, scales and bias fitted to `rows`."""
    assert layer.weights is not None
    w = as_matrices(layer, layer.weights.array().astype(np.float64))
    x, y = rows.by_group(plan)
    x_mean, y_mean = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    x, y = x - x_mean, y - y_mean
    turned = x.swapaxes(1, 2)
    gram = (turned @ x).astype(np.float64) / x.shape[1]
    fitted = w
    if options.regress:
        fitted = _regressed(w, gram, (turned @ y).astype(np.float64) / x.shape[1], options.ridge)
    scales = _channel_scales(fitted, np.diagonal(gram, 0, 1, 2), plan.dtype)
    if options.compensate:
        stored = _compensated(fitted, gram, scales, plan.dtype)
    else:
        stored = rounded((fitted / scales[:, None]).astype(np.float32), plan.dtype)
    bias = y_mean[:, 0] - (x_mean.astype(np.float64) @ (stored.astype(np.float64) * scales[:, None]))[:, 0]
    return replace(
        plan,
        weights=from_matrices(layer, stored),
        weight_scale=scales.reshape(-1),
        bias=bias.astype(np.float32).reshape(-1) if options.bias else None,
    )


def _trace(gram: np.ndarray) -> np.ndarray:
    """The mean of the diagonal of each of gram[g, k, k], as [g, 1, 1]; never zero."""
    mean: np.ndarray = np.diagonal(gram, 0, 1, 2).mean(1)[:, None, None]
    return mean + 1e-30


def _regressed(w: np.ndarray, gram: np.ndarray, moment: np.ndarray, ridge: float) -> np.ndarray:
    """argmin |y - x v|^2 + r |v - w|^2 for the moments of x and y, w f64[g, k, n]."""
    pull = ridge * _trace(gram) * np.eye(gram.shape[1])
    fitted: np.ndarray = w + np.linalg.solve(gram + pull, moment - gram @ w)
    return fitted


def _channel_scales(w: np.ndarray, importance: np.ndarray, dtype: DType) -> np.ndarray:
    """f32[g, n]: for each column of w[g, k, n] the scale of the smallest rounding error, rows weighted by [g, k]."""
    largest: np.ndarray = np.abs(w).max(1)
    base = np.maximum(largest / LARGEST[dtype], SMALLEST).astype(np.float32)
    steps = np.arange(PHASES) / PHASES
    factors = np.exp2(steps) if dtype.is_float else 1.0 - 0.5 * steps
    least = np.full(base.shape, np.inf)
    found = base.copy()
    for factor in factors.astype(np.float32):
        scale = base * factor
        error = rounded((w / scale[:, None]).astype(np.float32), dtype).astype(np.float32) * scale[:, None] - w
        total = (importance[:, None] @ np.square(error))[:, 0]
        better = total < least
        least[better], found[better] = total[better], scale[better]
    return found


def _compensated(w: np.ndarray, gram: np.ndarray, scale: np.ndarray, dtype: DType) -> np.ndarray:
    """w[g, k, n] / scale[g, n] rounded to `dtype` one row after another, those of the largest operands first."""
    groups, k = np.arange(len(w))[:, None], w.shape[1]
    order = np.argsort(-np.diagonal(gram, 0, 1, 2), axis=1, kind="stable")
    damped = gram[groups[..., None], order[:, :, None], order[:, None, :]]
    damped = damped + DAMPING * _trace(gram) * np.eye(k)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).swapaxes(1, 2)
    left = w[groups, order]
    stored = np.zeros(w.shape, dtype.numpy)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        errors = np.zeros((len(w), stop - start, w.shape[2]))
        for i in range(start, stop):
            stored[:, i] = rounded((left[:, i] / scale).astype(np.float32), dtype)
            lost = left[:, i] - stored[:, i].astype(np.float32) * scale
            errors[:, i - start] = lost / upper[:, i, i, None]
            left[:, i + 1 : stop] -= upper[:, i, i + 1 : stop, None] * errors[:, None, i - start]
        left[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
    result = np.empty_like(stored)
    result[groups, order] = stored
    return result

"""Rules that replace formulas by a single op, if the model's opset has it.

Invariant: the op is equivalent to the formula that it replaces, up to rounding; no rule adds nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ppuc.compiler.simplify.model import ModelGraph, Node
from ppuc.compiler.simplify.rules.arithmetic import is_wide
from ppuc.compiler.simplify.rules.base import rule
from ppuc.compiler.simplify.rules.views import VIEWS
from ppuc.compiler.simplify.symbolic_values import axes_of
from ppuc.ir.scaling import factors_merge, moderate


def operand_and_scalar(g: ModelGraph, node: Node | None, *ops: str) -> tuple[str, float] | None:
    """The operand and the scalar constant of a binary node with one of these ops; in Sub, Div and Pow, the constant
    must be the second operand."""
    if node is None or node.op not in ops or node.domain:
        return None
    for i in (1, 0) if node.op in ("Add", "Mul") else (1,):
        number = g.scalar(node.inputs[i])
        if number is not None and g.shape(node.inputs[1 - i]) == g.shape(node.outputs[0]):
            return node.inputs[1 - i], number
    return None


def _orders(node: Node) -> Iterator[tuple[str, str]]:
    yield node.inputs[0], node.inputs[1]
    yield node.inputs[1], node.inputs[0]


def _inner(g: ModelGraph, name: str, *ops: str) -> Node | None:
    """The producer of a tensor with a single reader."""
    return g.producer(name, *ops) if g.only_consumer(name) is not None else None


# Normalisations


@rule("Div")
def layer_normalisation(g: ModelGraph, node: Node) -> bool:
    """(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + e) -> LayerNormalization of scale 1."""
    if g.opset < 17 or not is_wide(g, node.outputs[0]):
        return False
    root = _inner(g, node.inputs[1], "Sqrt")
    shifted = operand_and_scalar(g, _inner(g, root.inputs[0], "Add") if root is not None else None, "Add")
    variance = _inner(g, shifted[0], "ReduceMean") if shifted is not None else None
    center = g.producer(node.inputs[0], "Sub")
    if shifted is None or variance is None or center is None or not _squares(g, variance.inputs[0], node.inputs[0]):
        return False
    mean, shape = g.producer(center.inputs[1], "ReduceMean"), g.shape(center.inputs[0])
    if mean is None or shape is None or mean.inputs[0] != center.inputs[0] or not mean.attr("keepdims", 1):
        return False
    axes = axes_of(g, mean, 1, len(shape))
    if axes != [len(shape) - 1] or axes_of(g, variance, 1, len(shape)) != axes or not isinstance(shape[-1], int):
        return False
    if any(n in g.pinned for n in (*center.outputs, *mean.outputs)) or len(g.consumers(node.inputs[0])) > 3:
        return False
    ones = g.constant(np.ones(shape[-1], _numpy(g, node.outputs[0])), f"{node.outputs[0]}.scale")
    zeros = g.constant(np.zeros(shape[-1], _numpy(g, node.outputs[0])), f"{node.outputs[0]}.bias")
    g.rewrite(node, "LayerNormalization", [center.inputs[0], ones, zeros], axis=-1, epsilon=shifted[1])
    return True


def _numpy(g: ModelGraph, name: str) -> type:
    return np.float64 if g.dtype(name) == 11 else np.float32


def _squares(g: ModelGraph, name: str, x: str) -> bool:
    """Whether `name` is x ** 2 or x * x."""
    node = _inner(g, name, "Pow", "Mul")
    if node is None:
        return False
    return node.inputs == [x, x] if node.op == "Mul" else node.inputs[0] == x and g.scalar(node.inputs[1]) == 2.0


@rule("Div")
def rms_normalisation(g: ModelGraph, node: Node) -> bool:
    """x / sqrt(mean(x ** 2) + e) -> RMSNormalization of scale 1 (opset 23)."""
    if g.opset < 23 or not is_wide(g, node.outputs[0]):
        return False
    root = _inner(g, node.inputs[1], "Sqrt")
    shifted = operand_and_scalar(g, _inner(g, root.inputs[0], "Add") if root is not None else None, "Add")
    mean = _inner(g, shifted[0], "ReduceMean") if shifted is not None else None
    x, shape = node.inputs[0], g.shape(node.inputs[0])
    if shifted is None or mean is None or shape is None or not _squares(g, mean.inputs[0], x):
        return False
    if axes_of(g, mean, 1, len(shape)) != [len(shape) - 1] or not isinstance(shape[-1], int):
        return False
    scale = g.constant(np.ones(shape[-1], _numpy(g, x)), f"{node.outputs[0]}.scale")
    g.rewrite(node, "RMSNormalization", [x, scale], axis=-1, epsilon=shifted[1])
    return True


@rule("Mul")
def scale_of_norm(g: ModelGraph, node: Node) -> bool:
    """RMSNormalization(x, s) * c -> RMSNormalization(x, s * c)."""
    for name, other in _orders(node):
        norm, constant = _inner(g, name, "RMSNormalization"), g.array(other)
        if norm is None or constant is None or norm.inputs[1] not in g.constants:
            continue
        scale = g.constants[norm.inputs[1]].array
        if (constant.shape == scale.shape or constant.size == 1) and factors_merge(scale, constant.reshape(-1)):
            g.rewire(norm, 1, g.constant((scale * constant.reshape(-1)).astype(scale.dtype), f"{name}.scale"))
            return g.replace(node, name)
    return False


# Activations


@rule("Mul", "Div")
def hard_sigmoid(g: ModelGraph, node: Node) -> bool:
    """clip(x + 3, 0, 6) / 6 -> HardSigmoid."""
    found = operand_and_scalar(g, node, "Mul", "Div")
    if found is None:
        return False
    name, number = found
    factor = number if node.op == "Mul" else 1 / number if number else 0.0
    inner = _clipped(g, name)
    if inner is None or not math.isclose(factor * inner[3], 1.0, rel_tol=1e-6) or inner[2] != 0:
        return False
    x, offset = inner[0], inner[1]
    g.rewrite(node, "HardSigmoid", [x], alpha=factor, beta=offset * factor)
    return True


def _clipped(g: ModelGraph, name: str) -> tuple[str, float, float, float] | None:
    """x, offset, low and high of clip(x + offset, low, high)."""
    clip = _inner(g, name, "Clip")
    if clip is None:
        return None
    bounds = clip_bounds(g, clip)
    shifted = operand_and_scalar(g, _inner(g, clip.inputs[0], "Add"), "Add")
    return None if bounds is None or shifted is None else (*shifted, *bounds)


def clip_bounds(g: ModelGraph, node: Node) -> tuple[float, float] | None:
    """The constant bounds of a Clip; None when they are computed."""
    if g.opset < 11:
        return node.attr("min", -math.inf), node.attr("max", math.inf)
    found = [g.scalar(n) if n else default for n, default in ((node.input(1), -math.inf), (node.input(2), math.inf))]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


@rule("Mul", "Div")
def hard_swish(g: ModelGraph, node: Node) -> bool:
    """x * HardSigmoid(x), and x * clip(x + 3, 0, 6) / 6 -> HardSwish (opset 14)."""
    if g.opset < 14:
        return False
    if node.op == "Mul":
        for x, name in _orders(node):
            gate = _inner(g, name, "HardSigmoid")
            if gate is not None and gate.inputs[0] == x and _is_hard_swish_gate(gate):
                g.rewrite(node, "HardSwish", [x])
                return True
    found = operand_and_scalar(g, node, "Mul", "Div")
    scaled = _inner(g, found[0], "Mul") if found is not None else None
    if found is None or scaled is None:
        return False
    factor = found[1] if node.op == "Mul" else 1 / found[1] if found[1] else 0.0
    for x, name in _orders(scaled):
        inner = _clipped(g, name)
        if inner is not None and inner == (x, 3.0, 0.0, 6.0) and math.isclose(factor, 1 / 6, rel_tol=1e-6):
            g.rewrite(node, "HardSwish", [x])
            return True
    return False


def _is_hard_swish_gate(gate: Node) -> bool:
    return math.isclose(gate.attr("alpha", 0.2), 1 / 6, rel_tol=1e-6) and math.isclose(gate.attr("beta", 0.5), 0.5)


@rule("Clip")
def clip_of_relu(g: ModelGraph, node: Node) -> bool:
    """clip(relu(x), 0 or more, high) -> clip(x, ...)."""
    relu, bounds = _inner(g, node.inputs[0], "Relu"), clip_bounds(g, node)
    if relu is None or bounds is None or bounds[0] < 0:
        return False
    g.rewire(node, 0, relu.inputs[0])
    return True


@rule("Relu")
def relu_of_positive(g: ModelGraph, node: Node) -> bool:
    """relu(relu(x)), relu(clip(x, 0 or more)), relu(sigmoid(x)) -> the inner one."""
    inner = g.producer(node.inputs[0], "Relu", "Clip", "Sigmoid", "Softmax", "Exp")
    bounds = clip_bounds(g, inner) if inner is not None and inner.op == "Clip" else (0.0, 0.0)
    return inner is not None and bounds is not None and bounds[0] >= 0 and g.replace(node, node.inputs[0])


@rule("Mul")
def gelu(g: ModelGraph, node: Node) -> bool:
    """x * (erf(x / sqrt(2)) + 1) * 0.5, in any order of the products -> Gelu (opset 20)."""
    if g.opset < 20:
        return False
    factors = _factors(g, node.outputs[0])
    numbers = [n for n in (g.scalar(f) for f in factors) if n is not None]
    rest = [f for f in factors if g.scalar(f) is None]
    if not moderate(*numbers) or not math.isclose(math.prod(numbers), 0.5, rel_tol=1e-6) or len(rest) != 2:
        return False
    for x, gate in (rest, rest[::-1]):
        shifted = operand_and_scalar(g, _inner(g, gate, "Add"), "Add")
        erf = _inner(g, shifted[0], "Erf") if shifted is not None and shifted[1] == 1.0 else None
        scaled = _inner(g, erf.inputs[0], "Mul", "Div") if erf is not None else None
        found = operand_and_scalar(g, scaled, "Mul", "Div")
        if scaled is None or found is None or found[0] != x:
            continue
        if math.isclose(found[1], math.sqrt(2) if scaled.op == "Div" else math.sqrt(0.5), rel_tol=1e-6):
            g.rewrite(node, "Gelu", [x])
            return True
    return False


def _factors(g: ModelGraph, name: str) -> list[str]:
    """The operands of a tree of products whose inner results have no other readers."""
    node = g.producer(name, "Mul")
    if node is None:
        return [name]
    return [f for n in node.inputs for f in (_factors(g, n) if _inner(g, n, "Mul") is not None else [n])]


# Reductions


@rule(*VIEWS)
def reduction_without_axes(g: ModelGraph, node: Node) -> bool:
    """squeeze(reduce(x, keepdims = 1)) -> reduce(x, keepdims = 0); a global average pool is such a reduction."""
    kinds = [f"Reduce{k}" for k in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")]
    source = _inner(g, node.inputs[0], *kinds, "GlobalAveragePool")
    x = g.shape(source.inputs[0]) if source is not None else None
    if source is None or x is None:
        return False
    pool = source.op == "GlobalAveragePool"
    axes = list(range(2, len(x))) if pool else axes_of(g, source, 1, len(x))
    if axes is None or not (pool or source.attr("keepdims", 1)):
        return False
    if g.shape(node.outputs[0]) != tuple(s for i, s in enumerate(x) if i not in axes):
        return False
    op = "ReduceMean" if pool else source.op
    by_input = g.opset >= (13 if op == "ReduceSum" else 18)
    if by_input:
        name = g.constant(np.array(axes, np.int64), f"{node.outputs[0]}.axes")
        g.rewrite(node, op, [source.inputs[0], name], keepdims=0)
    else:
        g.rewrite(node, op, [source.inputs[0]], axes=axes, keepdims=0)
    return True

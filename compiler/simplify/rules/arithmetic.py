"""Rules for arithmetic with constants: fold scales, shifts and batch normalisations into adjacent weights.

A scale moves *up* into the producer of its operand (weights, biases, parameters of norms; through additions of
constants, and, if it is a scalar, through reshapes and transposes), or *down* into the weights of all readers of its
result. Only f32 and f64 are rewritten. Invariant: no rule adds nodes; results change only by rounding, because
constants are merged only if no product leaves the range of its format (`ppuc.ir.scaling`).
"""

from __future__ import annotations

import numpy as np
import onnx

from ppuc.compiler.simplify.model import ModelGraph, Node, Shape
from ppuc.compiler.simplify.rules.base import rule
from ppuc.compiler.simplify.rules.views import VIEWS
from ppuc.compiler.simplify.symbolic_sizes import broadcast_shapes
from ppuc.ir.scaling import REACH, factors_merge, moderate, terms_merge, weights_take

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NORMS = ("LayerNormalization", "BatchNormalization", "InstanceNormalization")
_WIDE = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def is_wide(g: ModelGraph, name: str) -> bool:
    """Whether a tensor is f32 or f64: weights of narrower formats must not be rounded again."""
    return g.dtype(name) in _WIDE


def split_constant(g: ModelGraph, node: Node) -> tuple[str, np.ndarray] | None:
    """The other operand and the constant of a binary node; for Sub and Div the constant has to be the second."""
    a, b = node.inputs
    if b in g.constants and a not in g.constants:
        return a, g.constants[b].array
    if a in g.constants and b not in g.constants and node.op in ("Add", "Mul"):
        return b, g.constants[a].array
    return None


def channel_vector(constant: np.ndarray, rank: int, axis: int) -> np.ndarray | None:
    """A constant that varies only along `axis` of a tensor of `rank`, as rank 0 or 1; None for other constants."""
    if constant.size == 1:
        return constant.reshape(()) if constant.ndim <= rank else None
    position = axis % rank - (rank - constant.ndim)
    if position < 0 or constant.ndim > rank or constant.size != constant.shape[position]:
        return None
    return constant.reshape(-1)


def channel_axis(node: Node) -> int:
    """The axis of a linear node's or norm's output along which its weights vary."""
    return -1 if node.op in ("Gemm", "MatMul", "LayerNormalization") else 1


# Upwards


def scale_up(g: ModelGraph, reader: Node, name: str, factor: np.ndarray, dry: bool) -> bool:
    """Multiply tensor `name`, whose only reader is `reader`, by `factor` (which broadcasts to it) in its producer.
    Returns whether that is possible; with `dry`, nothing is changed."""
    node, shape = g.producer(name), g.shape(name)
    if node is None or node.domain or shape is None or g.only_consumer(name) is not reader or not is_wide(g, name):
        return False
    if node.op in (*LINEAR, *NORMS):
        vector = channel_vector(factor, len(shape), channel_axis(node))
        if vector is not None and _scale_weights(g, node, vector, dry):
            return True
        return node.op == "MatMul" and factor.size == 1 and any(scale_up(g, node, n, factor, dry) for n in node.inputs)
    if node.op in ("Add", "Sub", "Mul", "Div"):
        return _scale_binary(g, node, factor, shape, dry)
    if node.op in (*VIEWS, "Transpose") and factor.size == 1:
        return scale_up(g, node, node.inputs[0], factor.reshape(()), dry)
    return False


def _scale_binary(g: ModelGraph, node: Node, factor: np.ndarray, shape: Shape, dry: bool) -> bool:
    parts = split_constant(g, node)
    if parts is None or g.shape(parts[0]) != shape:
        return False
    x, constant = parts
    if np.broadcast_shapes(constant.shape, factor.shape) not in (constant.shape, factor.shape):
        return False
    index = node.inputs.index(x)
    if node.op in ("Add", "Sub"):
        if not _finite_product(constant, factor) or not scale_up(g, node, x, factor, dry):
            return False
    elif not factors_merge(constant, factor if node.op == "Mul" else 1 / factor):
        return False
    if not dry:
        changed = constant / factor if node.op == "Div" else constant * factor
        g.rewire(node, 1 - index, g.constant(changed.astype(constant.dtype), f"{node.outputs[0]}.constant"))
    return True


def _scale_weights(g: ModelGraph, node: Node, factor: np.ndarray, dry: bool) -> bool:
    """Scale the output channels of a linear node or norm."""
    scaled = [1, 2] if node.op in ("Conv", "ConvTranspose", "Gemm", *NORMS) else [1]
    scaled = [i for i in scaled if node.input(i)]
    if any(node.inputs[i] not in g.constants for i in scaled) or any(node.outputs[1:]):
        return False
    if factor.ndim and not _channels_match(g, node, len(factor)):
        return False
    constants = [g.constants[node.inputs[i]].array for i in scaled]
    along = _along_outputs(node, constants[0], factor) if node.op in LINEAR else factor
    if dry:
        return weights_take(constants[0], along) and all(_finite_product(c, factor) for c in constants[1:])
    for i, constant, own in zip(scaled, constants, (along, factor), strict=False):
        g.rewire(node, i, g.constant((constant * own).astype(constant.dtype), f"{node.inputs[i]}.scaled"))
    return True


def _finite_product(constant: np.ndarray, factor: np.ndarray) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite((constant * factor).astype(constant.dtype)).all())


def _factor_of(node: Node, constant: np.ndarray) -> np.ndarray | None:
    """The factor of a Mul or Div by `constant`; None if it must not be merged with other constants."""
    if not moderate(constant) or (node.op == "Div" and not constant.all()):
        return None
    return np.asarray(1 / constant) if node.op == "Div" else constant


def _channels_match(g: ModelGraph, node: Node, channels: int) -> bool:
    shape = g.shape(node.outputs[0])
    if shape is None or shape[channel_axis(node)] != channels:
        return False
    if node.op in NORMS:
        return g.constants[node.inputs[1]].shape == (channels,)
    return node.op != "ConvTranspose" or node.attr("group", 1) == 1


def _along_outputs(node: Node, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """`factor` in the shape that multiplies the output channels of `weights`."""
    if factor.ndim == 0:
        return factor
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 0 if node.attr("transB", 0) else 1}[node.op]
    return factor.reshape([-1 if i == axis % weights.ndim else 1 for i in range(weights.ndim)])


@rule("Mul", "Div")
def scale_into_producer(g: ModelGraph, node: Node) -> bool:
    """mul(conv(x, w, b), c) -> conv(x, w * c, b * c)."""
    parts = split_constant(g, node)
    if parts is None or g.shape(parts[0]) != g.shape(node.outputs[0]) or g.shape(parts[0]) is None:
        return False
    x, constant = parts
    factor = _factor_of(node, constant)
    if factor is None or not is_wide(g, x) or not scale_up(g, node, x, factor, dry=True):
        return False
    scale_up(g, node, x, factor, dry=False)
    return _bypass(g, node, x)


def _bypass(g: ModelGraph, node: Node, x: str) -> bool:
    """Remove a node that has been folded into another; if its output's name is pinned, replace it by an Identity."""
    if not g.replace(node, x):
        g.rewrite(node, "Identity", [x])
    return True


@rule("Add", "Sub")
def shift_into_producer(g: ModelGraph, node: Node) -> bool:
    """add(conv(x, w, b), c) -> conv(x, w, b + c); add(matmul(x, w), c) -> gemm(x, w, c) for matrices."""
    parts = split_constant(g, node)
    if parts is None or not is_wide(g, parts[0]) or g.shape(parts[0]) != g.shape(node.outputs[0]):
        return False
    x, constant = parts
    source, shape = g.producer(x), g.shape(x)
    if source is None or source.domain or shape is None or g.only_consumer(x) is not node:
        return False
    shift = -constant if node.op == "Sub" else constant
    if source.op in ("Add", "Sub"):
        return _merge_shifts(g, node, source, shift)
    if source.op not in (*LINEAR, *NORMS):
        return False
    vector = channel_vector(shift, len(shape), channel_axis(source))
    if vector is None or not _bias_takes(g, source, vector) or not _add_bias(g, source, vector):
        return False
    return _bypass(g, node, x)


def _merge_shifts(g: ModelGraph, node: Node, source: Node, shift: np.ndarray) -> bool:
    """add(add(x, a), b) -> add(x, a + b)."""
    parts = split_constant(g, source)
    if parts is None or g.shape(parts[0]) != g.shape(source.outputs[0]):
        return False
    inner = -parts[1] if source.op == "Sub" else parts[1]
    if not terms_merge(inner, shift):
        return False
    total, rank = inner + shift, len(g.shape(parts[0]) or ())
    if total.ndim > rank:
        return False
    g.rewrite(node, "Add", [parts[0], g.constant(total.astype(shift.dtype), f"{node.outputs[0]}.constant")])
    return True


def _bias_takes(g: ModelGraph, node: Node, shift: np.ndarray) -> bool:
    """Whether `shift` can be merged into the bias of a linear node or norm."""
    own = g.array(node.input(2))
    return own is None or terms_merge(own * np.asarray(node.attr("beta", 1.0), own.dtype), shift)


def _add_bias(g: ModelGraph, node: Node, shift: np.ndarray) -> bool:
    """Add `shift` to the bias of a linear node or norm, creating the bias if there is none."""
    shape = g.shape(node.outputs[0])
    channels = shape[channel_axis(node)] if shape is not None else None
    if not isinstance(channels, int) or any(node.outputs[1:]):
        return False
    if node.op == "MatMul":
        return _matmul_to_gemm(g, node, np.broadcast_to(shift, (channels,)))
    if node.op in NORMS and (node.input(1) not in g.constants or g.constants[node.inputs[1]].shape != (channels,)):
        return False
    own: np.ndarray | float = 0.0
    if node.input(2):
        if node.inputs[2] not in g.constants:
            return False
        own = g.constants[node.inputs[2]].array
        shift = shift / node.attr("beta", 1.0) if node.op == "Gemm" else shift
    elif node.op == "Gemm":
        node.set(beta=None)
    total = own + np.broadcast_to(shift, (channels,))
    g.rewire(node, 2, g.constant(total.astype(shift.dtype), f"{node.outputs[0]}.bias"))
    return True


def _matmul_to_gemm(g: ModelGraph, node: Node, bias: np.ndarray) -> bool:
    shapes = [g.shape(n) for n in node.inputs]
    if any(s is None or len(s) != 2 for s in shapes) or not is_wide(g, node.outputs[0]):
        return False
    g.rewrite(node, "Gemm", [*node.inputs, g.constant(np.ascontiguousarray(bias), f"{node.outputs[0]}.bias")])
    return True


@rule("BatchNormalization")
def normalisation_into_producer(g: ModelGraph, node: Node) -> bool:
    """bn(conv(x, w, b)) -> conv(x, w * s, b * s + t)."""
    x, parameters = node.inputs[0], [g.array(n) for n in node.inputs[1:5]]
    source, shape = g.producer(x, *LINEAR, "BatchNormalization"), g.shape(x)
    if source is None or shape is None or any(p is None for p in parameters) or not is_wide(g, x):
        return False
    if g.only_consumer(x) is not node or any(node.outputs[1:]) or node.attr("training_mode", 0):
        return False
    if channel_axis(source) % len(shape) != 1:
        return False
    scale, bias, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    factor = scale / np.sqrt(variance + node.attr("epsilon", 1e-5))
    shift, dtype = bias - mean * factor, parameters[0].dtype  # type: ignore[union-attr]
    has_bias = source.op == "MatMul" or (bool(source.input(2)) and source.inputs[2] not in g.constants)
    with np.errstate(over="ignore"):
        shift = shift.astype(dtype)
    if has_bias or not np.isfinite(shift).all():
        return False
    if not _scale_weights(g, source, np.where(_dead(factor, shift), 0.0, factor), dry=True):
        return False
    _scale_weights(g, source, factor, dry=False)
    _add_bias(g, source, shift)
    return _bypass(g, node, x)


def _dead(factor: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Channels that training switched off: activations up to 2**20 are negligible against their shift."""
    return np.asarray((np.abs(factor) < 2.0 ** -REACH[4]) & (np.abs(shift) > 2.0**-20))


# Downwards


@rule("Mul", "Div")
def scale_into_readers(g: ModelGraph, node: Node) -> bool:
    """matmul(mul(x, c), w) -> matmul(x, c * w), in all that read the product."""
    parts = split_constant(g, node)
    name = node.outputs[0]
    if parts is None or name in g.pinned or not is_wide(g, name) or g.shape(parts[0]) != g.shape(name):
        return False
    x, constant = parts
    factor, readers = _factor_of(node, constant), g.consumers(name)
    if factor is None or not readers or any(not scale_down(g, r, name, factor, dry=True) for r in readers):
        return False
    for reader in readers:
        scale_down(g, reader, name, factor, dry=False)
    return g.replace(node, x)


def scale_down(g: ModelGraph, reader: Node, name: str, factor: np.ndarray, dry: bool) -> bool:
    """Multiply the weights that `reader` applies to tensor `name` by `factor`, instead of the tensor."""
    shape, op = g.shape(name), reader.op
    if shape is None or reader.domain or reader.inputs.count(name) != 1:
        return False
    if op in (*VIEWS, "Transpose") and reader.inputs[0] == name and factor.size == 1:
        below, result = g.consumers(reader.outputs[0]), reader.outputs[0]
        return bool(below) and result not in g.pinned and all(scale_down(g, r, result, factor, dry) for r in below)
    if op not in LINEAR or reader.inputs[0] != name or reader.input(1) not in g.constants:
        return False
    if len(g.consumers(reader.inputs[1])) != 1 or (op == "Gemm" and reader.attr("transA", 0)):
        return False  # shared weights would have to be duplicated
    vector = channel_vector(factor, len(shape), -1 if op in ("Gemm", "MatMul") else 1)
    if vector is None or (vector.ndim and op in ("Conv", "ConvTranspose") and reader.attr("group", 1) != 1):
        return False
    weights = g.constants[reader.inputs[1]].array
    axis = {"Conv": 1, "ConvTranspose": 0, "MatMul": -2, "Gemm": 1 if reader.attr("transB", 0) else 0}[op]
    axis = max(axis % weights.ndim, 0) if weights.ndim > 1 else 0
    spread = vector if vector.ndim == 0 else vector.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    if dry:
        return weights_take(weights, spread)
    g.rewire(reader, 1, g.constant((weights * spread).astype(weights.dtype), f"{reader.inputs[1]}.scaled"))
    return True


# Neutral elements


@rule("Add", "Sub", "Mul", "Div", "Pow")
def neutral_constant(g: ModelGraph, node: Node) -> bool:
    """x + 0, x - 0, x * 1, x / 1, x ** 1."""
    neutral = 0.0 if node.op in ("Add", "Sub") else 1.0
    for i in (1, 0) if node.op in ("Add", "Mul") else (1,):
        x = node.inputs[1 - i]
        if g.scalar(node.inputs[i]) == neutral and g.shape(x) is not None and g.shape(x) == g.shape(node.outputs[0]):
            return g.replace(node, x)
    return False


@rule("And", "Or")
def neutral_condition(g: ModelGraph, node: Node) -> bool:
    """x and true, x or false."""
    for i in (0, 1):
        x, constant = node.inputs[1 - i], g.array(node.inputs[i])
        same = g.shape(x) is not None and g.shape(x) == g.shape(node.outputs[0])
        if same and constant is not None and (constant == (node.op == "And")).all():
            return g.replace(node, x)
    return False


@rule("Where")
def constant_choice(g: ModelGraph, node: Node) -> bool:
    """where(c, x, y) with a constant c that is the same everywhere -> x or y."""
    condition = g.array(node.inputs[0])
    if condition is None or condition.size == 0 or not (condition == condition.flat[0]).all():
        return False
    chosen = node.inputs[1 if condition.flat[0] else 2]
    same = g.shape(chosen) is not None and g.shape(chosen) == g.shape(node.outputs[0])
    return same and g.replace(node, chosen)


@rule("Mul")
def division_by_root(g: ModelGraph, node: Node) -> bool:
    """y * reciprocal(x), y * (1 / x) -> y / x."""
    for i in (0, 1):
        source = g.producer(node.inputs[i], "Reciprocal", "Div")
        if source is None or g.only_consumer(node.inputs[i]) is not node or not is_wide(g, node.outputs[0]):
            continue
        if source.op == "Div" and g.scalar(source.inputs[0]) != 1.0:
            continue
        divisor = source.inputs[-1]
        shapes = [g.shape(node.inputs[1 - i]), g.shape(divisor)]
        if shapes[0] is None or shapes[1] is None or broadcast_shapes(*shapes) != g.shape(node.outputs[0]):  # type: ignore[arg-type]
            continue
        g.rewrite(node, "Div", [node.inputs[1 - i], divisor])
        return True
    return False


@rule("Add", "Sub")
def sign_of_operand(g: ModelGraph, node: Node) -> bool:
    """x + (-y) -> x - y; x - (-y) -> x + y."""
    for i in (1, 0) if node.op == "Add" else (1,):
        source = g.producer(node.inputs[i], "Neg")
        if source is not None and g.only_consumer(node.inputs[i]) is node:
            g.rewrite(node, "Sub" if node.op == "Add" else "Add", [node.inputs[1 - i], source.inputs[0]])
            return True
    return False


# Matrix products


@rule("Gemm")
def product_without_reshapes(g: ModelGraph, node: Node) -> bool:
    """reshape(gemm(reshape(x), w, b)) -> matmul(x, w) + b, if that saves a node and the reshapes only merge and split
    leading axes."""
    before, after = g.producer(node.inputs[0], *VIEWS), g.only_consumer(node.outputs[0])
    if before is None or node.attr("transA", 0) or node.attr("alpha", 1.0) != 1.0 or node.attr("beta", 1.0) != 1.0:
        return False
    x, flat, y = g.shape(before.inputs[0]), g.shape(node.inputs[0]), g.shape(node.outputs[0])
    bias, weights = node.input(2), g.array(node.inputs[1])
    if x is None or flat is None or y is None or weights is None or len(x) < 3 or x[-1] != flat[-1]:
        return False
    if after is None or after.op not in VIEWS or g.shape(after.outputs[0]) != (*x[:-1], y[-1]):
        return False
    if bias and len(g.shape(bias) or (0, 0)) > 1:
        return False
    if bias and g.only_consumer(node.inputs[0]) is None:
        return False
    if node.attr("transB", 0):
        weights = np.ascontiguousarray(weights.T)
    operands = [before.inputs[0], g.constant(weights, f"{node.inputs[1]}.matrix")]
    if not bias:
        g.rewrite(after, "MatMul", operands)
        return True
    product = g.emit(after, "MatMul", operands, f"{after.outputs[0]}.product")
    g.types[product.outputs[0]] = g.types[after.outputs[0]]
    g.rewrite(after, "Add", [product.outputs[0], bias])
    return True


@rule("Gemm")
def transposed_operand(g: ModelGraph, node: Node) -> bool:
    """gemm(transpose(a), b) -> gemm with transA; likewise for b."""
    for i, name in enumerate(("transA", "transB")):
        source = g.producer(node.inputs[i], "Transpose")
        if source is not None and len(g.shape(source.inputs[0]) or ()) == 2 and source.attr("perm", [1, 0]) == [1, 0]:
            g.rewire(node, i, source.inputs[0])
            node.set(**{name: 1 - node.attr(name, 0)})
            return True
    return False

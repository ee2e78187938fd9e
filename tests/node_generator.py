"""Random models of one ONNX node: sizes 0 and 1 and odd ones, broadcasts, negative axes and steps, extreme values.

Where ONNX Runtime and the specification disagree (docs/disagreements.md) the generator does not go.

Invariant: a kind and a seed give the same model and the same inputs every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

F32, F16, I64, I32, I8, U8, BOOL = (
    np.dtype(t) for t in (np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_)
)
UNARY = (
    "Abs",
    "Neg",
    "Exp",
    "Sqrt",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Round",
    "Sin",
    "Cos",
    "Tanh",
    "Sigmoid",
    "Erf",
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Softplus",
    "HardSigmoid",
    "HardSwish",
    "Softsign",
    "Sign",
    "Log",
    "Mish",
    "ThresholdedRelu",
    "Celu",
    "IsNaN",
    "IsInf",
    "Identity",
)
BINARY = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Min",
    "Max",
    "Pow",
    "Less",
    "Greater",
    "Equal",
    "LessOrEqual",
    "GreaterOrEqual",
    "And",
    "Or",
    "Xor",
    "Mod",
    "PRelu",
)
REDUCTION = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)
FLOATS = (F32, F32, F16)
NUMBERS = (F32, F32, I32, I64)
SIZES = (0, 1, 1, 2, 3, 5, 7, 8, 9, 16, 17, 33)
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3.4e38, -3.4e38, 0.5, 1.5, 2.5, -0.5], np.float32)


@dataclass(slots=True)
class Sample:
    """A node being made: its inputs so far, by name; those in `fixed` become initializers."""

    rng: np.random.Generator
    inputs: dict[str, np.ndarray]
    fixed: set[str]

    def size(self, low: int = 0) -> int:
        return int(self.rng.choice([s for s in SIZES if s >= low]))

    def shape(self, low: int = 0, high: int = 4, least: int = 0) -> tuple[int, ...]:
        """A shape of rank low..high, of sizes from `least` on, seldom with more than some thousand elements."""
        dims = [self.size(least) for _ in range(int(self.rng.integers(low, high + 1)))]
        while np.prod(dims, dtype=np.int64) > 4096:
            dims[int(np.argmax(dims))] = max(least, 2)
        return tuple(dims)

    def flip(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return int(self.rng.integers(-rank, rank))

    def array(self, dtype: np.dtype, shape: Sequence[int], special: float = 0.0) -> np.ndarray:
        """Values of either sign; a share `special` of floats are extreme ones."""
        if dtype == BOOL:
            return self.rng.integers(0, 2, shape).astype(bool)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            low, high = max(info.min, -20), min(info.max, 20)
            return self.rng.integers(low, high, shape).astype(dtype)
        values = (self.rng.standard_normal(shape) * 2).astype(dtype)
        if special:
            where = self.rng.random(shape) < special
            with np.errstate(over="ignore"):
                values = np.where(where, self.rng.choice(SPECIAL, shape), values).astype(dtype)
        return np.asarray(values)

    def add(self, array: np.ndarray, fixed: bool = False) -> str:
        """One more input."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = np.asarray(array)
        if fixed:
            self.fixed.add(name)
        return name

    def ints(self, values: Sequence[int]) -> str:
        """A constant list of i64."""
        return self.add(np.array(values, np.int64).reshape(len(values)), fixed=True)

    def broadcast(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        dims = [1 if self.flip(0.3) else d for d in shape]
        return tuple(dims[int(self.rng.integers(0, len(dims) + 1)) :]) if self.flip(0.4) else tuple(dims)


Made = tuple[str, list[str], dict[str, Any], int]
"""Op type, inputs, attributes, number of outputs."""


def unary(s: Sample) -> Made:
    op = s.pick(UNARY)
    dtype = F32 if op in ("Celu", "ThresholdedRelu", "IsInf", "Mish") else s.pick(FLOATS)
    if op in ("Abs", "Neg", "Sign", "Relu") and s.flip(0.3):
        dtype = s.pick((I32, I64, I8)) if op != "Relu" else I32
    return op, [s.add(s.array(dtype, s.shape(), special=0.15))], {}, 1


def binary(s: Sample) -> Made:
    op = s.pick(BINARY)
    shape = s.shape()
    dtype = BOOL if op in ("And", "Or", "Xor") else F32 if op in ("Pow", "PRelu") else s.pick(NUMBERS)
    a, b = s.array(dtype, s.broadcast(shape), 0.1), s.array(dtype, shape, 0.1)
    if s.flip() and op != "PRelu":
        a, b = b, a
    if op in ("Div", "Mod") and dtype.kind == "i":
        b = np.where(b == 0, np.array(3, dtype), b)
    if op == "PRelu":
        a, b = b, a
    return op, [s.add(a), s.add(b)], {"fmod": 1} if op == "Mod" and dtype.kind == "f" else {}, 1


def where(s: Sample) -> Made:
    shape, dtype = s.shape(), s.pick(NUMBERS)
    parts = [s.array(BOOL, s.broadcast(shape)), s.array(dtype, shape, 0.1), s.array(dtype, s.broadcast(shape))]
    return "Where", [s.add(p) for p in parts], {}, 1


def clip(s: Sample) -> Made:
    dtype = s.pick(NUMBERS)
    bounds = [s.add(np.array(v, dtype)) if s.flip(0.7) else "" for v in (-1, 2)]
    return "Clip", [s.add(s.array(dtype, s.shape(), 0.1 if all(bounds) else 0.0)), *bounds], {}, 1


def reduction(s: Sample) -> Made:
    op = s.pick(REDUCTION)
    shape = s.shape(1, 4, least=1)
    dtype = s.pick((F32, I32)) if op in ("ReduceSum", "ReduceMax", "ReduceMin") else F32
    count = int(s.rng.integers(0, len(shape) + 1))
    axes = [int(a) - (len(shape) if s.flip() else 0) for a in s.rng.permutation(len(shape))[:count]]
    inputs = [s.add(s.array(dtype, shape)), *([s.ints(axes)] if axes or s.flip() else [])]
    return op, inputs, {"keepdims": int(s.flip()), "noop_with_empty_axes": int(s.flip(0.3))}, 1


def arg(s: Sample) -> Made:
    shape = s.shape(1, 4, least=1)
    attributes = {"axis": s.axis(len(shape)), "keepdims": int(s.flip()), "select_last_index": int(s.flip())}
    values = s.rng.integers(-3, 3, shape).astype(s.pick((F32, I32)))
    return s.pick(("ArgMax", "ArgMin")), [s.add(values)], attributes, 1


def softmax(s: Sample) -> Made:
    shape = s.shape(1, 4, least=1)
    op = s.pick(("Softmax", "LogSoftmax", "Hardmax"))
    return op, [s.add(s.array(F32, shape) * s.pick((1, 30)))], {"axis": s.axis(len(shape))}, 1


def cumsum(s: Sample) -> Made:
    shape = s.shape(1, 3)
    axis = s.add(np.array(s.axis(len(shape)), np.int64), fixed=True)
    x = s.add(s.array(s.pick((F32, I32, I64)), shape))
    return "CumSum", [x, axis], {"exclusive": int(s.flip()), "reverse": int(s.flip())}, 1


def transpose(s: Sample) -> Made:
    shape = s.shape()
    attributes = {"perm": [int(p) for p in s.rng.permutation(len(shape))]} if shape and s.flip(0.8) else {}
    return "Transpose", [s.add(s.array(s.pick((*NUMBERS, U8, BOOL)), shape))], attributes, 1


def slice_(s: Sample) -> Made:
    shape = s.shape(1, 4)
    axes = [int(a) for a in s.rng.permutation(len(shape))[: int(s.rng.integers(1, len(shape) + 1))]]
    starts = [int(s.rng.integers(-shape[a] - 2, shape[a] + 3)) for a in axes]
    steps = [int(s.pick((1, 1, 2, 3, -1, -2))) for _ in axes]
    far = [2**63 - 1 if step > 0 else -(2**63) for step in steps]
    ends = [int(s.pick((s.rng.integers(-shape[a] - 2, shape[a] + 3), f))) for a, f in zip(axes, far, strict=True)]
    named = [a - len(shape) if s.flip() else a for a in axes]
    x = s.add(s.array(s.pick(NUMBERS), shape))
    return "Slice", [x, *map(s.ints, (starts, ends, named, steps))], {}, 1


def gather(s: Sample) -> Made:
    shape = s.shape(1, 3, least=1)
    axis = s.axis(len(shape))
    size, fixed = shape[axis], s.flip()
    indices = s.rng.integers(-size, size, s.shape(0, 2)).astype(s.pick((I32, I64)))
    return "Gather", [s.add(s.array(s.pick(NUMBERS), shape)), s.add(indices, fixed)], {"axis": axis}, 1


def gather_elements(s: Sample) -> Made:
    shape = s.shape(1, 3, least=1)
    axis = s.axis(len(shape))
    size = shape[axis]
    wanted = list(shape)
    wanted[axis] = s.size(1)
    indices = s.rng.integers(-size, size, wanted).astype(np.int64)
    return "GatherElements", [s.add(s.array(F32, shape)), s.add(indices, s.flip())], {"axis": axis}, 1


def scatter(s: Sample) -> Made:
    shape = s.shape(1, 3, least=1)
    axis, reduction = s.axis(len(shape)), s.pick(("none", "add", "mul", "max", "min"))
    wanted = [int(s.rng.integers(1, d + 1)) for d in shape]
    indices = np.argsort(s.rng.random(shape), axis=axis)[tuple(slice(n) for n in wanted)]
    if s.flip():
        indices = indices - shape[axis]
    inputs = [s.array(F32, shape), indices.astype(np.int64), s.array(F32, wanted)]
    return "ScatterElements", [s.add(i) for i in inputs], {"axis": axis, "reduction": reduction}, 1


def concat(s: Sample) -> Made:
    shape, dtype = list(s.shape(1, 4)), s.pick((*NUMBERS, BOOL))
    axis, names = s.axis(len(shape)), []
    for _ in range(int(s.rng.integers(1, 5))):
        shape[axis] = s.size()
        names.append(s.add(s.array(dtype, shape), s.flip(0.2)))
    return "Concat", names, {"axis": axis}, 1


def split(s: Sample) -> Made:
    shape = s.shape(1, 3)
    axis = s.axis(len(shape))
    cuts = sorted(int(c) for c in s.rng.integers(0, shape[axis] + 1, int(s.rng.integers(0, 3))))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, shape[axis]], strict=True)]
    return "Split", [s.add(s.array(F32, shape)), s.ints(sizes)], {"axis": axis}, len(sizes)


def pad(s: Sample) -> Made:
    shape, mode = s.shape(1, 4, least=2), s.pick(("constant", "edge", "reflect", "wrap"))
    low = [int(s.rng.integers(-1 if mode == "constant" else 0, min(d, 4))) for d in shape]
    high = [int(s.rng.integers(-1 if mode == "constant" else 0, min(d, 4))) for d in shape]
    inputs = [s.add(s.array(s.pick((F32, I32)), shape)), s.ints([*low, *high])]
    if mode == "constant" and s.flip():
        inputs.append(s.add(np.array(3, s.inputs[inputs[0]].dtype), fixed=True))
    return "Pad", inputs, {"mode": mode}, 1


def tile(s: Sample) -> Made:
    shape = s.shape(1, 3)
    return "Tile", [s.add(s.array(F32, shape)), s.ints([int(s.rng.integers(0, 4)) for _ in shape])], {}, 1


def expand(s: Sample) -> Made:
    shape = s.shape()
    return "Expand", [s.add(s.array(s.pick(NUMBERS), s.broadcast(shape))), s.ints(shape)], {}, 1


def matmul(s: Sample) -> Made:
    m, k, n = s.size(), s.size(), s.size()
    batch = s.shape(0, 2) if k else ()
    a, b = (*s.broadcast(batch), m, k), (*s.broadcast(batch), k, n)
    if s.flip(0.1):
        a = (k,)
    elif s.flip(0.1):
        b = (k,)
    dtype = s.pick((F32, F32, F16))
    return "MatMul", [s.add(s.array(dtype, a)), s.add(s.array(dtype, b), s.flip())], {}, 1


def gemm(s: Sample) -> Made:
    m, k, n = s.size(1), s.size(1), s.size(1)
    ta, tb = s.flip(), s.flip()
    inputs = [s.array(F32, (k, m) if ta else (m, k)), s.array(F32, (n, k) if tb else (k, n))]
    if s.flip():
        inputs.append(s.array(F32, s.pick(((m, n), (n,), (1, n), (m, 1), (1,), ()))))
    attributes = {"transA": int(ta), "transB": int(tb), "alpha": s.pick((1.0, 0.5)), "beta": s.pick((1.0, 2.0))}
    return "Gemm", [s.add(i) for i in inputs], attributes, 1


def _window(s: Sample, rank: int, space: Sequence[int]) -> dict[str, Any]:
    kernel = [int(s.rng.integers(1, min(d, 4) + 1)) for d in space]
    dilations = [int(s.rng.integers(1, 3)) if (k - 1) * 2 < d else 1 for k, d in zip(kernel, space, strict=True)]
    pads = [int(s.rng.integers(0, k)) for k in (*kernel, *kernel)]
    found = {"kernel_shape": kernel, "strides": [int(s.rng.integers(1, 4)) for _ in space], "dilations": dilations}
    if s.flip(0.2):
        found |= {"auto_pad": s.pick(("SAME_UPPER", "SAME_LOWER", "VALID")), "dilations": [1] * rank}
        found["strides"] = [min(a, k) for a, k in zip(found["strides"], kernel, strict=True)]
    else:
        found["pads"] = pads
    return found


def conv(s: Sample) -> Made:
    rank, groups = int(s.rng.integers(1, 4)), int(s.pick((1, 1, 2, 3)))
    space = [s.size(3) % 18 + 3 for _ in range(rank)]
    channels, outputs = groups * int(s.rng.integers(1, 5)), groups * int(s.rng.integers(1, 6))
    attributes = {**_window(s, rank, space), "group": groups}
    w = s.array(F32, (outputs, channels // groups, *attributes["kernel_shape"]))
    inputs = [s.add(s.array(F32, (int(s.rng.integers(1, 3)), channels, *space))), s.add(w, fixed=True)]
    if s.flip():
        inputs.append(s.add(s.array(F32, (outputs,)), fixed=True))
    return "Conv", inputs, attributes, 1


def pool(s: Sample) -> Made:
    rank, op = int(s.rng.integers(1, 4)), s.pick(("MaxPool", "AveragePool", "LpPool"))
    space = [s.size(3) % 18 + 3 for _ in range(rank)]
    attributes = _window(s, rank, space)
    attributes["ceil_mode"] = int(s.flip(0.3) and "pads" in attributes)
    if op == "AveragePool":
        attributes["count_include_pad"] = int(s.flip())
    if op == "LpPool":
        attributes["p"] = int(s.pick((1, 2)))
    return op, [s.add(s.array(F32, (int(s.rng.integers(1, 3)), int(s.rng.integers(1, 5)), *space)))], attributes, 1


def norm(s: Sample) -> Made:
    if s.flip():
        shape = s.shape(1, 4, least=1)
        axis = s.axis(len(shape))
        part = shape[axis % len(shape) :]
        inputs = [s.array(F32, shape), s.array(F32, part), *([s.array(F32, part)] if s.flip() else [])]
        return "LayerNormalization", [s.add(i) for i in inputs], {"axis": axis}, 1
    shape = (int(s.rng.integers(1, 3)), s.size(1), *s.shape(1, 2, least=2))
    vectors = [s.array(F32, (shape[1],)) for _ in range(2)]
    return "InstanceNormalization", [s.add(i) for i in (s.array(F32, shape), *vectors)], {}, 1


def topk(s: Sample) -> Made:
    shape = s.shape(1, 3, least=1)
    axis = s.axis(len(shape))
    x = s.rng.permutation(int(np.prod(shape))).reshape(shape).astype(F32)
    k = int(s.rng.integers(0, shape[axis] + 1))
    return "TopK", [s.add(x), s.ints([k])], {"axis": axis, "largest": int(s.flip())}, 2


def cast(s: Sample) -> Made:
    source, to = s.pick((F32, F16, I64, I32, I8, U8, BOOL)), s.pick((F32, F16, I64, I32, I8, U8, BOOL))
    x = s.array(source, s.shape())
    if to.kind == "u" and source.kind != "b":
        x = np.abs(x)
    return "Cast", [s.add(x)], {"to": helper.np_dtype_to_tensor_dtype(to)}, 1


def bits(s: Sample) -> Made:
    op, shape, dtype = s.pick(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift")), s.shape(), s.pick((I32, U8))
    if op == "BitShift":
        inputs = [s.array(U8, shape), s.rng.integers(0, 8, s.broadcast(shape)).astype(U8)]
        return op, [s.add(i) for i in inputs], {"direction": s.pick(("LEFT", "RIGHT"))}, 1
    return op, [s.add(s.array(dtype, shape)), s.add(s.array(dtype, s.broadcast(shape)))], {}, 1


def one_hot(s: Sample) -> Made:
    depth, shape = s.size(1), s.shape(0, 2)
    indices = s.rng.integers(-depth - 1, depth + 1, shape).astype(np.int64)
    axis = int(s.rng.integers(-len(shape) - 1, len(shape) + 1))
    values = np.array([-1, 2], np.float32)
    return "OneHot", [s.add(indices), s.add(np.array(depth, np.int64), True), s.add(values)], {"axis": axis}, 1


def resize(s: Sample) -> Made:
    shape = (1, int(s.rng.integers(1, 4)), s.size(1), s.size(1))
    sizes = [*shape[:2], s.size(1), s.size(1)]
    mode = s.pick(("nearest", "linear", "cubic"))
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": s.pick(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")),
    }
    if mode == "nearest":
        attributes["nearest_mode"] = s.pick(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    return "Resize", [s.add(s.array(F32, shape)), "", "", s.ints(sizes)], attributes, 1


KINDS: dict[str, Callable[[Sample], Made]] = {
    f.__name__.rstrip("_"): f
    for f in (
        unary, binary, where, clip, reduction, arg, softmax, cumsum, transpose, slice_, gather, gather_elements,
        scatter, concat, split, pad, tile, expand, matmul, gemm, conv, pool, norm, topk, cast, bits, one_hot, resize,
    )
}  # fmt: skip


def node_of_seed(kind: str, seed: int, opset: int = 19) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node and its inputs."""
    sample = Sample(np.random.default_rng([seed, *kind.encode()]), {}, set())
    op, inputs, attributes, outputs = KINDS[kind](sample)
    node = helper.make_node(op, inputs, [f"y{i}" for i in range(outputs)], name="node", **attributes)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in sample.inputs.items()
        if n not in sample.fixed
    ]
    weights = [numpy_helper.from_array(sample.inputs[n], n) for n in sorted(sample.fixed)]
    results = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)]
    graph = helper.make_graph([node], "one", infos, results, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return model, {n: x for n, x in sample.inputs.items() if n not in sample.fixed}

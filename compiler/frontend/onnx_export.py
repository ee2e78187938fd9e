"""Exports a level-1 graph as an ONNX model, so that ONNX Runtime can evaluate it.

Formats narrower than f32 are represented as float32 tensors restricted to the format's numbers: a cast to f8 becomes a
round trip, and a product of f8 or i8 operands a float product, which is exact as long as its sums are. So every op
exists for every format, and the model computes the graph's numbers up to the order of summation.

Invariant: tensors of the model have the names of the graph's values; nothing is fused, folded or reordered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as Proto

from ppuc.ir.errors import Diagnostic, ModelError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.base import OPS
from ppuc.ir.resource import Resource
from ppuc.ir.rewrite import Builder, all_names
from ppuc.ir.types import DType

OPSET = 19
_IR_VERSION = 9
_UNARY = {
    **{n: n.capitalize() for n in ("neg", "abs", "sign", "relu", "exp", "log", "sqrt", "reciprocal", "floor", "ceil")},
    **{n: n.capitalize() for n in ("round", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh")},
    **{n: n.capitalize() for n in ("asinh", "acosh", "atanh", "erf", "sigmoid", "not")},
    "isnan": "IsNaN",
    "bitnot": "BitwiseNot",
}
_BINARY = {
    **{n: n.capitalize() for n in ("add", "sub", "mul", "div", "pow", "min", "max", "and", "or", "xor")},
    "bitand": "BitwiseAnd",
    "bitor": "BitwiseOr",
    "bitxor": "BitwiseXor",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "select": "Where",
}
_F8 = {DType.F8E4M3: Proto.FLOAT8E4M3FN, DType.F8E5M2: Proto.FLOAT8E5M2}


def carried(dtype: DType) -> DType:
    """The type that represents values of `dtype` in the model."""
    return DType.F32 if dtype.is_float and dtype is not DType.F64 else dtype


def to_onnx(graph: Graph, outputs: Sequence[str]) -> bytes:
    """`graph` serialised as a model with the graph's parameters as inputs and the values named `outputs` as outputs.
    Raises ModelError naming an op without an ONNX form."""
    return _Exporter(graph).model(outputs)


class _Exporter:
    """One export."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.builder = Builder(all_names(graph))
        self.casts: dict[str, str] = {}
        self.constants = graph.constants()

    def model(self, outputs: Sequence[str]) -> bytes:
        types = {v.name: v.type for op in self.graph.ops for v in op.results}
        types |= {p.name: p.type for p in self.graph.params}
        for op in self.graph.ops:
            self.op(op)
        names = {name: name for name in outputs}
        params = {p.name for p in self.graph.params}
        constants = {t.name for t in self.initializers}
        for name in outputs:
            if name in params or name in constants:  # ONNX requires a node in between
                names[name] = self.node("Identity", [name])
        info = onnx.helper.make_tensor_value_info
        inputs = [info(p.name, _proto(carried(p.type.dtype)), p.type.dims) for p in self.graph.params]
        results = [info(names[n], _proto(carried(types[n].dtype)), types[n].dims) for n in outputs]
        built = onnx.helper.make_graph(self.nodes, self.graph.name, inputs, results, self.initializers)
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        made = onnx.helper.make_model(built, opset_imports=opsets, ir_version=_IR_VERSION)
        return bytes(made.SerializeToString())

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node; returns its output's name."""
        name = output or self.builder.fresh(f"{inputs[0] if inputs else kind}.{kind}")
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def const(self, array: np.ndarray, name: str = "") -> str:
        """Append an initializer; returns its name."""
        name = name or self.builder.fresh("c")
        data = np.ascontiguousarray(array)
        tensor = onnx.TensorProto(name=name, data_type=_proto(DType.of(data.dtype)), dims=array.shape)
        tensor.raw_data = data.tobytes()
        self.initializers.append(tensor)
        return name

    def ints(self, *numbers: int) -> str:
        return self.const(np.array(numbers, np.int64))

    def number(self, value: float, like: Value) -> str:
        return self.const(np.asarray(value).astype(carried(like.type.dtype).numpy))

    def floats(self, value: Value) -> str:
        """The tensor as floats: integers that a contraction multiplies."""
        if value.type.dtype.is_float:
            return value.name
        if value.name not in self.casts:
            self.casts[value.name] = self.node("Cast", [value.name], to=Proto.FLOAT)
        return self.casts[value.name]

    def op(self, op: Op) -> None:
        """Append nodes that compute `op`."""
        names = [v.name for v in op.operands]
        out = op.results[0].name
        handler = _HANDLERS.get(op.name)
        if op.name in _UNARY:
            self.node(_UNARY[op.name], names, out)
        elif op.name in _BINARY:
            self.node(_BINARY[op.name], names, out)
        elif handler is not None:
            handler(self, op, names, out)
        elif (decompose := OPS[op.name].decompose) is not None:
            self.composite(op, decompose)
        else:
            where = f"node '{op.loc[0]}' ({op.name})" if op.loc else str(op.results[0])
            raise ModelError(Diagnostic(where, "has no form in ONNX", entities=op.entities))

    def composite(self, op: Op, decompose: Callable[[Builder, Op], Sequence[Value]]) -> None:
        """Append the decomposition of `op`."""
        self.builder.ops.clear()
        values = decompose(self.builder, op)
        emitted = list(self.builder.ops)
        for part in emitted:
            self.op(part)
        for value, result in zip(values, op.results, strict=True):
            self.node("Identity", [value.name], result.name)


def _proto(dtype: DType) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype.numpy))


def _const(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    resource: Resource = op.attrs.value  # type: ignore[attr-defined]
    x.const(resource.array().astype(carried(resource.type.dtype).numpy, copy=False), out)


def _unblock(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    resources = [x.constants[name] for name in names]
    reference = OPS[op.name].reference
    assert reference is not None
    (wide,) = reference(op.attrs, *(r.array() for r in resources))
    x.const(wide.astype(np.float32), out)


def _cast(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    to: DType = op.attrs.to  # type: ignore[attr-defined]
    if to in _F8:
        f8 = x.node("Cast", names, to=_F8[to], saturate=int(op.attrs.saturate))  # type: ignore[attr-defined]
        x.node("Cast", [f8], out, to=Proto.FLOAT)
    else:
        x.node("Cast", names, out, to=_proto(carried(to)))


def _matmul(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    attrs: Any = op.attrs
    operands = []
    for value, transposed in zip(op.operands, (attrs.transpose_a, attrs.transpose_b), strict=True):
        name, rank = x.floats(value), value.type.rank
        operands.append(
            x.node("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2]) if transposed else name
        )
    _product(x, op, "MatMul", operands, out)


def _product(x: _Exporter, op: Op, kind: str, operands: Sequence[str], out: str, **attributes: Any) -> None:
    if op.results[0].type.dtype.is_integer:
        x.node("Cast", [x.node(kind, operands, **attributes)], out, to=_proto(op.results[0].type.dtype))
    else:
        x.node(kind, operands, out, **attributes)


def _window(attrs: Any) -> dict[str, Any]:
    return {"pads": [*attrs.low, *attrs.high], "strides": list(attrs.strides), "dilations": list(attrs.dilations)}


def _conv(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    attrs: Any = op.attrs
    _channels_first(attrs, op)
    operands = [x.floats(v) for v in op.operands]
    _product(x, op, "Conv", operands, out, group=attrs.groups, **_window(attrs))


def _channels_first(attrs: Any, op: Op) -> None:
    if attrs.layout != "nchw":
        what = f"{op.name} in layout {attrs.layout} has no form in ONNX"
        raise ModelError(Diagnostic(str(op.results[0]), what, entities=op.entities))


def _pool(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    attrs: Any = op.attrs
    _channels_first(attrs, op)
    if attrs.kind == "max":
        x.node("MaxPool", names, out, kernel_shape=list(attrs.kernel), **_window(attrs))
        return
    mean = x.node("AveragePool", names, kernel_shape=list(attrs.kernel), count_include_pad=1, **_window(attrs))
    x.node("Mul", [mean, x.number(math.prod(attrs.kernel), op.results[0])], out)


def _reduce(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    attrs: Any = op.attrs
    kind = f"Reduce{attrs.kind.capitalize()}"
    if not attrs.axes:
        x.node("Identity", names, out)
    else:
        x.node(kind, [names[0], x.ints(*attrs.axes)], out, keepdims=int(attrs.keepdims))


def _argreduce(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    a: Any = op.attrs
    kind = "ArgMax" if a.kind == "max" else "ArgMin"
    x.node(kind, names, out, axis=a.axis, keepdims=int(a.keepdims), select_last_index=int(a.last))


def _cumsum(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    a: Any = op.attrs
    x.node("CumSum", [names[0], x.const(np.asarray(a.axis))], out, exclusive=int(a.exclusive), reverse=int(a.reverse))


def _reshape(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    x.node("Reshape", [names[0], x.ints(*op.attrs.shape)], out, allowzero=1)  # type: ignore[attr-defined]


def _slice(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    a: Any = op.attrs
    lowest = np.iinfo(np.int64).min
    ends = [s + n * step for s, n, step in zip(a.starts, a.sizes, a.steps, strict=True)]
    bounds = [lowest if end < 0 else end for end in ends]
    x.node("Slice", [names[0], x.ints(*a.starts), x.ints(*bounds), x.ints(*range(len(ends))), x.ints(*a.steps)], out)


def _pad(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    a: Any = op.attrs
    name, dims = names[0], list(op.operands[0].type.dims)
    for at, inner in enumerate(a.interior):
        if not inner or not dims[at]:
            continue
        apart = x.node("Reshape", [name, x.ints(*dims[: at + 1], 1, *dims[at + 1 :])])
        rank = len(dims) + 1
        after = [0] * rank
        after[at + 1] = inner
        spread = x.node("Pad", [apart, x.ints(*[0] * rank, *after), x.number(a.value, op.operands[0])])
        whole = dims[at] * (inner + 1)
        joined = x.node("Reshape", [spread, x.ints(*dims[:at], whole, *dims[at + 1 :])])
        dims[at] = whole - inner
        name = x.node("Slice", [joined, x.ints(0), x.ints(dims[at]), x.ints(at)])
    mode = {"constant": [x.number(a.value, op.operands[0])]}.get(a.mode, [])
    x.node("Pad", [name, x.ints(*a.low, *a.high), *mode], out, mode=a.mode)


def _topk(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    a: Any = op.attrs
    outputs = [v.name for v in op.results]
    made = onnx.helper.make_node("TopK", [names[0], x.ints(a.k)], outputs, axis=a.axis, largest=int(a.largest))
    x.nodes.append(made)


def _float_mod(x: _Exporter, op: Op, names: list[str], out: str) -> None:
    if op.name == "mod" and op.operands[0].type.dtype.is_float:
        whole = x.node("Floor", [x.node("Div", names)])
        x.node("Sub", [names[0], x.node("Mul", [whole, names[1]])], out)
    else:
        x.node("Mod", names, out, fmod=int(op.name == "fmod"))


def _attributed(kind: str, *fields: str) -> Callable[[_Exporter, Op, list[str], str], None]:
    """An op whose attributes are the node's."""

    def handler(x: _Exporter, op: Op, names: list[str], out: str) -> None:
        x.node(kind, names, out, **{f: getattr(op.attrs, f) for f in fields})

    return handler


_HANDLERS: Mapping[str, Callable[[_Exporter, Op, list[str], str], object]] = {
    "const": _const,
    "cast": _cast,
    "unblock": _unblock,
    "matmul": _matmul,
    "conv": _conv,
    "pool": _pool,
    "reduce": _reduce,
    "argreduce": _argreduce,
    "cumsum": _cumsum,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "topk": _topk,
    "mod": _float_mod,
    "fmod": _float_mod,
    "transpose": _attributed("Transpose", "perm"),
    "expand": lambda x, op, names, out: x.node("Expand", [names[0], x.ints(*op.attrs.shape)], out),  # type: ignore[attr-defined]
    "concat": _attributed("Concat", "axis"),
    "gather": _attributed("Gather", "axis"),
    "gather_elements": _attributed("GatherElements", "axis"),
    "gather_nd": _attributed("GatherND", "batch_dims"),
    "scatter_nd": _attributed("ScatterND", "reduction"),
    "scatter_elements": _attributed("ScatterElements", "axis", "reduction"),
    "isinf": lambda x, op, names, out: (
        x.node(
            "IsInf",
            names,
            out,
            detect_positive=int(op.attrs.positive),  # type: ignore[attr-defined]
            detect_negative=int(op.attrs.negative),  # type: ignore[attr-defined]
        )
        and None
    ),
    "ne": lambda x, op, names, out: x.node("Not", [x.node("Equal", names)], out),
    "expm1": lambda x, op, names, out: x.node("Sub", [x.node("Exp", names), x.number(1, op.operands[0])], out),
    "log1p": lambda x, op, names, out: (
        x.node("Log", [x.node("Add", [names[0], x.number(1, op.operands[0])])], out) and None
    ),
    "rsqrt": lambda x, op, names, out: x.node("Reciprocal", [x.node("Sqrt", names)], out),
}

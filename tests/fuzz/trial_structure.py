"""Layers of trial models with structure: graphs within nodes, functions, recurrences, attention, quantized arithmetic,
and nodes of any op."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.models import ROUNDING
from tests.fuzz.registry import claimed_ops, node_of, opsets_of
from tests.fuzz.sample import UnsuitedError
from tests.fuzz.trial_model import BOOL, F32, I64, LOCAL, MICROSOFT, TrialModel
from tests.fuzz.trial_values import Layer, beside

ELEMENTWISE = ("Tanh", "Relu", "Neg", "Sigmoid", "Abs", "Sin")


def _declared(name: str, dtype: np.dtype, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _condition(m: TrialModel) -> str:
    """Of rank 0: a constant, one of sizes, or one of the data."""
    way = m.random.random()
    if way < 0.5:
        return m.scalar(m.flip(), BOOL)
    x = m.pick("f")
    if way < 0.75:
        return m.then("Greater", [m.then("Size", [x]), m.scalar(m.choose((1, 20)), I64)])
    largest = m.then("ReduceMax", [x], keepdims=0)
    return m.then("Greater", [largest, m.scalar(0.123, m.values[x].dtype)])


def branch(m: TrialModel) -> None:
    x = m.pick("f")
    other = beside(m, x)
    read, results = f"{len(m.nodes)}", []

    def graph(label: str) -> onnx.GraphProto:
        name = f"{label}{read}"
        nodes = [helper.make_node(m.choose(ELEMENTWISE), [x], [f"{name}a"])]
        nodes.append(helper.make_node(m.choose(("Add", "Mul", "Sub")), [f"{name}a", m.choose((x, other))], [name]))
        results.append(name)
        return helper.make_graph(nodes, label, [], [helper.make_empty_tensor_value_info(name)])

    m.attempt("If", [_condition(m)], captured=[x, other], then_branch=graph("then"), else_branch=graph("else"))


def loop(m: TrialModel) -> None:
    """A state that other tensors change, whose steps may be results; sometimes the data say how many there are."""
    x = m.pick("f")
    dtype, at = m.values[x].dtype, len(m.nodes)
    other = m.pick("f", dtype=dtype)
    nodes = [
        helper.make_node("Identity", [f"go{at}"], [f"still{at}"]),
        helper.make_node("Mul", [f"state{at}", other], [f"each{at}"]),
        helper.make_node("Cast", [f"trip{at}"], [f"number{at}"], to=helper.np_dtype_to_tensor_dtype(dtype)),
        helper.make_node("Add", [f"each{at}", f"number{at}"], [f"more{at}"]),
        helper.make_node(m.choose(ELEMENTWISE), [f"more{at}"], [f"next{at}"]),
    ]
    inputs = [_declared(f"trip{at}", I64, ()), _declared(f"go{at}", BOOL, ()), _declared(f"state{at}", dtype)]
    results = [_declared(f"still{at}", BOOL, ()), _declared(f"next{at}", dtype), _declared(f"each{at}", dtype)]
    both = m.flip()
    body = helper.make_graph(nodes, "body", inputs, results if both else results[:2])
    trips = m.scalar(m.between(0 if m.flip(0.1) else 1, 4), I64)
    if m.flip(0.2):
        trips = m.then("Mod", [m.then("ReduceMax", [m.pick("i", dtype=I64)], keepdims=0), trips])
    going = m.scalar(True, BOOL) if m.flip() else ""
    m.attempt("Loop", [trips, going, x], outputs=1 + both, captured=[other], body=body)


def scan(m: TrialModel) -> None:
    x = m.pick("f", 1)
    dtype, axis, at = m.values[x].dtype, m.axis(x), len(m.nodes)
    rest = tuple(np.delete(m.values[x].shape, axis).tolist())
    start = m.weight(dtype, rest)
    nodes = [
        helper.make_node("Add", [f"state{at}", f"part{at}"], [f"sum{at}"]),
        helper.make_node(m.choose(ELEMENTWISE), [f"sum{at}"], [f"next{at}"]),
        helper.make_node("Sub", [f"next{at}", f"part{at}"], [f"each{at}"]),
    ]
    inputs = [_declared(f"state{at}", dtype, rest), _declared(f"part{at}", dtype, rest)]
    results = [_declared(f"next{at}", dtype, rest), _declared(f"each{at}", dtype, rest)]
    chosen = {"scan_input_axes": [axis], "scan_input_directions": [m.between(0, 1)]}
    if m.flip():
        chosen["scan_output_axes"] = [m.between(-len(rest) - 1, len(rest))]
    body = helper.make_graph(nodes, "body", inputs, results)
    m.attempt("Scan", [start, x], outputs=2, body=body, num_scan_inputs=1, **chosen)


def function(m: TrialModel) -> None:
    """A call of a local function, with an attribute; sometimes one that an earlier node calls too."""
    x = m.pick("f", 1)
    other = beside(m, x)
    made = m.choose(m.functions) if m.functions and m.flip(0.4) else None
    if made is None:
        normal = helper.make_node("Softmax", ["p"], ["r"])
        normal.attribute.append(helper.make_attribute_ref("axis", onnx.AttributeProto.INT))
        nodes = [
            helper.make_node(m.choose(("Add", "Mul")), ["a", "b"], ["p"]),
            normal,
            helper.make_node(m.choose(("Sub", "Mul")), ["r", "a"], ["q"]),
        ]
        opsets = [helper.make_opsetid("", m.opset)]
        made = helper.make_function(LOCAL, f"F{len(m.functions)}", ["a", "b"], ["q", "p"], nodes, opsets, ["axis"])
        m.functions.append(made)
    m.attempt(made.name, [x, other], outputs=2, domain=LOCAL, axis=m.choose((-1, 0)))


def recurrence(m: TrialModel) -> None:
    x = m.pick("f", 3, 3, dtype=F32)
    steps, batch, width = m.values[x].shape
    op, hidden = m.choose(("LSTM", "GRU", "RNN")), m.between(1, 9)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    direction = m.choose(("forward", "reverse", "bidirectional"))
    sides = 2 if direction == "bidirectional" else 1
    scale = 1 / math.sqrt(max(hidden, width, 1))
    operands = [
        x,
        m.weight(F32, (sides, gates * hidden, width), scale),
        m.weight(F32, (sides, gates * hidden, hidden), scale),
        m.weight(F32, (sides, 2 * gates * hidden), 0.3) if m.flip(0.7) else "",
        m.constant(m.numbers.integers(1, steps + 1, batch), np.dtype(np.int32)) if m.flip(0.3) else "",
        m.weight(F32, (sides, batch, hidden)) if m.flip() else "",
    ]
    chosen = {"linear_before_reset": m.between(0, 1)} if op == "GRU" else {}
    outputs = m.between(1, 3 if op == "LSTM" else 2)
    m.attempt(op, operands, outputs=outputs, hidden_size=hidden, direction=direction, **chosen)


def attend(m: TrialModel) -> None:
    """Attention in ops, or as MultiHeadAttention; of three projections of one tensor."""
    x = m.pick("f", 3, 3)
    dtype, (_, length, width) = m.values[x].dtype, m.values[x].shape
    heads, size = m.choose((1, 2, 4)), m.choose((4, 8, 5))
    scale = 1 / math.sqrt(width)
    q, k, v = (m.then("MatMul", [x, m.weight(dtype, (width, heads * size), scale)]) for _ in range(3))
    if m.flip(0.3):
        m.attempt("MultiHeadAttention", [q, k, v], domain=MICROSOFT, num_heads=heads)
        return

    def split(t: str, perm: tuple[int, ...]) -> str:
        return m.then("Transpose", [m.then("Reshape", [t, m.ints(0, 0, heads, size)])], perm=perm)

    q, k, v = split(q, (0, 2, 1, 3)), split(k, (0, 2, 3, 1)), split(v, (0, 2, 1, 3))
    scores = m.then("Mul", [m.then("MatMul", [q, k]), m.scalar(1 / math.sqrt(size), dtype)])
    if m.flip(0.4):
        mask = np.where(np.tri(length, dtype=bool), 0, -1e4)
        scores = m.then("Add", [scores, m.constant(mask, dtype)])
    y = m.then("MatMul", [m.then("Softmax", [scores], axis=-1), v])
    m.attempt("Reshape", [m.then("Transpose", [y], perm=(0, 2, 1, 3)), m.ints(0, 0, -1)])


def fake_quantize(m: TrialModel) -> None:
    """Into 8 bits and back, with a scale for all or one for each element of an axis."""
    x = m.pick("f", dtype=F32)
    shape = m.values[x].shape
    to = m.choose((np.dtype(np.int8), np.dtype(np.uint8)))
    step = np.abs(m.values[x]).max(initial=0.1) / 100
    chosen, form = {}, ()
    if shape and m.flip(0.3):
        axis = m.axis(x)
        chosen, form = {"axis": axis}, (shape[axis],)
    scale = m.constant(np.full(form, step) * m.numbers.uniform(1, 1.3, form), F32)
    zero = m.constant(np.full(form, 3 if to == np.int8 else 120), to)
    codes = m.then("QuantizeLinear", [x, scale, zero], **chosen)
    m.attempt("DequantizeLinear", [codes, scale, zero], **chosen)


def coded_weights(m: TrialModel) -> None:
    """A product with weights of 8 bits that are dequantized by channel."""
    x = m.pick("f", 2, dtype=F32)
    width, n = m.values[x].shape[-1], m.between(1, 18)
    codes = m.constant(m.numbers.integers(-127, 128, (width, n)), np.dtype(np.int8))
    scales = m.constant(m.numbers.uniform(0.5, 1, n) / (64 * math.sqrt(width)), F32)
    w = m.then("DequantizeLinear", [codes, scales], axis=1)
    m.attempt("MatMul", [x, w])


def coded(m: TrialModel) -> None:
    """Products of 8-bit codes."""
    x = m.pick("f", 2, dtype=F32)
    found = m.attempt("DynamicQuantizeLinear", [x], outputs=3)
    if not found:
        return
    codes, scale, zero = found
    shape = m.values[x].shape
    if len(shape) == 4 and m.flip():
        w = m.constant(m.numbers.integers(-50, 50, (m.between(1, 5), shape[1], 2, 2)), np.dtype(np.int8))
        total = m.then("ConvInteger", [codes, w, zero], pads=[m.between(0, 1) for _ in range(4)])
    else:
        w = m.constant(m.numbers.integers(-50, 50, (shape[-1], m.between(1, 9))), np.dtype(np.int8))
        total = m.then("MatMulInteger", [codes, w, zero])
    wide = m.then("Cast", [total], to=onnx.TensorProto.FLOAT)
    m.attempt("Mul", [m.then("Mul", [wide, scale]), m.scalar(0.01, F32)])


UNSUITED = frozenset({"If", "Loop", "Scan", "Constant", "Unique", "NonZero", *(op for _, op in ROUNDING)})
CODED = ("QLinear", "ConvInteger", "MatMulInteger", "DequantizeLinear", "QGemm")
"""How the names of ops begin whose operands are 8-bit codes."""


def any_op(m: TrialModel) -> None:
    """A node of any op with its own constants, that reads earlier tensors where they fit."""
    keys = [k for k in claimed_ops() if k[0] == MICROSOFT or opsets_of(k)[0] <= m.opset <= opsets_of(k)[-1]]
    key = m.choose([k for k in keys if k[1] not in UNSUITED])
    try:
        node = node_of(key, m.random, m.opset, calm=True)
    except UnsuitedError:
        return
    (proto,) = node.model.graph.node
    deprecated = not key[0] and onnx.defs.has(key[1]) and onnx.defs.get_schema(key[1], m.opset).deprecated
    if node.undefined or deprecated or node.model.opset_import[0].version != m.opset:
        return
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in node.model.graph.initializer}
    made = onnx.NodeProto()
    made.CopyFrom(proto)
    made.name = f"{proto.op_type}_{len(m.nodes)}"
    made.input[:] = [_operand(m, n, node.feeds, constants, key[1]) for n in proto.input]
    names = m.fresh(len(proto.output))
    made.output[:] = [fresh if n else "" for fresh, n in zip(names, proto.output, strict=True)]
    m.attempt_node(made)


def _operand(m: TrialModel, name: str, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray], op: str) -> str:
    """What stands for an input of a sampled node: floats and codes are often as many elements of an earlier tensor."""
    if not name:
        return ""
    array = feeds[name] if name in feeds else constants[name]
    fitting = [n for n in m.live if m.values[n].dtype == array.dtype and m.values[n].size >= max(array.size, 1)]
    numbers = array.dtype.kind == "f" and array.min(initial=1) <= 0
    codes = array.dtype.itemsize == 1 and array.size > 1 and op.startswith(CODED)
    if name in constants or not (numbers or codes) or not fitting or m.flip(0.2):
        return m.constant(array)
    x = m.choose(fitting)
    if m.values[x].size != array.size:
        flat = m.then("Reshape", [x, m.ints(-1)])
        first = m.between(0, m.values[x].size - array.size)
        x = m.then("Slice", [flat, m.ints(first), m.ints(first + array.size)])
    return x if m.values[x].shape == array.shape else m.then("Reshape", [x, m.ints(*array.shape)])


def sequence(m: TrialModel) -> None:
    """Parts of a tensor as a sequence, joined again or one taken: within an If, because only arrays are kept."""
    x = m.pick("f", 1)
    axis, at = m.axis(x), len(m.nodes)
    if m.flip():
        last = helper.make_node("ConcatFromSequence", [f"parts{at}"], [f"joined{at}"], axis=axis)
    else:
        last = helper.make_node("SequenceAt", [f"parts{at}", m.scalar(m.choose((0, -1)), I64)], [f"joined{at}"])
    nodes = [helper.make_node("SplitToSequence", [x], [f"parts{at}"], axis=axis, keepdims=1), last]
    body = helper.make_graph(nodes, "parts", [], [helper.make_empty_tensor_value_info(f"joined{at}")])
    other = helper.make_graph(
        [helper.make_node("Identity", [x], [f"same{at}"])],
        "same",
        [],
        [helper.make_empty_tensor_value_info(f"same{at}")],
    )
    m.attempt("If", [_condition(m)], captured=m.captured_by(body), then_branch=body, else_branch=other)


def suppress(m: TrialModel) -> None:
    """NonMaxSuppression of constant boxes with computed scores."""
    x = m.pick("f", 3, 3, dtype=F32)
    batch, _, count = m.values[x].shape
    corners = np.sort(m.numbers.uniform(0, 4, (batch, count, 2, 2)), axis=2).reshape(batch, count, 4)
    limits = [m.scalar(m.between(1, 4), I64), m.constant([0.5], F32), m.constant([0.1], F32)]
    m.attempt("NonMaxSuppression", [m.constant(corners, F32), x, *limits])


STRUCTURE: dict[Layer, float] = {
    branch: 0.8,
    loop: 0.8,
    scan: 0.7,
    function: 0.8,
    recurrence: 0.8,
    attend: 1.2,
    fake_quantize: 1.2,
    coded_weights: 0.7,
    coded: 0.7,
    sequence: 0.4,
    suppress: 0.2,
    any_op: 4,
}
"""Layer -> its share."""

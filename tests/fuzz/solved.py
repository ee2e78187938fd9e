"""Ops of random models with solved shapes: each picks a tensor, solves for its other operands and appends its nodes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from ppuc.compiler.entry import compile, verify
from ppuc.compiler.validation.oracle import Session
from tests.fuzz.second import DISPUTED, agrees_otherwise
from tests.fuzz.solved_model import FLOAT, INTEGERS, MOST, Shape, SolvedModel

Layer = Callable[[SolvedModel, str], object]
SMOOTH = ("Abs", "Erf", "HardSwish", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh")
SLACK = 4.0
"""Of what verification allows, for outputs whose terms cancel."""


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def unary(m: SolvedModel, x: str) -> None:
    dtype, shape = m.types[x]
    op = m.random.choice(SMOOTH) if dtype == FLOAT else "Abs"
    m.emit(op, [x], shape, dtype)


def binary(m: SolvedModel, x: str) -> None:
    dtype, shape = m.types[x]
    other = m.operand_for(dtype, shape)
    op = m.random.choice(("Add", "Max", "Min", "Mul", "Sub"))
    operands = [x, other] if m.random.random() < 0.5 else [other, x]
    y = m.emit(op, operands, shape, dtype)
    if op == "Mul" and dtype == FLOAT:
        m.emit("Tanh", [y], shape, dtype)


def reshape(m: SolvedModel, x: str) -> None:
    count = _size(m.shape(x))
    rank = m.random.randint(0 if count == 1 else 1, 5)
    m.reshaped(x, m.factors(count, rank) if rank else ())


def transpose(m: SolvedModel, x: str) -> None:
    shape = m.shape(x)
    perm = list(range(len(shape)))
    m.random.shuffle(perm)
    if perm:
        m.emit("Transpose", [x], [shape[p] for p in perm], m.dtype(x), perm=perm)


def slice_(m: SolvedModel, x: str) -> None:
    starts, sizes, steps = [], [], []
    for extent in m.shape(x):
        step = m.random.choice((1, 1, 1, 2, 3, -1, -2))
        start = m.random.randrange(extent) if m.random.random() < 0.5 else (0 if step > 0 else extent - 1)
        most = (extent - start + step - 1) // step if step > 0 else start // -step + 1
        starts.append(start)
        sizes.append(most if m.random.random() < 0.5 else m.random.randint(1, most))
        steps.append(step)
    if starts:
        m.cut(x, starts, sizes, steps)


def expand(m: SolvedModel, x: str) -> None:
    shape = m.shape(x)
    wide = [m.random.randint(1, 6) if n == 1 else n for n in shape]
    wide = [m.random.randint(1, 4) for _ in range(m.random.randint(0, 1))] + wide
    if _size(tuple(wide)) <= MOST:
        m.emit("Expand", [x, m.indices(wide)], wide, m.dtype(x))


def squeeze(m: SolvedModel, x: str) -> None:
    shape = list(m.shape(x))
    ones = [i for i, n in enumerate(shape) if n == 1]
    if ones and m.random.random() < 0.5:
        axes = m.random.sample(ones, m.random.randint(1, len(ones)))
        m.emit("Squeeze", [x, m.indices(axes)], [n for i, n in enumerate(shape) if i not in axes], m.dtype(x))
    elif len(shape) < 5:
        axis = m.random.randint(0, len(shape))
        m.emit("Unsqueeze", [x, m.indices([axis])], [*shape[:axis], 1, *shape[axis:]], m.dtype(x))


def concat(m: SolvedModel, x: str) -> None:
    dtype, shape = m.types[x]
    if not shape or 3 * _size(shape) > MOST:
        return
    axis = m.random.randrange(len(shape))
    part = m.random.randint(1, shape[axis] + 2)
    wanted = (*shape[:axis], part, *shape[axis + 1 :])
    found = m.pick(lambda other, have: other == dtype)
    other = x if m.random.random() < 0.3 else m.fitted(found or x, wanted)
    total = shape[axis] + m.shape(other)[axis]
    m.emit("Concat", [x, other], (*shape[:axis], total, *shape[axis + 1 :]), dtype, axis=axis)


def gather(m: SolvedModel, x: str) -> None:
    shape = m.shape(x)
    if not shape:
        return
    axis = m.random.randrange(len(shape))
    form = m.random.choice(((), (1,), (3,), (2, 2)))
    listed = m.constant(m.numbers.integers(-shape[axis], shape[axis], form))
    result = (*shape[:axis], *form, *shape[axis + 1 :])
    if _size(result) <= MOST:
        m.emit("Gather", [x, listed], result, m.dtype(x), axis=axis)


def pad(m: SolvedModel, x: str) -> None:
    shape = m.shape(x)
    if not shape or m.dtype(x) == INTEGERS[2]:
        return
    low, high = ([m.random.choice((0, 0, 1, 3)) for _ in shape] for _ in range(2))
    result = [n + a + b for n, a, b in zip(shape, low, high, strict=True)]
    mode = "constant" if m.random.random() < 0.7 else "edge"
    if _size(tuple(result)) <= MOST:
        m.emit("Pad", [x, m.indices([*low, *high])], result, m.dtype(x), mode=mode)


def reduce(m: SolvedModel, x: str) -> None:
    dtype, shape = m.types[x]
    if dtype == INTEGERS[2]:
        return
    op = m.random.choice(("ReduceMax", "ReduceMean", "ReduceMin") if dtype == FLOAT else ("ReduceSum", "ReduceMax"))
    if op == "ReduceSum":  # ONNX Runtime saturates sums that overflow, where a product's wrap
        x = m.emit("Mod", [x, m.constant(np.array(97, dtype))], shape, dtype)
    axes = m.random.sample(range(len(shape)), m.random.randint(1, len(shape))) if shape else []
    keep = m.random.randint(0, 1)
    result = [1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes]
    m.emit(op, [x, m.indices(axes)] if axes else [x], result, dtype, keepdims=keep)


def softmax(m: SolvedModel, x: str) -> None:
    dtype, shape = m.types[x]
    if dtype == FLOAT and shape:
        m.emit("Softmax", [x], shape, dtype, axis=m.random.randrange(len(shape)))


def matmul(m: SolvedModel, x: str) -> None:
    """With a constant that others share, or with what another tensor, perhaps x itself, holds; on either side."""
    dtype, shape = m.types[x]
    if not shape:
        return
    k, n = shape[-1], m.random.choice((1, 3, 8, 17))
    batch = shape[:-2] if m.random.random() < 0.5 else ()
    wanted: Shape = (k,) if m.random.random() < 0.15 else (*batch, k, n)
    lead = shape[:-1] if len(shape) > 1 else ()
    result = (*lead, *(wanted[-1:] if len(wanted) > 1 else ()))
    if _size(result) > MOST or _size(wanted) > MOST:
        return
    found = m.pick(lambda other, have: other == dtype) if m.random.random() < 0.4 else None
    scale = float(1 / np.sqrt(k))
    right = m.fitted(found, wanted) if found else m.weight(dtype, wanted, scale)
    y = m.emit("MatMul", [x, right], result, dtype)
    if dtype == FLOAT and (found or m.random.random() < 0.3):
        y = m.emit("Mul", [y, m.constant(np.float32(scale).reshape(()))], result, dtype)
        m.emit("Tanh", [y], result, dtype)


def narrow_matmul(m: SolvedModel, x: str) -> None:
    """A product of 8-bit integers, signed or not, into i32."""
    dtype, shape = m.types[x]
    if dtype not in INTEGERS[:2] or not shape:
        return
    small = m.emit("Mod", [x, m.constant(np.array(100, dtype))], shape, dtype)
    to, other = m.random.choice(((np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)))
    left = m.emit("Cast", [small], shape, np.dtype(to), to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))
    n = m.random.choice((1, 5, 16))
    right = m.weight(np.dtype(other), (shape[-1], n))
    zero = [m.constant(np.array(3, to))] if m.random.random() < 0.5 else []
    if _size((*shape[:-1], n)) <= MOST:
        m.emit("MatMulInteger", [left, right, *zero], (*shape[:-1], n), INTEGERS[0])


def gemm(m: SolvedModel, x: str) -> None:
    dtype, shape = m.types[x]
    if dtype != FLOAT:
        return
    rows, k = m.factors(_size(shape), 2)
    n, turned, other = m.random.choice((1, 4, 9)), m.random.randint(0, 1), m.random.randint(0, 1)
    if max(rows, k) * n > MOST:
        return
    left = m.fitted(x, (k, rows) if turned else (rows, k))
    right = m.weight(dtype, (n, k) if other else (k, n), float(1 / np.sqrt(k)))
    added = [m.operand_for(dtype, (rows, n))] if m.random.random() < 0.6 else []
    m.emit("Gemm", [left, right, *added], (rows, n), dtype, transA=turned, transB=other)


def conv(m: SolvedModel, x: str) -> None:
    if m.dtype(x) != FLOAT:
        return
    """With constant kernels, or with those that another tensor, perhaps x itself, holds; in one to three dimensions."""
    rank = m.random.choice((1, 1, 2, 2, 3))
    n, c, *space = m.factors(_size(m.shape(x)), rank + 2)
    groups = m.random.choice([*[g for g in range(1, c + 1) if c % g == 0][:4], c])
    outputs = groups * m.random.choice((1, 2, 5))
    taps = [m.random.choice((1, 2, 3)) for _ in space]
    dilations, strides = ([m.random.choice((1, 1, 2, 7)) for _ in space] for _ in range(2))
    pads = [m.random.randint(0, t * d) for t, d in zip(taps, dilations, strict=True)]
    reach = [(t - 1) * d + 1 for t, d in zip(taps, dilations, strict=True)]
    result = [(s + 2 * p - r) // t + 1 for s, p, r, t in zip(space, pads, reach, strides, strict=True)]
    if min(result) < 1 or _size((n, outputs, *result)) > MOST:
        return
    attributes = {"group": groups, "dilations": dilations, "strides": strides, "pads": [*pads, *pads]}
    kernels = (outputs, c // groups, *taps)
    _convolved(m, "Conv", m.fitted(x, (n, c, *space)), kernels, (n, outputs, *result), c // groups, attributes)


def conv_transpose(m: SolvedModel, x: str) -> None:
    if m.dtype(x) != FLOAT:
        return
    rank = m.random.choice((1, 2, 2, 3))
    n, c, *space = m.factors(_size(m.shape(x)), rank + 2)
    groups = m.random.choice([g for g in range(1, c + 1) if c % g == 0][:4])
    outputs = m.random.choice((1, 2, 3))
    taps, strides = [m.random.choice((1, 2, 3)) for _ in space], [m.random.choice((1, 2)) for _ in space]
    result = [(s - 1) * t + k for s, t, k in zip(space, strides, taps, strict=True)]
    if _size((n, outputs * groups, *result)) > MOST:
        return
    kernels, attributes = (c, outputs, *taps), {"group": groups, "strides": strides}
    y = m.fitted(x, (n, c, *space))
    _convolved(m, "ConvTranspose", y, kernels, (n, outputs * groups, *result), c // groups, attributes)


def _convolved(
    m: SolvedModel,
    op: str,
    x: str,
    kernels: Shape,
    result: Sequence[int],
    channels: int,
    attributes: dict[str, Any],
) -> None:
    """`op` of `x` and constant or computed `kernels`, each of whose results sums over `channels` and all taps."""
    scale = float(1 / np.sqrt(channels * np.prod(kernels[2:])))
    found = m.pick(lambda dtype, shape: dtype == FLOAT) if m.random.random() < 0.4 else None
    if found is None or _size(kernels) > MOST:
        m.emit(op, [x, m.weight(FLOAT, kernels, scale)], result, FLOAT, **attributes)
        return
    y = m.emit(op, [x, m.fitted(found, kernels)], result, FLOAT, **attributes)
    y = m.emit("Mul", [y, m.constant(np.float32(scale).reshape(()))], result, FLOAT)
    m.emit("Tanh", [y], result, FLOAT)


def pool(m: SolvedModel, x: str) -> None:
    if m.dtype(x) != FLOAT:
        return
    n, c, *space = m.factors(_size(m.shape(x)), 4)
    taps = [m.random.randint(1, min(3, s)) for s in space]
    result = [s - t + 1 for s, t in zip(space, taps, strict=True)]
    op = m.random.choice(("AveragePool", "MaxPool"))
    m.emit(op, [m.fitted(x, (n, c, *space))], (n, c, *result), FLOAT, kernel_shape=taps)


def select(m: SolvedModel, x: str) -> None:
    """Where of a constant condition, or of one that integers decide."""
    dtype, shape = m.types[x]
    whole = m.pick(lambda other, have: other in INTEGERS[:2] and len(have) <= len(shape))
    if whole and m.random.random() < 0.5:
        of_shape = m.fitted(whole, shape)
        limit = m.constant(np.array(0, m.dtype(whole)))
        condition = m.emit("Greater", [of_shape, limit], shape, np.dtype(np.bool_))
    else:
        condition = m.constant(m.numbers.integers(0, 2, shape).astype(np.bool_))
    m.emit("Where", [condition, x, m.operand_for(dtype, shape)], shape, dtype)


def number(m: SolvedModel, x: str) -> None:
    """Integers to other integers, or to small floats."""
    dtype, shape = m.types[x]
    if dtype == FLOAT or dtype == INTEGERS[2]:
        return
    small = m.emit("Mod", [x, m.constant(np.array(5, dtype))], shape, dtype)
    to = m.random.choice((FLOAT, *(t for t in INTEGERS[:2] if t != dtype)))
    m.emit("Cast", [small], shape, to, to=onnx.helper.np_dtype_to_tensor_dtype(to))


LAYERS: dict[Layer, float] = {
    unary: 2,
    binary: 5,
    reshape: 5,
    transpose: 3,
    slice_: 2,
    expand: 1.5,
    squeeze: 1,
    concat: 1.5,
    gather: 1,
    pad: 1,
    reduce: 2,
    softmax: 0.7,
    matmul: 5,
    narrow_matmul: 1,
    gemm: 1.5,
    conv: 2.5,
    conv_transpose: 1,
    pool: 1,
    select: 1,
    number: 1,
}
"""Layer -> its share."""


def model_of_seed(seed: int, layers: int = 10) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model of a seed, of about as many layers and the views that fit their operands, and its inputs."""
    source = random.Random(f"solved{seed}")
    m = SolvedModel(source)
    for dtype in (FLOAT, source.choice((FLOAT, *INTEGERS))):
        shape = m.factors(source.choice((1, 6, 14, 24, 40, 96, 120, 210, 360)), source.randint(1, 4))
        m.free.append(m.input(dtype, shape))
    kinds, shares = list(LAYERS), list(LAYERS.values())
    for _ in range(layers):
        (layer,) = source.choices(kinds, shares)
        x = m.pick(lambda dtype, shape: dtype in (FLOAT, *INTEGERS))
        assert x is not None
        layer(m, x)
    if not m.nodes:
        unary(m, "x0")
    return m.model(), m.feeds


def disagreement(
    model: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    target: str,
    precision: str,
    dims: Mapping[str, int] | None = None,
    host: bool = False,
) -> str:
    """Which outputs are not what ONNX Runtime computes, or which hazards there are; "" when all is right. It begins
    with DISPUTED where onnx.reference says that it is ONNX Runtime which is off. `dims` are sizes of symbols. Raises
    what compiling raises: without `host`, every op must have kernels on every machine.

    Where terms cancel, an output may be off by what rounding the largest tensor of the model would change."""
    program = compile(model, target, precision, dims, host=host)
    found = verify(program, feeds)
    wrong = [output for output in found.outputs if not output.ok]
    if any(not output.mismatches for output in wrong):
        largest = _largest(model, feeds)
        wrong = [o for o in wrong if o.mismatches or not o.max_abs <= SLACK * o.tolerance * largest]
    what = "; ".join((*(f"{output.name}: {output.reason}" for output in wrong), *found.hazards))
    disputed = bool(wrong) and not found.hazards and agrees_otherwise(model, feeds, program.run(feeds).outputs, wrong)
    return DISPUTED + what if disputed else what


def _largest(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """The largest float that ONNX Runtime computes on the way."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    inner = (name for node in model.graph.node for name in node.output if name not in known)
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    arrays = Session.exact(whole, "solved").run(feeds)
    return max((float(np.abs(a).max(initial=0)) for a in arrays if a.dtype == FLOAT), default=0.0)

"""Layers of trial models that move, select and convert elements."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.trial_model import BOOL, F16, F32, I32, I64, TrialModel
from tests.fuzz.trial_values import Layer

ANY = "fiub"
CASTS = (
    *(F32, F32, F32, F16, I32, I64, BOOL),
    *(np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64, np.float64)),
)


def reshape(m: TrialModel) -> None:
    x = m.pick(ANY)
    rest, dims = m.values[x].size, []
    while rest > 1 and len(dims) < 6:
        dims.append(m.choose([i for i in range(1, rest + 1) if rest % i == 0]))
        rest //= dims[-1]
    dims += [rest] if rest > 1 or not m.values[x].size else []
    dims += [1] * m.between(0, 1) if len(dims) < 6 else []
    if dims and m.flip(0.4):
        dims[m.between(0, len(dims) - 1)] = -1
    elif dims and m.flip(0.2):
        at = m.between(0, min(len(dims), m.values[x].ndim) - 1)
        dims[at] = 0 if dims[at] == m.values[x].shape[at] else dims[at]
    m.attempt("Reshape", [x, m.ints(*dims)])


def transpose(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    perm = list(range(m.values[x].ndim))
    m.random.shuffle(perm)
    m.attempt("Transpose", [x], **({"perm": perm} if m.flip(0.9) else {}))


def rank(m: TrialModel) -> None:
    """Axes of size 1 come and go."""
    x = m.pick(ANY)
    shape = m.values[x].shape
    ones = [i for i, d in enumerate(shape) if d == 1]
    if m.flip(0.3):
        m.attempt("Flatten", [x], axis=m.between(-len(shape), len(shape)))
    elif ones and m.flip():
        axes = m.random.sample(ones, m.between(1, len(ones)))
        m.attempt("Squeeze", [x, m.ints(*axes)] if m.flip(0.8) else [x])
    else:
        count = m.between(1, 2)
        axes = m.random.sample(range(len(shape) + count), count)
        m.attempt("Unsqueeze", [x, m.ints(*(a - len(shape) - count if m.flip(0.3) else a for a in axes))])


def repeat(m: TrialModel) -> None:
    x = m.pick(ANY)
    shape = m.values[x].shape
    if m.flip():
        wide = [m.between(1, 4) if d == 1 else m.choose((d, 1)) for d in shape]
        wide = wide[m.between(0, len(wide)) :] if m.flip(0.2) else wide
        m.attempt("Expand", [x, m.ints(*([m.between(1, 3)] if m.flip(0.3) else []), *wide)])
    else:
        m.attempt("Tile", [x, m.ints(*(m.choose((1, 1, 2, 3)) for _ in shape))])


def slice_(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    shape = m.values[x].shape
    axes = m.axes(x)
    steps = [m.choose((1, 1, 1, 2, 3, -1, -2)) for _ in axes]
    starts = [m.choose((m.between(-shape[a], shape[a]), 0 if t > 0 else -1)) for a, t in zip(axes, steps, strict=True)]
    far = [2**63 - 1 if t > 0 else -(2**63) for t in steps]
    ends = [m.choose((m.between(-shape[a] - 1, shape[a] + 1), f)) for a, f in zip(axes, far, strict=True)]
    m.attempt("Slice", [x, m.ints(*starts), m.ints(*ends), m.ints(*axes), m.ints(*steps)])


def concat(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    like, axis = m.values[x], m.axis(x)
    rest = np.delete(like.shape, axis).tolist()
    fitting = [
        n
        for n in m.live
        if m.values[n].dtype == like.dtype
        and m.values[n].ndim == like.ndim
        and np.delete(m.values[n].shape, axis).tolist() == rest
    ]
    parts = [x, *(m.choose(fitting) for _ in range(m.between(0, 3)))]
    if m.flip(0.2):
        shape = list(like.shape)
        shape[axis] = m.between(1, 3)
        parts.append(m.weight(like.dtype, shape))
    m.random.shuffle(parts)
    m.attempt("Concat", parts, axis=axis)


def split(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    axis = m.axis(x)
    extent, count = m.values[x].shape[axis], m.between(1, 3)
    cuts = sorted(m.between(0, extent) for _ in range(count - 1))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, extent], strict=True)]
    if m.opset >= 18 and m.flip(0.4):
        m.attempt("Split", [x], outputs=count, axis=axis, num_outputs=count)
    else:
        m.attempt("Split", [x, m.ints(*sizes)], outputs=count, axis=axis)


def pad(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    like, axes = m.values[x], m.axes(x)
    mode = m.choose(("constant", "constant", "constant", "reflect", "edge", "wrap"))
    named = m.opset >= 18 and m.flip(0.4)
    pads = [m.choose((0, 0, 1, 2, 3, -1)) for _ in range(2 * (len(axes) if named else like.ndim))]
    value = m.constant(m.data(like.dtype, ())) if m.flip(0.4) else ""
    m.attempt("Pad", [x, m.ints(*pads), value, *([m.ints(*axes)] if named else [])], mode=mode)


def gather(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    shape = m.values[x].shape
    kind, axis = m.choose(("plain", "plain", "elements", "nd")), m.axis(x)
    dtype = m.choose((I64, I32)) if kind != "nd" else I64
    if kind == "nd":
        batch = m.between(0, len(shape) - 1) if m.flip(0.3) else 0
        lead = (*shape[:batch], m.between(1, 3))
        depth = m.between(1, len(shape) - batch)
        columns = [m.numbers.integers(-shape[batch + i], shape[batch + i], lead) for i in range(depth)]
        m.attempt("GatherND", [x, m.constant(np.stack(columns, -1), I64)], batch_dims=batch)
        return
    form = m.choose(((), (1,), (3,), (2, 2), (0,))) if kind == "plain" else (*shape[:-1], m.between(1, shape[-1]))
    if kind == "elements":
        axis = -1
    places = m.constant(m.numbers.integers(-shape[axis], shape[axis], form), dtype)
    m.attempt("Gather" if kind == "plain" else "GatherElements", [x, places], axis=axis)


def gather_computed(m: TrialModel) -> None:
    """Rows that computed integers select."""
    x, places = m.pick(ANY, 1), m.pick("i")
    axis = m.axis(x)
    extent = m.scalar(m.values[x].shape[axis], m.values[places].dtype)
    m.attempt("Gather", [x, m.then("Mod", [places, extent])], axis=axis)


def scatter(m: TrialModel) -> None:
    x = m.pick(ANY, 1)
    like = m.values[x]
    shape, reduction = list(like.shape), m.choose(("none", "none", "add", "mul", "max", "min"))
    chosen = {"reduction": reduction} if reduction != "none" else {}
    if m.flip():
        depth = m.between(1, like.ndim)
        total = int(np.prod(shape[:depth]))
        flat = m.numbers.permutation(total)[: m.between(1, 4)]
        places = np.stack(np.unravel_index(flat, shape[:depth]), -1)
        updates = m.weight(like.dtype, (len(flat), *shape[depth:]))
        m.attempt("ScatterND", [x, m.constant(places, I64), updates], **chosen)
        return
    axis = m.axis(x)
    extent = shape[axis]
    count = m.between(1, extent)
    form = list(shape)
    form[axis] = count
    order = np.argsort(m.numbers.random(shape), axis=axis).take(range(count), axis=axis)
    updates = m.weight(like.dtype, form)
    m.attempt("ScatterElements", [x, m.constant(order, I64), updates], axis=axis, **chosen)


def order(m: TrialModel) -> None:
    """TopK, and what its places gather."""
    x = m.pick("fi", 1)
    axis = m.axis(x)
    k = m.between(1, m.values[x].shape[axis])
    found = m.attempt("TopK", [x, m.ints(k)], outputs=2, axis=axis, largest=m.between(0, 1))
    if found and m.flip(0.3):
        m.attempt("GatherElements", [x, found[1]], axis=axis)


def cast(m: TrialModel) -> None:
    """Into any type that can hold the numbers."""
    x, to = m.pick(ANY), m.choose(CASTS)
    array = m.values[x]
    if to.kind in "iu" and array.size:
        info = np.iinfo(to)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            return
    m.attempt("Cast", [x], to=helper.np_dtype_to_tensor_dtype(to))


def narrowed(m: TrialModel) -> None:
    """Rounded, bounded and cast into a small integer."""
    x = m.pick("f")
    dtype = m.values[x].dtype
    to = m.choose((np.int8, np.uint8, np.int32, np.int64))
    low = 0.0 if to is np.uint8 else -9.0
    scaled = m.then("Mul", [x, m.scalar(m.choose((2.0, 3.3)), dtype)])
    bounded = m.then("Clip", [scaled, m.scalar(low, dtype), m.scalar(9.0, dtype)])
    rounded = m.then("Round", [bounded])
    m.attempt("Cast", [rounded], to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def halved(m: TrialModel) -> None:
    """Through f16 and back, or into the type of another tensor."""
    x = m.pick("f")
    if m.flip():
        m.attempt("CastLike", [x, m.pick("f")])
        return
    half = m.then("Cast", [x], to=onnx.TensorProto.FLOAT16)
    m.attempt("Cast", [half], to=onnx.TensorProto.FLOAT)


def sizes(m: TrialModel) -> None:
    """Shape arithmetic that steers a reshape, a slice, an expansion or a range."""
    x = m.pick(ANY, 1)
    kind = m.choose(("reshape", "flat", "expand", "slice", "range", "fill", "size"))
    if kind == "reshape":
        shape = m.then("Shape", [x])
        first = m.then("Gather", [shape, m.ints(0)], axis=0)
        m.attempt("Reshape", [x, m.then("Concat", [first, m.ints(-1)], axis=0)])
    elif kind == "flat":
        tail = m.then("Shape", [x], start=m.between(-2, 1))
        m.attempt("Reshape", [x, m.then("Concat", [m.ints(-1), tail], axis=0)])
    elif kind == "expand":
        one = m.weight(m.values[x].dtype, ())
        m.attempt("Expand", [one, m.then("Shape", [x])])
    elif kind == "slice":
        half = m.then("Div", [m.then("Shape", [x], start=0, end=1), m.ints(2)])
        m.attempt("Slice", [x, m.ints(0), half] if m.flip() else [x, half, m.ints(2**31), m.ints(0)])
    elif kind == "range":
        count = m.then("Squeeze", [m.then("Shape", [x], start=-1)])
        counted = m.then("Range", [m.scalar(0, I64), count, m.scalar(1, I64)])
        row = m.then("Cast", [counted], to=onnx.TensorProto.FLOAT)
        m.attempt("Add", [x, row])
    elif kind == "fill":
        value = helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [m.choose((0.0, 1.5, -2.0))])
        filled = m.then("ConstantOfShape", [m.then("Shape", [x])], value=value)
        m.attempt(m.choose(("Add", "Mul", "Max")), [x, filled])
    else:
        count = m.then("Cast", [m.then("Size", [x])], to=onnx.TensorProto.FLOAT)
        m.attempt("Div", [x, count])


def blocks(m: TrialModel) -> None:
    x = m.pick("fiu", 4, 4)
    if m.flip():
        m.attempt("SpaceToDepth", [x], blocksize=m.choose((1, 2, 3)))
    else:
        m.attempt("DepthToSpace", [x], blocksize=2, mode=m.choose(("DCR", "CRD")))


def resize(m: TrialModel) -> None:
    x = m.pick("f", 3, 5)
    like = m.values[x]
    inner = like.ndim - 2
    mode = m.choose(("nearest", "linear", "cubic"))
    chosen = {"mode": mode}
    chosen["coordinate_transformation_mode"] = m.choose(
        ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
    )
    chosen["nearest_mode"] = m.choose(("floor", "round_prefer_floor", "ceil", "round_prefer_ceil"))
    if mode != "nearest" and m.opset >= 18 and m.flip(0.2):
        chosen["antialias"] = 1
    if mode == "cubic" and m.flip(0.3):
        chosen |= {"cubic_coeff_a": -0.5, "exclude_outside": m.between(0, 1)}
    if m.flip():
        factors = m.constant([1, 1, *(m.choose((0.5, 1.0, 2.0, 1.5, 3.0)) for _ in range(inner))], F32)
        m.attempt("Resize", [x, "", factors], **chosen)
    else:
        wanted = [m.between(1, 9) for _ in range(inner)]
        m.attempt("Resize", [x, "", "", m.ints(*like.shape[:2], *wanted)], **chosen)


def sample(m: TrialModel) -> None:
    x = m.pick("f", 4, 5)
    like = m.values[x]
    inner = like.ndim - 2
    grid = m.constant(m.numbers.uniform(-1.3, 1.3, (like.shape[0], *(m.between(1, 5) for _ in range(inner)), inner)))
    new = m.opset >= 20
    mode = m.choose(("linear", "nearest", "cubic") if new else ("bilinear", "nearest", "bicubic"))
    chosen = {"mode": mode, "padding_mode": m.choose(("zeros", "border", "reflection"))}
    m.constants[grid] = m.values[grid] = m.values[grid].astype(like.dtype)
    m.attempt("GridSample", [x, grid], align_corners=m.between(0, 1), **chosen)


def align(m: TrialModel) -> None:
    """RoiAlign of constant boxes."""
    x = m.pick("f", 4, 4)
    like, count = m.values[x], m.between(1, 3)
    corners = np.sort(m.numbers.uniform(0, 6, (count, 2, 2)), axis=1).reshape(count, 4)
    images = m.constant(m.numbers.integers(0, like.shape[0], count), I64)
    chosen = {"output_height": m.between(1, 3), "output_width": m.between(1, 3), "spatial_scale": m.choose((1.0, 0.5))}
    chosen |= m.choose(({"sampling_ratio": 0}, {"sampling_ratio": 2}, {"mode": "max", "sampling_ratio": 1}))
    m.attempt("RoiAlign", [x, m.constant(corners, like.dtype), images], **chosen)


def masked(m: TrialModel) -> None:
    x = m.pick(ANY, 2)
    m.attempt("Trilu", [x, m.scalar(m.between(-2, 2), I64)][: m.between(1, 2)], upper=m.between(0, 1))


def reverse(m: TrialModel) -> None:
    x = m.pick("fi", 2)
    shape, time = m.values[x].shape, m.between(0, 1)
    lengths = m.constant(m.numbers.integers(1, shape[time] + 1, shape[1 - time]), I64)
    m.attempt("ReverseSequence", [x, lengths], time_axis=time, batch_axis=1 - time)


def one_hot(m: TrialModel) -> None:
    x = m.pick("i", 0, 3)
    values = m.constant(m.choose(([0, 1], [-1, 3])), m.choose((F32, I64)))
    m.attempt("OneHot", [x, m.scalar(m.between(3, 9), I64), values], axis=m.between(-1, m.values[x].ndim))


def counted(m: TrialModel) -> None:
    """Results whose size depends on the data, which no rounding changes."""
    x = m.pick("ib")
    kind = m.choose(("nonzero", "unique", "compress"))
    if kind == "nonzero" and m.values[x].ndim:  # docs/disagreements.md
        m.attempt("NonZero", [x])
    elif kind == "unique":
        m.attempt("Unique", [x], outputs=m.between(1, 4), sorted=1)
    else:
        shape = m.values[x].shape
        axis = m.between(0, len(shape) - 1)
        m.attempt("Compress", [x, m.constant(m.numbers.integers(0, 2, shape[axis]), BOOL)], axis=axis)


MOVES: dict[Layer, float] = {
    reshape: 5,
    transpose: 4,
    rank: 2,
    repeat: 2,
    slice_: 3,
    concat: 3,
    split: 2,
    pad: 2,
    gather: 2.5,
    gather_computed: 0.5,
    scatter: 1.5,
    order: 0.7,
    cast: 2,
    narrowed: 1.5,
    halved: 0.3,
    sizes: 2,
    blocks: 0.7,
    resize: 1,
    sample: 0.5,
    align: 0.4,
    masked: 0.6,
    reverse: 0.4,
    one_hot: 0.7,
    counted: 0.4,
}
"""Layer -> its share."""

"""Ops that move elements: slices, joins, pads, gathers, scatters, and rearrangements between dimensions."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import BOOL, I32, I64, Sample, UnsuitedError

SPECIAL = 0.1


@strategy("Slice")
def slice_(s: Sample) -> None:
    shape = s.shape(1, 5)
    axes = s.axes(len(shape), least=1)
    whole = s.flip(0.2)
    if whole:
        axes = list(range(len(axes)))
    starts = [s.between(-shape[a] - 2, shape[a] + 2) for a in axes]
    steps = [s.pick((1, 1, 2, 3, -1, -2, -7)) if s.opset >= 10 else 1 for _ in axes]
    ends = [s.pick((s.between(-shape[a] - 2, shape[a] + 2), far(s, t))) for a, t in zip(axes, steps, strict=True)]
    s.add(s.array(s.dtype(), shape, SPECIAL))
    if s.opset < 10:
        s.attributes = {"starts": starts, "ends": ends} | ({} if whole else {"axes": axes})
        return
    dtype = s.pick((I64, I32))
    kept = np.iinfo(dtype)
    for values in (starts, [max(kept.min, min(kept.max, e)) for e in ends]):
        s.ints(values, dtype)
    if not whole or s.flip():
        s.ints(axes, dtype)
        if any(t != 1 for t in steps) or s.flip():
            s.ints(steps, dtype)
    elif any(t != 1 for t in steps):
        s.add(None)
        s.ints(steps, dtype)


def far(s: Sample, step: int) -> int:
    """An end beyond every axis."""
    return s.pick((2**63 - 1, 2**31 - 1)) if step > 0 else s.pick((-(2**63), -(2**31)))


@strategy("Concat")
def concat(s: Sample) -> None:
    shape, dtype = list(s.shape(1, 5)), s.dtype()
    axis = s.axis(len(shape))
    for _ in range(s.between(1, 5)):
        shape[axis] = s.size()
        s.add(s.array(dtype, shape, SPECIAL), s.flip(0.2))
    s.attributes["axis"] = axis


@strategy("Split")
def split(s: Sample) -> None:
    shape = s.shape(1, 4)
    axis = s.axis(len(shape))
    extent, count = shape[axis], s.between(1, 4)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.attributes["axis"] = axis
    if s.flip(0.6):
        cuts = sorted(s.between(0, extent) for _ in range(count - 1))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, extent], strict=True)]
        s.listed("split", sizes, 13)
    elif s.opset >= 18:
        s.attributes["num_outputs"] = count
    elif extent % count:
        raise UnsuitedError("parts of unequal size")
    s.outputs = [f"y{i}" for i in range(count)]


@strategy("Pad")
def pad(s: Sample) -> None:
    modes = ("constant", "edge", "reflect", *(("wrap",) if s.opset >= 19 else ()))
    mode = s.pick(modes)
    dtype = s.dtype()
    shape = s.shape(1, 4, least=0 if mode == "constant" and s.flip(0.3) else 2)
    axes = s.axes(len(shape), least=1) if s.opset >= 18 and s.flip() else list(range(len(shape)))
    least = -1 if s.flip(0.3) else 0
    low, high = ([s.between(max(least, -(shape[a] // 2)), min(max(shape[a] - 1, 0), 4)) for a in axes] for _ in (0, 1))
    if mode == "constant":
        low, high = ([n + s.pick((0, 0, 3)) for n in side] for side in (low, high))
    s.add(s.array(dtype, shape, SPECIAL))
    s.attributes["mode"] = mode
    s.listed("pads", [*low, *high], 11)
    value = s.array(dtype, (), 0.2)
    if s.opset < 11:
        if mode == "constant" and s.flip():
            s.attributes["value"] = float(value)
        return
    explicit = len(axes) < len(shape) or axes != list(range(len(shape)))
    if mode == "constant" and s.flip():
        s.add(value, fixed=True)
    elif explicit:
        s.add(None)
    if explicit:
        s.ints(axes, s.pick((I32, I64)))


@strategy("Tile")
def tile(s: Sample) -> None:
    shape = s.shape(0, 4, most=500)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.ints([s.pick((0, 1, 1, 2, 3)) for _ in shape])


@strategy("Gather")
def gather(s: Sample) -> None:
    shape = s.shape(1, 4, least=0 if s.flip(0.2) else 1)
    axis = s.axis(len(shape))
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.add(s.indices(shape[axis], s.shape(0, 2), s.dtype("Tind")), s.flip(0.4))
    if axis or s.flip():
        s.attributes["axis"] = axis


@strategy("GatherElements")
def gather_elements(s: Sample) -> None:
    shape = s.shape(1, 4, least=1)
    axis = s.axis(len(shape))
    wanted = [s.between(0 if s.flip(0.1) else 1, n) for n in shape]
    wanted[axis] = s.size()
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.add(s.indices(shape[axis], wanted, s.dtype("Tind")), s.flip(0.3))
    s.attributes["axis"] = axis


@strategy("GatherND")
def gather_nd(s: Sample) -> None:
    shape = s.shape(1, 4, least=1)
    batch = s.between(0, len(shape) - 1) if s.opset >= 12 and s.flip() else 0
    depth = s.between(1, len(shape) - batch)
    lead = (*shape[:batch], *s.shape(0, 2, most=40))
    columns = [s.indices(shape[batch + i], lead) for i in range(depth)]
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.add(np.stack(columns, -1), s.flip(0.3))
    if batch:
        s.attributes["batch_dims"] = batch


def _reduction(s: Sample, since: int, more: int) -> str:
    """How a scatter combines; it is an attribute from `since` on, with max and min from `more` on."""
    if s.opset < since:
        return "none"
    kind = s.pick(("none", "add", "mul", *(("max", "min") if s.opset >= more else ())))
    if kind != "none" or s.flip():
        s.attributes["reduction"] = kind
    return kind


@strategy("ScatterElements", "Scatter")
def scatter_elements(s: Sample) -> None:
    shape, dtype = s.shape(1, 4, least=1), s.dtype()
    axis = s.axis(len(shape))
    kind = _reduction(s, 16, 18) if s.op == "ScatterElements" else "none"
    if dtype == BOOL and kind != "none":
        raise UnsuitedError("logic of bools by name of arithmetic")
    wanted = [s.between(0 if s.flip(0.05) else 1, n) for n in shape]
    indices = np.argsort(s.numbers.random(shape), axis=axis)[tuple(slice(n) for n in wanted)]
    if kind != "none" and s.flip():  # several updates of an element
        wanted[axis] = s.size(1)
        indices = s.indices(shape[axis], wanted)
    elif s.flip(0.3):
        indices = indices - shape[axis]
    s.add(s.array(dtype, shape, SPECIAL if kind == "none" else 0.0))
    s.add(indices.astype(s.dtype("Tind")), s.flip(0.3))
    s.add(s.array(dtype, wanted))
    s.attributes["axis"] = axis


@strategy("ScatterND")
def scatter_nd(s: Sample) -> None:
    shape, dtype = s.shape(1, 4, least=1), s.dtype()
    depth = s.between(1, len(shape))
    kind = _reduction(s, 16, 18)
    if dtype == BOOL and kind != "none":
        raise UnsuitedError("logic of bools by name of arithmetic")
    places = int(np.prod(shape[:depth]))
    lead = s.shape(1, 2, most=20) if s.flip() else (s.between(0, min(places, 12)),)
    count = int(np.prod(lead))
    if kind == "none":
        if count > places:
            raise UnsuitedError("more updates than places")
        flat = s.numbers.permutation(places)[:count]
    else:
        flat = s.numbers.integers(0, places, count)
    indices = np.stack(np.unravel_index(flat, shape[:depth]), -1).reshape(*lead, depth).astype(np.int64)
    if s.flip(0.3):
        indices = indices - np.array(shape[:depth])
    s.add(s.array(dtype, shape, SPECIAL if kind == "none" else 0.0))
    s.add(indices, s.flip(0.3))
    s.add(s.array(dtype, (*lead, *shape[depth:])))


@strategy("TensorScatter")
def tensor_scatter(s: Sample) -> None:
    """Rows that fit behind their place, or anywhere around the ring."""
    shape, dtype = s.shape(2, 4, least=1), s.dtype()
    axis = s.between(1, len(shape) - 1)
    rows = s.between(1, shape[axis])
    circular = s.flip()
    s.attributes = {"axis": axis - len(shape) if s.flip() else axis, "mode": "circular" if circular else "linear"}
    s.add(s.array(dtype, shape, SPECIAL), s.flip(0.2))
    s.add(s.array(dtype, [rows if a == axis else n for a, n in enumerate(shape)], SPECIAL))
    if s.flip(0.8):
        most = shape[axis] if circular else shape[axis] - rows + 1
        s.add(s.numbers.integers(0, most, shape[:1]).astype(np.int64), s.flip(0.3))


@strategy("Compress")
def compress(s: Sample) -> None:
    shape = s.shape(1, 3, least=1)
    axis = s.axis(len(shape))
    extent = shape[axis]
    if s.flip():
        s.attributes["axis"] = axis
    else:
        extent = int(np.prod(shape))
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.add(s.array(BOOL, (s.between(1, extent),)), fixed=True)


@strategy("ReverseSequence")
def reverse_sequence(s: Sample) -> None:
    shape = (s.size(1, 9), s.size(1, 9), *s.shape(0, 2))
    time = s.between(0, 1)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    lengths = s.numbers.integers(1, shape[time] + 1, shape[1 - time])
    s.add(lengths.astype(np.int64), fixed=s.flip(0.9))
    s.attributes = {"batch_axis": 1 - time, "time_axis": time} if time or s.flip() else {}


@strategy("DepthToSpace", "SpaceToDepth")
def blocks(s: Sample) -> None:
    block, n, c, h, w = s.between(1, 3), s.size(0, 3), s.size(1, 4), s.size(0, 5), s.size(1, 5)
    shape = (n, c * block * block, h, w) if s.op == "DepthToSpace" else (n, c, h * block, w * block)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.attributes["blocksize"] = block
    if s.op == "DepthToSpace" and s.opset >= 11 and s.flip(0.8):
        s.attributes["mode"] = s.pick(("DCR", "CRD"))


@strategy("CenterCropPad")
def center_crop_pad(s: Sample) -> None:
    shape = s.shape(1, 3, least=1)
    axes = s.axes(len(shape), least=1) if s.flip() else list(range(len(shape)))
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.ints([s.between(1, 9) for _ in axes], s.dtype("Tind"))
    if axes != list(range(len(shape))):
        s.attributes["axes"] = axes

"""Convolutions, pooling, resizing and sampling: ops that look through a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F32, F64, I64, Sample, UnsuitedError


def space(s: Sample, low: int = 1, high: int = 3) -> list[int]:
    """Spatial sizes: one to three axes, with fewer elements the more axes there are."""
    rank = s.between(low, high)
    most = (33, 17, 8)[rank - 1]
    return [s.size(1, most) for _ in range(rank)]


def window(s: Sample, sizes: Sequence[int], dilated: bool = True) -> list[int]:
    """A kernel that fits, with its attributes filled in; the sizes of the kernel."""
    kernel = [s.between(1, min(d, 4)) for d in sizes]
    dilations = [s.between(1, 2) if (k - 1) * 2 < d else 1 for k, d in zip(kernel, sizes, strict=True)]
    strides = [s.between(1, 4 if s.flip(0.3) else 2) for _ in sizes]
    if s.flip(0.25):
        s.attributes["auto_pad"] = s.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
        dilations = [1 for _ in sizes]
        strides = [min(a, k) for a, k in zip(strides, kernel, strict=True)]
    elif s.flip(0.7):
        s.attributes["pads"] = [s.between(0, k - 1) for k in (*kernel, *kernel)]
    if s.flip(0.7) or max(strides) > 1:
        s.attributes["strides"] = strides
    if dilated and (max(dilations) > 1 or s.flip(0.2)):
        s.attributes["dilations"] = dilations
    return kernel


def _conv(s: Sample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of input and weights."""
    sizes, groups = space(s), s.pick((1, 1, 2, 3))
    kernel = window(s, sizes)
    channels, outputs = groups * s.between(1, 4), groups * s.between(1, 5)
    if s.flip(0.2):
        groups = channels
        outputs = channels * s.between(1, 2)
    if groups > 1 or s.flip():
        s.attributes["group"] = groups
    if s.flip():
        s.attributes["kernel_shape"] = kernel
    batch = 0 if s.flip(0.03) else s.between(1, 2)
    return (batch, channels, *sizes), (outputs, channels // groups, *kernel)


@strategy("Conv")
def conv(s: Sample) -> None:
    dtype = s.dtype()
    x, w = _conv(s)
    s.add(s.array(dtype, x, 0.02 if s.flip(0.1) else 0.0))
    s.add(s.array(dtype, w), s.flip(0.8))
    if s.flip():
        s.add(s.array(dtype, w[:1]), s.flip(0.8))


@strategy("FusedConv", domain="com.microsoft")
def fused_conv(s: Sample) -> None:
    x, w = _conv(s)
    s.attributes |= {"kernel_shape": list(w[2:]), "activation": s.pick(("Relu", "Sigmoid", "Tanh"))}
    s.add(s.array(F32, x))
    s.add(s.array(F32, w), True)
    if s.flip():
        s.add(s.array(F32, w[:1]), True)


@strategy("NhwcConv", domain="com.microsoft")
def nhwc_conv(s: Sample) -> None:
    sizes = space(s, 2, 2)
    kernel = window(s, sizes)
    channels, outputs = s.between(1, 5), s.between(1, 5)
    s.add(s.array(F32, (s.between(1, 2), *sizes, channels)))
    s.add(s.array(F32, (outputs, channels, *kernel)), True)
    if s.flip():
        s.add(s.array(F32, (outputs,)), True)


@strategy("ConvTranspose")
def conv_transpose(s: Sample) -> None:
    dtype, sizes, groups = s.dtype(), [min(d, 9) for d in space(s)], s.pick((1, 1, 2, 3))
    kernel = [s.between(1, 4) for _ in sizes]
    strides, dilations = [s.between(1, 3) for _ in sizes], [s.pick((1, 1, 2)) for _ in sizes]
    s.attributes = {"strides": strides, "dilations": dilations, "group": groups}
    if s.flip():
        s.attributes["kernel_shape"] = kernel
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    if s.flip(0.2):
        s.attributes["auto_pad"] = s.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
        s.attributes["dilations"] = [1 for _ in sizes]
        s.attributes["strides"] = [min(a, k) for a, k in zip(strides, kernel, strict=True)]
    elif s.flip(0.6):
        s.attributes["pads"] = [s.between(0, r // 2) for r in (*reach, *reach)]
    if s.flip(0.4) and "auto_pad" not in s.attributes:
        s.attributes["output_padding"] = [s.between(0, max(a, d) - 1) for a, d in zip(strides, dilations, strict=True)]
    if s.flip(0.2) and s.attributes.get("auto_pad") != "VALID":
        s.attributes.pop("pads", None)
        s.attributes.pop("output_padding", None)
        strides = s.attributes["strides"]
        full = [(n - 1) * a + r + 1 for n, a, r in zip(sizes, strides, reach, strict=True)]
        s.attributes["output_shape"] = [max(1, f - s.between(0, 2)) for f in full]
    channels, outputs = groups * s.between(1, 4), s.between(1, 4)
    s.add(s.array(dtype, (s.between(1, 2), channels, *sizes)))
    s.add(s.array(dtype, (channels, outputs, *kernel)), s.flip(0.8))
    if s.flip():
        s.add(s.array(dtype, (outputs * groups,)), s.flip(0.8))


@strategy("DeformConv")
def deform_conv(s: Sample) -> None:
    dtype = s.dtype()
    h, w, groups, offset_groups = s.between(3, 8), s.between(3, 8), s.pick((1, 2)), s.pick((1, 2))
    kernel, strides = [s.between(1, 3), s.between(1, 3)], [s.between(1, 2), s.between(1, 2)]
    pads = [s.between(0, 1) for _ in range(4)]
    out = [(n + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, n in enumerate((h, w))]
    channels, outputs, taps, n = 2 * s.between(1, 2), 2 * s.between(1, 2), kernel[0] * kernel[1], s.between(1, 2)
    s.add(s.array(dtype, (n, channels, h, w)))
    s.add(s.array(dtype, (outputs, channels // groups, *kernel)), s.flip())
    s.add(s.array(dtype, (n, offset_groups * taps * 2, *out), scale=1.0))
    if s.flip():
        s.add(s.array(dtype, (outputs,)))
    elif s.flip():
        s.add(None)
    if len(s.inputs) > 3:
        s.add(s.positive(dtype, (n, offset_groups * taps, *out)))
    s.attributes = {"group": groups, "offset_group": offset_groups, "strides": strides, "pads": pads}
    s.attributes |= {"kernel_shape": kernel} if s.flip() else {}


@strategy("MaxPool", "AveragePool", "LpPool")
def pool(s: Sample) -> None:
    sizes = space(s)
    dilated = s.opset >= {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[s.op]
    s.attributes["kernel_shape"] = window(s, sizes, dilated)
    if not dilated:
        s.attributes.pop("dilations", None)
    since = {"MaxPool": 10, "AveragePool": 10, "LpPool": 18}[s.op]
    if s.opset >= since and "auto_pad" not in s.attributes and s.flip(0.4):
        s.attributes["ceil_mode"] = 1
    if s.op == "AveragePool" and s.flip():
        s.attributes["count_include_pad"] = int(s.flip())
    if s.op == "LpPool" and s.flip():
        s.attributes["p"] = s.pick((1, 2, 3))
    shape = (s.between(0 if s.flip(0.1) else 1, 2), s.between(1, 4), *sizes)
    dtype = s.dtype()
    x = s.array(dtype, shape, 0.03 if s.op == "MaxPool" and s.flip(0.3) else 0.0)
    s.add(x if dtype.kind in "iu" else np.where(np.isnan(x), np.zeros((), dtype), x))  # NaN: docs/disagreements.md
    if s.op == "MaxPool" and s.opset >= 8 and s.flip(0.3):
        s.arrays["x0"] = s.distinct(dtype, shape) if dtype.itemsize > 1 else s.arrays["x0"]
        s.outputs = ["y0", "y1"]
        if s.flip(0.3):
            s.attributes["storage_order"] = 1


@strategy("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(s: Sample) -> None:
    s.add(s.array(s.dtype(), (s.between(1, 2), s.size(1, 9), *space(s))))
    if s.op == "GlobalLpPool" and s.flip():
        s.attributes["p"] = s.pick((1, 2, 3))


@strategy("MaxUnpool")
def max_unpool(s: Sample) -> None:
    n, c, h, w = s.between(1, 2), s.between(1, 3), s.between(1, 4), s.between(1, 4)
    kernel = [s.between(1, 3), s.between(1, 3)]
    strides = [max(k, s.between(1, 3)) for k in kernel]
    whole = [(m - 1) * a + k for m, a, k in zip((h, w), strides, kernel, strict=True)]
    places = s.numbers.permutation(n * c * whole[0] * whole[1])[: n * c * h * w]
    s.add(s.array(s.dtype("T1"), (n, c, h, w)))
    s.add(places.reshape(n, c, h, w).astype(np.int64))
    s.attributes = {"kernel_shape": kernel, "strides": strides}


@strategy("Col2Im")
def col2im(s: Sample) -> None:
    image, kernel = [s.between(3, 7), s.between(3, 7)], [s.between(1, 3), s.between(1, 3)]
    strides, pads = [s.between(1, 2), s.between(1, 2)], [s.between(0, 1) for _ in range(4)]
    steps = [(image[i] + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i in (0, 1)]
    taps = kernel[0] * kernel[1]
    s.add(s.array(s.dtype(), (s.between(1, 2), taps * s.between(1, 3), steps[0] * steps[1])))
    s.ints(image)
    s.ints(kernel)
    s.attributes = {"strides": strides, "pads": pads}


MODES = (
    "half_pixel",
    "asymmetric",
    "align_corners",
    "pytorch_half_pixel",
    "tf_crop_and_resize",
    "half_pixel_symmetric",
)


@strategy("Resize")
def resize(s: Sample) -> None:
    if s.opset < 10:
        raise UnsuitedError("Resize began with opset 10")
    mode = s.pick(("nearest", "linear", "cubic"))
    sizes = [s.size(1, 9), s.size(1, 9)] if s.flip(0.7) or mode == "cubic" else space(s)
    sizes = [min(d, 9) for d in sizes]
    shape = (s.between(1, 2), s.between(1, 3), *sizes)
    dtype = s.dtype("T" if s.opset < 11 else "T1")
    s.attributes["mode"] = mode
    s.add(s.array(dtype, shape))
    if s.opset < 11:
        if mode == "cubic":
            raise UnsuitedError("cubic began with opset 11")
        s.add(np.array([1, 1, *(s.pick((0.5, 1.0, 2.0, 1.5, 3.0)) for _ in sizes)], np.float32), fixed=True)
        return
    coordinates = s.pick(MODES if s.opset >= 19 else MODES[:5])
    roi = None
    if coordinates == "tf_crop_and_resize":
        rank = len(shape)
        low, high = [s.pick((0.0, 0.2)) for _ in sizes], [s.pick((1.0, 0.8)) for _ in sizes]
        roi = np.array([0, 0, *low, 1, 1, *high], np.float32)
        assert roi.size == 2 * rank
        s.attributes["extrapolation_value"] = 2.5
    s.attributes["coordinate_transformation_mode"] = coordinates
    if mode == "nearest":
        s.attributes["nearest_mode"] = s.pick(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    if mode == "cubic":
        s.attributes |= {"cubic_coeff_a": s.pick((-0.75, -0.5)), "exclude_outside": int(s.flip(0.3))}
    if s.opset >= 18 and mode != "nearest" and s.flip(0.3):
        s.attributes["antialias"] = 1
    empty = np.zeros(0, np.float32)
    s.add(roi if roi is not None else None if s.opset >= 13 else empty, fixed=True)
    if s.flip():
        scales = [s.pick((0.5, 1.0, 2.0, 1.5, 3.0, 0.6)) for _ in sizes]
        if any(int(d * f) < 1 for d, f in zip(sizes, scales, strict=True)):
            raise UnsuitedError("nothing is left")
        s.add(np.array([1, 1, *scales], np.float32), fixed=True)
    else:
        s.add(None if s.opset >= 13 else empty, fixed=True)
        wanted = [s.size(1, 9) for _ in sizes]
        if s.opset >= 18 and roi is None and s.flip(0.4):
            axes = list(range(2, len(shape)))
            s.attributes["axes"] = axes
            if s.flip(0.3):
                s.attributes["axes"] = [a - len(shape) for a in axes]
            elif s.flip():
                s.attributes["keep_aspect_ratio_policy"] = s.pick(("stretch", "not_larger", "not_smaller"))
            s.ints(wanted)
        else:
            s.ints([*shape[:2], *wanted])


@strategy("Upsample")
def upsample(s: Sample) -> None:
    if s.opset > 9:
        raise UnsuitedError("Upsample ended with opset 9")
    scales = [1.0, 1.0, float(s.between(1, 3)), float(s.between(1, 3))]
    s.add(s.array(s.dtype("T", (F32,)), (s.between(1, 2), s.between(1, 3), s.size(1, 9), s.size(1, 9))))
    s.attributes["mode"] = s.pick(("nearest", "linear"))
    if s.opset < 9:
        s.attributes["scales"] = scales
    else:
        s.add(np.array(scales, np.float32), fixed=True)


@strategy("GridSample")
def grid_sample(s: Sample) -> None:
    deep = s.opset >= 20 and s.flip(0.3)
    sizes = [s.between(1, 6) for _ in range(3 if deep else 2)]
    names = ("linear", "nearest", "cubic") if s.opset >= 20 else ("bilinear", "nearest", "bicubic")
    mode = s.pick(names[:2] if deep else names)
    n, out = s.between(1, 2), [s.between(1, 5) for _ in sizes]
    s.add(s.array(s.dtype("T1"), (n, s.between(1, 3), *sizes)))
    s.add((s.numbers.uniform(-1.3, 1.3, (n, *out, len(sizes)))).astype(s.dtype("T2", (F32,))))
    s.attributes = {"mode": mode, "padding_mode": s.pick(("zeros", "border", "reflection"))}
    s.attributes["align_corners"] = int(s.flip())


def _boxes(s: Sample, count: int, high: float) -> np.ndarray:
    a, b = s.numbers.uniform(0, high, (count, 2)), s.numbers.uniform(0, high, (count, 2))
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], 1)


@strategy("RoiAlign")
def roi_align(s: Sample) -> None:
    dtype, n, count = s.dtype("T1", (F32, F64)), s.between(1, 2), s.between(1, 3)
    s.add(s.array(dtype, (n, s.between(1, 3), s.between(3, 9), s.between(3, 9))))
    s.add(_boxes(s, count, 9.0).astype(dtype))
    s.add(s.numbers.integers(0, n, count).astype(I64), s.flip())
    s.attributes = {"output_height": s.between(1, 3), "output_width": s.between(1, 3)}
    s.attributes |= {"sampling_ratio": s.between(1, 3), "spatial_scale": s.pick((1.0, 0.5))}
    s.attributes |= {"mode": s.pick(("avg", "max"))} if s.flip() else {}
    if s.opset >= 16 and s.flip():
        s.attributes["coordinate_transformation_mode"] = s.pick(("half_pixel", "output_half_pixel"))


@strategy("MaxRoiPool")
def max_roi_pool(s: Sample) -> None:
    n, count = s.between(1, 2), s.between(1, 3)
    s.add(s.array(F32, (n, s.between(1, 3), s.between(3, 9), s.between(3, 9))))
    rois = np.concatenate([s.numbers.integers(0, n, (count, 1)), np.floor(_boxes(s, count, 8.0))], 1)
    s.add(rois.astype(np.float32), s.flip())
    s.attributes = {"pooled_shape": [s.between(1, 3), s.between(1, 3)], "spatial_scale": s.pick((1.0, 0.5))}


@strategy("AffineGrid")
def affine_grid(s: Sample) -> None:
    rank, n = s.pick((2, 3)), s.between(1, 2)
    s.add(s.array(s.dtype("T1"), (n, rank, rank + 1)))
    s.ints([n, s.between(1, 3), *(s.between(2, 5) for _ in range(rank))])
    s.attributes["align_corners"] = int(s.flip())

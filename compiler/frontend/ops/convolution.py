"""Conv, ConvTranspose and ONNX Runtime's FusedConv.

Invariant: a bias is an `add` of shape [1, o, 1...] after the contraction, never an operand of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.fused_activation import apply_activation
from ppuc.compiler.frontend.ops.windows import auto_pad, explicit_pads, read_window, spatial_attr
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.ops.conv_transpose import ConvTransposeAttrs
from ppuc.ir.ops.view import ReshapeAttrs


def _kernel(ctx: NodeContext) -> tuple[int, ...]:
    """Spatial kernel sizes, from the weights; kernel_shape must agree if given."""
    x, w = ctx.shape(0), ctx.shape(1)
    if len(x) < 3 or len(x) != len(w):
        ctx.fail(
            "input and weights need a batch, a channel and the same spatial axes",
            got=f"X {list(x)}, W {list(w)}",
            expected="two tensors of one rank, 3 or more",
        )
    kernel = spatial_attr(ctx, "kernel_shape", len(x) - 2, 0) if ctx.attr("kernel_shape") is not None else w[2:]
    if kernel != w[2:]:
        ctx.fail("kernel_shape contradicts the weights", got=list(kernel), expected=list(w[2:]))
    return kernel


def _groups(ctx: NodeContext, input_channels_of_w: int) -> int:
    """Attribute `group`; `input_channels_of_w` is the number of channels of X that the weights cover, times the group
    count if W holds one group's."""
    groups, channels = int(ctx.attr("group", 1)), ctx.shape(0)[1]
    if groups < 1 or channels % groups:
        ctx.fail("input channels do not divide by group", got=f"X has {channels} channels, group = {groups}")
    if channels != input_channels_of_w:
        ctx.fail("input channels contradict the weights", got=f"X has {channels}", expected=input_channels_of_w)
    return groups


def _add_bias(ctx: NodeContext, y: Value, index: int) -> Value:
    """`y` + input `index`, which holds one number per channel; `y` itself if the input is absent."""
    if not ctx.has(index):
        return y
    channels = y.type.dims[1]
    if ctx.shape(index) != (channels,):
        ctx.fail("bias needs one number for each output channel", got=ctx.type(index), expected=f"shape [{channels}]")
    shape = (1, channels, *(1,) * (y.type.rank - 2))
    return ctx.op("add", y, ctx.op("reshape", ctx.operand(index), attrs=ReshapeAttrs(shape)))


def _convolution(ctx: NodeContext) -> Value:
    kernel = _kernel(ctx)
    outputs, per_group = ctx.shape(1)[:2]
    groups = _groups(ctx, per_group * int(ctx.attr("group", 1)))
    if outputs % groups:
        ctx.fail("output channels do not divide by group", got=f"W has {outputs} output channels, group = {groups}")
    window = read_window(ctx, ctx.shape(0)[2:], kernel)
    attrs = ConvAttrs(window.strides, window.low, window.high, window.dilations, groups)
    return _add_bias(ctx, ctx.op("conv", ctx.operand(0), ctx.operand(1), attrs=attrs), 2)


@importer("Conv")
def conv(ctx: NodeContext) -> Sequence[Value]:
    return (_convolution(ctx),)


@importer("FusedConv", domain="com.microsoft")
def fused_conv(ctx: NodeContext) -> Sequence[Value]:
    """activation(Conv(X, W, B) + Z)"""
    y = _convolution(ctx)
    if ctx.has(3):
        y = ctx.op("add", y, ctx.operand(3))
    given: Sequence[float] = ctx.attr("activation_params", [])
    return (apply_activation(ctx, y, str(ctx.attr("activation", "")), [float(p) for p in given]),)


@importer("ConvTranspose")
def conv_transpose(ctx: NodeContext) -> Sequence[Value]:
    kernel = _kernel(ctx)
    rank = len(kernel)
    groups = _groups(ctx, ctx.shape(1)[0])
    strides = spatial_attr(ctx, "strides", rank, 1)
    dilations = spatial_attr(ctx, "dilations", rank, 1)
    extra = spatial_attr(ctx, "output_padding", rank, 0)
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(ctx.shape(0)[2:], strides, kernel, dilations, extra, strict=True)
    ]
    low, high = _transposed_pads(ctx, full, strides)
    attrs = ConvTransposeAttrs(strides, low, high, extra, dilations, groups)
    return (_add_bias(ctx, ctx.op("conv_transpose", ctx.operand(0), ctx.operand(1), attrs=attrs), 2),)


def _transposed_pads(
    ctx: NodeContext, full: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Crops of the uncropped sizes `full`: `pads`, or such that output_shape (or input * stride under SAME) remains."""
    rank = len(full)
    mode = auto_pad(ctx)
    wanted = ctx.attr("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        return explicit_pads(ctx, rank) if mode == "NOTSET" else ((0,) * rank, (0,) * rank)
    if wanted is None:
        sizes = [n * s for n, s in zip(ctx.shape(0)[2:], strides, strict=True)]
    else:
        sizes = [int(n) for n in wanted][-rank:]
        if len(wanted) not in (rank, rank + 2):
            ctx.fail("output_shape needs one entry for each spatial axis", got=list(wanted), expected=f"{rank} entries")
    total = [f - n for f, n in zip(full, sizes, strict=True)]
    if not mode.startswith("SAME") and min(total, default=0) < 0:  # what is more than the sums comes after them
        low = tuple(max(n, 0) - max(n, 0) // 2 for n in total)
        return low, tuple(n - before for n, before in zip(total, low, strict=True))
    smaller = tuple(n // 2 for n in total)
    larger = tuple(n - n // 2 for n in total)
    return (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)

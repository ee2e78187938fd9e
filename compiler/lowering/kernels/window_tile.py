"""The part of a kernel that computes a tile of the results of a window (a depthwise convolution or pool) in l1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering.kernels.contraction import anchor_of
from ppuc.compiler.lowering.kernels.window import WindowLowering
from ppuc.compiler.lowering.kernels.window_steps import emit_pool, emit_taps
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import Nest, Tiling
from ppuc.compiler.lowering.tiling.vectorise import ChainEmitter, ProgramBuilder
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Vec
from ppuc.targets.schema import Target


def window_tile(window: WindowLowering, result: Value, nest: Nest, loops: Mapping[str, Tiling], depth: int) -> str:
    """Add the loads and the vec of a tile of `result`, the last value of the window's group, innermost in `nest`, with
    rings of `depth` slots. The tile's buffer belongs to the window's kernel. Returns its name."""
    builder = ProgramBuilder()
    ins: list[str] = []
    weights = ""
    if window.w is not None:
        ins.append(window.load_weights(nest, loops, depth))
        weights = builder.param(window.w_dtype, whole=True)
    ins.append(window.load_halo(nest, loops))
    x = builder.param(window.dtype, whole=True)
    tile, halo = window.tiles[1:], window.halo_of(window.tiles)
    names: dict[str, str] = {}
    for operand in window.operands:
        if not operand.written:
            names[operand.key] = builder.param(operand.dtype, whole=True)
            ins.append(window.load_operand(nest, operand, loops, depth))
    assert window.chain.anchor is not None
    ops, bias = window.chain.ops, _bias(window)
    if window.w is not None:
        value = emit_taps(builder, window.window, x, weights, tile, halo, names[bias] if bias else "")
    else:
        value = emit_pool(builder, window.window, x, tile, halo)
    names[ops[0].results[0].name if bias else window.chain.anchor.name] = value
    emitter = ChainEmitter(window.chain, builder, names, window.axis_of())
    for op in ops[1:] if bias else ops:
        emitter.emit(op)
    out = window.kernel.buffer("d", result.type.dtype, tile)
    program = window.kernel.vector(builder.finish(window.name, [(emitter.value(result.name), result.type.dtype)]))
    nest.add(len(nest.loops), Vec(program, (out,), tuple(ins)))
    return out


def _bias(window: WindowLowering) -> str:
    """The key of the bias that the first op of the window's chain adds: it initialises the sum of taps. "" if that op
    is no addition, or the sum has other readers."""
    chain = window.chain
    assert chain.anchor is not None
    if window.w is None or not chain.ops or chain.ops[0].name != "add":
        return ""
    first, sums = chain.ops[0], [v.name for op in chain.ops for v in op.operands]
    keys = [chain.operand_keys.get((first.results[0].name, i)) for i in range(2)]
    given = [key for key in keys if key is not None]
    added = [v.name for v, key in zip(first.operands, keys, strict=True) if key is None]
    reads = sum(chain.alias.get(name, name) == chain.anchor.name for name in sums)
    if len(given) != 1 or reads != 1 or chain.alias.get(added[0], added[0]) != chain.anchor.name:
        return ""
    return given[0]


def split_at(body: Graph, between: Value) -> tuple[Graph, Graph]:
    """The ops that compute `between`, and the others, each as a graph of its own."""
    needed = {between.name}
    for op in reversed(body.ops):
        if op.results[0].name in needed:
            needed |= {v.name for v in op.operands}
    ops = tuple(op for op in body.ops if op.results[0].name in needed)
    others = tuple(op for op in body.ops if op.results[0].name not in needed)
    first = Graph("body", _params(body, ops), (between,), ops)
    return first, Graph("body", (between, *_params(body, others)), body.results, others)


def _params(body: Graph, ops: Sequence[Op]) -> tuple[Value, ...]:
    read = {v.name for op in ops for v in op.operands}
    return tuple(p for p in body.params if p.name in read)


def window_of(
    name: str, first: Graph, between: Value, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> WindowLowering:
    """The lowering of the window that computes `between`. Raises NotFusable unless its tiles are those of `between`."""
    if anchor_of(first, "conv", "pool").results[0].type.dims != between.type.dims:
        raise NotFusable("the window's results are reshaped before the product")
    window = WindowLowering(f"{name}.window", first, {**tensors, between.name: between.name}, loc, target)
    if any(window.chain.pulls.values()):
        raise NotFusable("the window's results are transposed before the product")
    if window.chain.reduce_axes or len(window.space.axes) != window.spatial + 2:
        raise NotFusable("the window's results are reduced or repeated")
    return window

"""The accuracy of trained models with weights in block formats and unquantized activations, as a table.

    python -m benchmarks.block_formats --models FOLDER [NAME ...]

FOLDER is as in `benchmarks.fp8`; the figures are SQNRs of the outputs on samples of eval.npz. Blocks lie along the
summed axis.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.tasks import task_of
from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.quantization.apply import by_channel, quantized_weights
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.measure import Reference
from ppuc.compiler.quantization.plan import LayerPlan
from ppuc.compiler.quantization.prepare import Prepared, prepare
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.microscaling import MXFP4, MXFP8_E4M3, NVFP4, BlockFormat, decode_blocks, encode_blocks
from ppuc.ir.rewrite import Builder, rewrite
from ppuc.targets.description import load_target

SAMPLES = 8
Rounding = Callable[[Layer], np.ndarray]


def by_channels(layer: Layer) -> np.ndarray:
    """The weights in E4M3 with one f32 scale per channel."""
    stored, scale = quantized_weights(layer, LayerPlan("e4m3"))
    wide: np.ndarray = stored.astype(np.float32) * by_channel(scale, layer.channel_axis, stored.ndim)
    return wide


def in_blocks(format: BlockFormat) -> Rounding:
    """The weights in blocks of `format` along the summed axis."""

    def rounding(layer: Layer) -> np.ndarray:
        assert layer.weights is not None
        channels_last = layer.op.name == "matmul" and layer.channel_axis == layer.weights.type.rank - 1
        wide = layer.weights.array().astype(np.float32)
        rows = wide.swapaxes(-1, -2) if channels_last else wide
        flat = rows.reshape(rows.shape[0], -1) if layer.op.name == "conv" else rows
        back = decode_blocks(encode_blocks(flat, format)).reshape(rows.shape)
        return back.swapaxes(-1, -2) if channels_last else back

    return rounding


COLUMNS: dict[str, Rounding] = {
    "E4M3, scale a channel": by_channels,
    "MXFP8": in_blocks(MXFP8_E4M3),
    "NVFP4": in_blocks(NVFP4),
    "MXFP4": in_blocks(MXFP4),
}


def with_weights(ready: Prepared, rounding: Rounding) -> Graph:
    """The model's graph with the weights of its layers rounded."""
    layers = {layer.op.results[0].name: layer for layer in ready.layers if layer.weights is not None}

    def rule(b: Builder, op: Op) -> list[Value] | None:
        layer = layers.get(op.results[0].name)
        if layer is None:
            return None
        weights = b.const(np.ascontiguousarray(rounding(layer)), "weights")
        return list(b.emit(op.name, (op.operands[0], weights), op.attrs, types=[r.type for r in op.results]))

    return rewrite(ready.module.graph, rule)


def row(name: str, folder: Path) -> str:
    """One model's line."""
    task = task_of(folder)
    samples = [*task.held, *task.seen]
    options = CompileOptions(load_target("zhenwu-m890"))
    imported = load_model(folder / "model.onnx", shapes={n: a.shape for n, a in samples[0].items()})
    ready = prepare(initial_module(imported, options), options)
    judge = Reference(ready.module.graph, ready.feeds(samples[:SAMPLES]))
    found = [f"{judge.compare(with_weights(ready, rounding)).sqnr:.1f} dB" for rounding in COLUMNS.values()]
    return f"| {' | '.join([name, *found])} |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=Path, required=True, help="folder of models")
    options.add_argument("names", nargs="*", help="models in it; default: all with eval.npz")
    given = options.parse_args()
    print(f"| {' | '.join(['model', *COLUMNS])} |\n|{'---|' * (len(COLUMNS) + 1)}", flush=True)
    for name in given.names or sorted(p.parent.name for p in given.models.glob("*/eval.npz")):
        print(row(name, given.models / name), flush=True)


if __name__ == "__main__":
    main()

"""Convolutions of small images: tiles of several images, which fill the rows of the tensor engine's fragments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from ppuc.compiler.entry import compile, verify
from ppuc.compiler.lowering.kernels.conv_tiles import TiledConv
from ppuc.compiler.program.compiled import CompiledProgram
from tests.support.onnx_text import model_of

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "whole images": ((8, 32, 7, 7), (48, 32, 3, 3), "pads = [1, 1, 1, 1]"),
    "a batch that is no multiple": ((7, 32, 7, 7), (48, 32, 3, 3), "pads = [1, 1, 1, 1]"),
    "strided": ((8, 24, 13, 13), (48, 24, 3, 3), "pads = [1, 1, 1, 1], strides = [2, 2]"),
    "parts of images": ((9, 16, 28, 28), (24, 16, 3, 3), "pads = [1, 1, 1, 1]"),
    "each tap loaded alone": ((8, 32, 7, 7), (48, 32, 3, 3), "pads = [16, 16, 16, 16], dilations = [16, 16]"),
    "groups": ((8, 64, 7, 7), (48, 32, 3, 3), "pads = [1, 1, 1, 1], group = 2"),
    "sequences": ((12, 40, 23), (48, 40, 3), "pads = [1, 1]"),
    "volumes": ((6, 16, 4, 4, 3), (32, 16, 3, 3, 3), "pads = [1, 1, 1, 1, 1, 1]"),
}


def model(x: tuple[int, ...], w: tuple[int, ...], attributes: str, rest: str) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal(w, np.float32) / np.float32(np.sqrt(np.prod(w[1:]))),
        "b": rng.standard_normal(w[0], np.float32),
    }
    dims, result = ", ".join(map(str, x)), ", ".join(f"D{d}" for d in range(len(x)))
    text = f"conv (float[{dims}] x) => (float[{result}] y) {{ c = Conv<{attributes}>(x, w, b) {rest} }}"
    return model_of(text, weights)


def images_of(program: CompiledProgram, rank: int) -> list[int]:
    """Images in each tile that is loaded of an input of this rank: one if the tile has no axis for them."""
    kernels = (kernel for segment in program.artifact.program.segments for kernel in segment.kernels)
    shapes = [ring.shape for kernel in kernels for ring in kernel.rings if ring.name == "xt"]
    return [shape[0] if len(shape) == rank else 1 for shape in shapes]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only tiles of several images are searched, whatever others cost."""

    def least(conv: TiledConv, tiles: Sequence[int]) -> float:
        images = conv.at[0]
        return 0.0 if images is not None and tiles[images] > 1 else math.inf

    monkeypatch.setattr(TiledConv, "_least", least)
    monkeypatch.setenv("PPUC_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("target", ["zhenwu-m890", "ppu-edge"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tiles_of_several_images(case: tuple[tuple[int, ...], tuple[int, ...], str], target: str) -> None:
    program = compile(model(*case, "y = Relu(c)"), target)
    assert min(images_of(program, len(case[0]))) > 1
    result = verify(program, {"x": np.random.default_rng(2).standard_normal(case[0], np.float32)})
    assert result.ok, result.outputs[0].reason


@pytest.mark.usefixtures("several")
def test_an_epilogue_that_adds_and_pools_several_images() -> None:
    x, w, attributes = (8, 32, 7, 7), (32, 32, 3, 3), "pads = [1, 1, 1, 1]"
    program = compile(model(x, w, attributes, "r = Add(c, x) p = Relu(r) y = GlobalAveragePool(p)"), "zhenwu-m890")
    assert min(images_of(program, 4)) > 1
    result = verify(program, {"x": np.random.default_rng(2).standard_normal(x, np.float32)})
    assert result.ok, result.outputs[0].reason


def test_small_images_fill_fragments_together() -> None:
    """49 rows of an image are 4 fragments of 16, those of 4 images 13 instead of 16."""
    case = (32, 512, 7, 7), (512, 512, 3, 3), "pads = [1, 1, 1, 1]"
    program = compile(model(*case, "y = Relu(c)"), "zhenwu-m890", precision="bf16")
    assert images_of(program, 4) in ([4], [8])

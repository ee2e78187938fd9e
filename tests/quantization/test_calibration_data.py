"""Calibration data: files, images, batches, open dimensions, and invalid data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppuc.compiler.entry import compile as compile_program
from ppuc.compiler.inputs import input_specs
from ppuc.compiler.options import Quantization
from ppuc.compiler.quantization.data import Data
from ppuc.compiler.quantization.images import Preprocessing, read_image, read_preprocessing
from ppuc.compiler.quantization.quantize import chosen_plan
from ppuc.ir.errors import InputError, UsageError
from tests.quantization.networks import prepared
from tests.support.small_models import mlp


def bad(change: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": np.ones((4, 20), np.float32), **change}


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ({"z": np.ones((4, 20), np.float32)}, "no input is called 'z'"),
        (bad({"x": np.ones((4, 21), np.float32)}), "input 'x' has the wrong shape"),
        (bad({"x": np.ones((4, 20))}), "input 'x' has the wrong dtype"),
        (bad({"x": np.full((4, 20), np.nan, np.float32)}), "sample 0: input 'x' holds NaN"),
        (bad({"x": np.full((4, 20), np.inf, np.float32)}), "sample 0: input 'x' holds an infinity"),
        (bad({"x": np.zeros((4, 20), np.float32)}), "input 'x' is zero in every sample"),
        (bad({"x": np.ones((0, 20), np.float32)}), "holds no samples"),
    ],
)
def test_calibration_data_that_make_no_sense(stack: dict[str, np.ndarray], message: str) -> None:
    ready = prepared(mlp())
    options = replace(ready.options, quantization=Quantization(Data([stack])))
    with pytest.raises(InputError) as caught:
        chosen_plan(replace(ready, options=options))
    assert message in str(caught.value)


def test_samples_are_cut_to_the_batch_and_the_last_filled_up() -> None:
    data = Data([{"x": np.arange(100, dtype=np.float32).reshape(5, 20)}])
    rows = [s["x"][:, 0].tolist() for s in data.samples(prepared(mlp()).specs)]
    assert rows == [[0, 20], [40, 60], [80, 0]]


def test_folders_of_files(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((2, 20), i, np.float32))
    specs = prepared(mlp()).specs
    assert [s["x"][0, 0] for s in Data(tmp_path).samples(specs)] == [0, 1, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no samples"):
        list(Data(tmp_path / "empty").samples(specs))
    with pytest.raises(InputError, match="no such file or folder"):
        Data(tmp_path / "missing")


def test_data_bind_open_sizes(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32))
    program = compile_program(mlp(), "ppu-tiny", "fp8", calibrate=tmp_path / "data.npz")
    assert program.inputs[0].type.dims == (1, 20)
    assert program.artifact.meta["precision"] == "fp8"


def test_the_same_calibration_gives_the_same_program() -> None:
    stacks = [{"x": np.random.default_rng(3).standard_normal((6, 20)).astype(np.float32)}]
    first, second = (compile_program(mlp(), "ppu-tiny", "int8", calibrate=stacks) for _ in range(2))
    assert first.artifact == second.artifact


def test_images_as_declared(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.dstack([np.full((8, 8), v, np.uint8) for v in (10, 20, 30)])).save(tmp_path / "a.png")
    (tmp_path / "how.toml").write_text(
        'size = [4, 6]\ncolour = "bgr"\nscale = 0.1\nmean = [3, 2, 1]\nstd = [1, 2, 1]\n'
    )
    how = read_preprocessing(tmp_path / "how.toml")
    assert how == Preprocessing((4, 6), colour="bgr", scale=0.1, mean=(3.0, 2.0, 1.0), std=(1.0, 2.0, 1.0))
    array = read_image(tmp_path / "a.png", how)
    assert array.shape == (3, 4, 6)
    assert array[:, 0, 0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = 224", "'size' must be [rows, columns]"),
        ('size = [2, 2]\ncolour = "cmyk"', "'colour' is unknown"),
        ("size = [2, 2]\nstd = [0]", "'std' must be numbers"),
        ("sizes = [2, 2]", "unknown key 'sizes'"),
    ],
)
def test_preprocessing_that_makes_no_sense(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "how.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_preprocessing(tmp_path / "how.toml")
    assert message in str(caught.value)


def test_input_specs_are_the_model_s() -> None:
    assert prepared(mlp()).specs == input_specs(prepared(mlp()).module)

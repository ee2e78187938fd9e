"""The .ppu file: what is saved is what is loaded, and bytes are reproducible."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

from ppuc.ir.errors import ArtifactError, InternalError
from ppuc.ir.program import MemTensor, Program
from ppuc.ir.resource import FileRange, Resource
from ppuc.ir.types import DType, Space, TensorType
from ppuc.targets.artifact import Artifact, load, save
from tests.support.artifact_samples import sample


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.ppu"
    save(sample(), path)
    return path


def test_load_gives_back_what_was_saved(saved: Path) -> None:
    artifact, loaded = sample(), load(saved)
    assert loaded.program == artifact.program
    assert loaded.vectors == artifact.vectors
    assert (loaded.inputs, loaded.outputs) == (artifact.inputs, artifact.outputs)
    assert loaded.meta == artifact.meta
    assert set(loaded.constants) == set(artifact.constants)
    for name in artifact.constants:
        expected, got = artifact.constant(name), loaded.constant(name)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()


def test_weights_are_mapped_not_read(saved: Path) -> None:
    weight = load(saved).constants["w"]
    assert isinstance(weight, Resource)
    assert weight.file is not None
    assert weight.file.path == saved
    with pytest.raises(ValueError, match="read-only"):
        weight.array()[0, 0] = 1


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_constants_of_every_dtype_keep_their_bits(tmp_path: Path, dtype: DType) -> None:
    bits = np.random.default_rng(0).integers(0, 2 if dtype is DType.BOOL else 16, 24 * dtype.bytes, np.uint8)
    array = bits.view(dtype.numpy).reshape(2, 3, 4)
    tensors = (MemTensor("w", dtype, 24, Space.HBM, 0, "const", "w"),)
    artifact = Artifact(Program("p", "t", "0", tensors, (), (), ()), (), {"w": array}, (), (), {})
    save(artifact, tmp_path / "p.ppu")
    got = load(tmp_path / "p.ppu").constant("w")
    assert got.dtype == dtype.numpy
    assert got.shape == (2, 3, 4)
    assert got.tobytes() == array.tobytes()


def test_empty_and_scalar_constants(tmp_path: Path) -> None:
    tensors = tuple(MemTensor(name, DType.F32, n, Space.HBM, 0, "const", name) for name, n in (("none", 0), ("one", 1)))
    constants = {"none": np.empty((0, 4), np.float32), "one": np.array(2.5, np.float32)}
    save(Artifact(Program("p", "t", "0", tensors, (), (), ()), (), constants, (), (), {}), tmp_path / "p.ppu")
    loaded = load(tmp_path / "p.ppu")
    assert loaded.constant("none").shape == (0, 4)
    assert loaded.constant("one").shape == ()
    assert loaded.constant("one") == 2.5


def test_constants_from_a_file_and_of_any_layout(tmp_path: Path) -> None:
    values = np.arange(64 * 256, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(64, 256)
    (tmp_path / "weights.bin").write_bytes(b"head" + values.tobytes())
    place = FileRange(tmp_path / "weights.bin", 4, values.nbytes)
    artifact = sample()
    from_file = Resource(TensorType(DType.BF16, (64, 256)), file=place, name="w")
    transposed = np.asfortranarray(values)
    for weight in (from_file, transposed):
        save(replace(artifact, constants={**artifact.constants, "w": weight}), tmp_path / "p.ppu")
        assert load(tmp_path / "p.ppu").constant("w").tobytes() == values.tobytes()


def test_an_artifact_can_be_saved_again_over_itself(saved: Path) -> None:
    before = saved.read_bytes()
    save(load(saved), saved)
    assert saved.read_bytes() == before


def test_equal_artifacts_give_equal_bytes(tmp_path: Path) -> None:
    artifact = sample()
    shuffled = replace(
        artifact,
        constants=dict(reversed(artifact.constants.items())),
        meta=dict(reversed(artifact.meta.items())),
    )
    save(artifact, tmp_path / "a.ppu")
    save(shuffled, tmp_path / "other.ppu")
    assert (tmp_path / "a.ppu").read_bytes() == (tmp_path / "other.ppu").read_bytes()


def test_other_safetensors_tools_can_read_it(saved: Path) -> None:
    with safetensors.safe_open(saved, "np") as file:
        assert set(file.keys()) == {"code", "descriptors", "const.w", "const.b", "const.t"}
        assert file.metadata()["format"] == "ppu"
        assert file.metadata()["target_hash"] == "0123456789abcdef"
        np.testing.assert_array_equal(file.get_tensor("const.b"), sample().constant("b"))


def test_arrays_are_aligned_in_the_file(saved: Path) -> None:
    loaded = load(saved)
    for value in loaded.constants.values():
        assert isinstance(value, Resource)
        assert value.file is not None
        assert value.file.offset % value.type.dtype.bytes == 0


def test_save_leaves_no_temporary_behind(saved: Path) -> None:
    assert os.listdir(saved.parent) == ["mlp.ppu"]


def test_a_failed_save_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ArtifactError) as caught:
            save(sample(), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == f"{saved}: cannot be written\n  got: File too large"
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["mlp.ppu"]


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.ppu: cannot be written\n  got: No such file or directory"):
        save(sample(), tmp_path / "none" / "m.ppu")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w", np.zeros(3, np.float32), r"constant 'w' of 12 bytes \(f32\[3\]\) for 32768 bytes of the program"),
        ("v", np.zeros(3, np.int8), r"constant 'v' of 3 bytes \(i8\[3\]\) for no tensor of the program"),
    ],
)
def test_constants_must_fit_the_program(tmp_path: Path, name: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        save(replace(sample(), constants={name: value}), tmp_path / "p.ppu")
    assert not list(tmp_path.iterdir())

"""Inputs: generated ones, and files of arrays."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.inputs import InputSpec, checked_inputs, generate, input_ranges, read_npy, read_npz, write_npz
from ppuc.ir.errors import InputError
from ppuc.ir.types import DType, TensorType
from tests.support.small_models import lookup, normal


def test_ids_are_drawn_from_the_table_they_index_and_masks_are_ones() -> None:
    imported = load_model(lookup())
    ranges = input_ranges(imported.graph)
    assert ranges == {"ids": 11}
    ids = generate(InputSpec("ids", TensorType(DType.I64, (1000,)), 11), "random")
    assert (ids.min(), ids.max()) == (0, 10)
    assert generate(InputSpec("attention_mask", TensorType(DType.I64, (3,))), "random").tolist() == [1, 1, 1]


def test_random_inputs_depend_on_seed_and_name_only() -> None:
    spec = InputSpec("x", TensorType(DType.F32, (4,)))
    np.testing.assert_array_equal(generate(spec, "random", 5), generate(spec, "random", 5))
    assert (generate(spec, "random", 5) != generate(spec, "random", 6)).any()
    assert (generate(spec, "random") != generate(InputSpec("z", spec.type), "random")).any()
    assert generate(spec, "ones").tolist() == [1, 1, 1, 1]


SPECS = (InputSpec("image", TensorType(DType.F32, (1, 3))), InputSpec("scale", TensorType(DType.F32, ())))


@pytest.mark.parametrize(
    ("given_arrays", "text"),
    [
        (
            {"imag": np.zeros((1, 3), np.float32), "scale": np.float32(1)},
            "net: no input is called 'imag'\n  expected: image: f32[1, 3], scale: f32[]\n"
            "  hint: did you mean 'image'?\nnet: input 'image' is missing\n  expected: f32[1, 3]",
        ),
        (
            {"image": np.zeros((1, 3)), "scale": np.float32(1)},
            "net: input 'image' has the wrong dtype\n  got: f64[1, 3]\n  expected: f32[1, 3]\n"
            "  hint: convert it with x.astype('float32')",
        ),
        (
            {"image": np.zeros((2, 3), np.float32), "scale": np.float32(1)},
            "net: input 'image' has the wrong shape\n  got: f32[2, 3]\n  expected: f32[1, 3]\n"
            "  hint: shapes are fixed when a model is compiled; compile again with other --dim",
        ),
        (
            {"image": np.zeros((1, 3), "U3"), "scale": np.float32(1)},
            "net: input 'image' has the wrong dtype\n  got: <U3[1, 3]\n  expected: f32[1, 3]\n"
            "  hint: convert it with x.astype('float32')",
        ),
    ],
)
def test_wrong_inputs_are_named(given_arrays: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_inputs(SPECS, given_arrays, "net")
    assert str(caught.value) == text


def test_numpy_files_round_trip_and_damage_is_reported(tmp_path: Path) -> None:
    arrays = {"a": normal(2, 3), "b": np.arange(3)}
    write_npz(tmp_path / "x.npz", arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    for name, array in read_npz(tmp_path / "x.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.npz: cannot be read as numpy data"):
        read_npz(tmp_path / "cut.npz")
    with pytest.raises(InputError, match=r"none\.npy: no such file"):
        read_npy(tmp_path / "none.npy")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"pickled\.npy: cannot be read as numpy data"):
        read_npy(tmp_path / "pickled.npy")
    with pytest.raises(InputError, match=r"x\.npz: is an \.npz of several arrays"):
        read_npy(tmp_path / "x.npz")


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """An .npy of f32 whose header says `shape`, whatever follows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue() + data


@pytest.mark.parametrize(("shape", "size"), [((3,), 64 << 20), ((1 << 40,), 12), ((3,), 8)])
def test_archives_are_not_unpacked_beyond_their_headers(tmp_path: Path, shape: tuple[int, ...], size: int) -> None:
    path = tmp_path / "lies.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(shape, bytes(size)))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"x.npy has {size:,} bytes of data, its shape asks for"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_an_archive_that_says_less_than_it_holds(tmp_path: Path) -> None:
    """The directory of the archive promises 12 bytes of data; 64 MB are unpacked to none."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((3,), bytes(64 << 20)))
    true = len(npy((3,), b"")) + (64 << 20)
    data = path.read_bytes().replace(true.to_bytes(4, "little"), (true - (64 << 20) + 12).to_bytes(4, "little"))
    path.write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(InputError):
        assert read_npz(path)["x"].tolist() == [0, 0, 0]
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", [d for d in DType if d.numpy.isbuiltin == 2], ids=str)
def test_formats_without_a_numpy_name_come_back_exactly(tmp_path: Path, dtype: DType) -> None:
    array = np.array([[1.5, 2], [4, 0.5]]).astype(dtype.numpy)
    write_npz(tmp_path / "x.npz", {"a": array, "b": array[0, 0], "c": array.T})
    spec = {"a": (2, 2), "b": (), "c": (2, 2)}
    specs = [InputSpec(name, TensorType(dtype, shape)) for name, shape in spec.items()]
    back = checked_inputs(specs, read_npz(tmp_path / "x.npz"), "net")
    assert all(a.dtype == dtype.numpy for a in back.values())
    assert [back[n].tobytes() for n in spec] == [array.tobytes(), array[0, 0].tobytes(), array.T.tobytes()]

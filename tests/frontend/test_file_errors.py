"""What the frontend says about files that are damaged, missing or unsafe."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.frontend.source import read_source
from ppuc.compiler.frontend.tensors import read_tensor
from ppuc.ir.errors import ModelError
from tests.frontend.error_texts import RELU, lines, text_of
from tests.support.against_onnxruntime import floats
from tests.support.onnx_text import model_of


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    assert text_of(ModelError, path) == f"{path}: there is no such file"


def test_folder(tmp_path: Path) -> None:
    assert text_of(ModelError, tmp_path) == lines(f"{tmp_path}: this is a folder", "expected: an .onnx file")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    assert text_of(ModelError, path) == f"{path}: the file is empty"


NOT_UTF8 = bytes(model_of(RELU).SerializeToString()).replace(b"Relu", b"R\xff\xffu")


@pytest.mark.parametrize("data", [NOT_UTF8, b"hello world, this is text", b"PK\x03\x04" + bytes(100), b"\x08\x08"])
def test_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert text_of(ModelError, path) == lines(
        f"{path}: this is not an ONNX model", "expected: a protobuf file as written by onnx.save"
    )


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = model_of("g (float[2] x) => (float[2] y) { y = Add(x, w) }", {"w": floats(2000)})
    data = model.SerializeToString()
    path.write_bytes(data[:5000])
    assert text_of(ModelError, path) == lines(
        f"{path}: the file ends early", "got: 5000 bytes", "hint: copy or download it again"
    )


def external(path: Path, location: str, length: int = 16, offset: int = 0, **more: str) -> None:
    """Write a model whose weight `w: f32[4]` is said to lie at `location`; `more` are further entries."""
    model = model_of("g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length)), *more.items()):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())


def test_missing_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    external(path, "w.bin")
    assert text_of(ModelError, path) == lines(
        f"{path}: tensor 'w': external data file 'w.bin' is missing",
        f"expected: it beside {path}",
        "hint: copy it together with the .onnx file",
    )


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hosts", "sub/../w.bin", "link.bin", ""])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder):
        (place / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = folder / "m.onnx"
    external(path, location)
    assert text_of(ModelError, path) == lines(
        f"{path}: tensor 'w': external data must lie inside the model's folder",
        f"got: '{location}'",
        f"expected: a path below {folder}",
    )


def test_external_data_too_short(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    external(path, "w.bin", offset=8)
    (tmp_path / "w.bin").write_bytes(bytes(20))
    assert text_of(ModelError, path) == lines(
        f"{path}: tensor 'w': external data file 'w.bin' is too short",
        "got: 20 bytes",
        "expected: at least 24",
        "hint: copy or download the file that belongs to this model again",
    )


def test_external_data_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    external(path, "w.bin", length=12)
    (tmp_path / "w.bin").write_bytes(bytes(20))
    assert text_of(ModelError, path) == lines(
        f"{path}: tensor 'w': the data do not fit the shape", "got: 12 bytes", "expected: 16 bytes for f32[4]"
    )


def test_external_data_with_a_checksum(tmp_path: Path) -> None:
    """SHA1 of the whole file (onnx.proto, external_data)."""
    path, data = tmp_path / "m.onnx", np.arange(6, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(data.tobytes())
    right = hashlib.sha1(data.tobytes()).hexdigest()
    external(path, "w.bin", offset=8, checksum=right.upper())
    source = read_source(path)
    assert read_tensor(source.model.graph.initializer[0], source).array().tolist() == [2, 3, 4, 5]
    external(path, "w.bin", checksum="0" * 40)
    assert text_of(ModelError, path) == lines(
        f"{path}: tensor 'w': external data file 'w.bin' is damaged, or of another model",
        f"got: SHA1 {right}",
        f"expected: SHA1 {'0' * 40}",
        "hint: copy or download the file that belongs to this model again",
    )


@pytest.mark.parametrize(("elements", "data"), [(TensorProto.INT4, b"\x21\x0f"), (TensorProto.FLOAT4E2M1, b"\x42\x01")])
def test_external_data_below_a_byte(tmp_path: Path, elements: int, data: bytes) -> None:
    tensor = TensorProto(name="w", data_type=elements, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    tensor.external_data.add(key="length", value="2")
    onnx.save(model_of(RELU), tmp_path / "m.onnx")
    source = read_source(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(data)
    here = TensorProto(name="w", data_type=elements, dims=[3], raw_data=data)
    got, want = (read_tensor(t, source).array().astype(np.float32) for t in (tensor, here))
    np.testing.assert_array_equal(got, want)
    assert want[0] == (1 if elements == TensorProto.INT4 else 1.0)
    tensor.external_data[1].value = "3"
    with pytest.raises(ModelError, match=r"the data do not fit the shape[\s\S]*3 bytes[\s\S]*2 bytes"):
        read_tensor(tensor, source)


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    external(path, "w.bin")
    assert text_of(ModelError, onnx.load(path, load_external_data=False)) == lines(
        "g: tensor 'w': its data are in another file, but the model was given in memory",
        "got: w.bin",
        "hint: pass the path of the model, or load it with onnx.load(path, load_external_data=True)",
    )


@pytest.mark.parametrize("size", [1, 3000])
def test_raw_data_of_the_wrong_size(tmp_path: Path, size: int) -> None:
    model = model_of("g (float[1] x) => (y) { y = Add(x, w) }", {"w": floats(size)})
    model.graph.initializer[0].dims[0] = size + 1
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    expected = [f"got: {4 * size} bytes", f"expected: {4 * size + 4} bytes for f32[{size + 1}]"]
    assert text_of(ModelError, model) == lines("g: tensor 'w': the data do not fit the shape", *expected)
    assert text_of(ModelError, path) == lines(f"{path}: tensor 'w': the data do not fit the shape", *expected)


# Files made to do harm.


def test_external_data_with_hard_links(tmp_path: Path) -> None:
    """A hard link is a way out of the folder that a path does not show."""
    (tmp_path / "elsewhere").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    os.link(tmp_path / "elsewhere", tmp_path / "model" / "w.bin")
    external(tmp_path / "model" / "m.onnx", "w.bin")
    text = text_of(ModelError, tmp_path / "model" / "m.onnx")
    assert "external data must lie inside the model's folder" in text
    assert "'w.bin', which has other names elsewhere (hard links)" in text
    (tmp_path / "elsewhere").unlink()
    load_model(tmp_path / "model" / "m.onnx")

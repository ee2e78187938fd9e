"""Invalid arguments and files from new users: an error message, exit code 2, and no partial output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.cli import cli
from ppuc.ir.errors import Diagnostic, printable
from ppuc.ir.graph import Graph
from ppuc.ir.rewrite import Builder
from ppuc.ir.text import parse_graph, print_graph
from ppuc.ir.types import DType
from tests.support.small_models import mlp

TINY = ("--target", "ppu-tiny")


def ppuc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def error_of(*arguments: object) -> str:
    result = ppuc(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    return path


def small(nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], path: Path) -> Path:
    """A model of f32 inputs whose output is `y`."""
    declared = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", declared, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# Where the result goes.


@pytest.mark.parametrize(
    ("command", "option"),
    [("compile", "-o"), ("run", "--output"), ("profile", "--trace"), ("simplify", "-o"), ("opt", "-o")],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_input_is_read(
    command: str, option: str, tmp_path: Path
) -> None:
    unread = tmp_path / "there is no such model"
    lost = tmp_path / "no" / "such" / "place"
    assert error_of(command, unread, option, lost) == (
        f"error: {lost}: cannot be written\n  got: there is no folder {lost.parent}\n  hint: create it first\n"
    )
    assert error_of(command, unread, option, tmp_path) == (
        f"error: {tmp_path}: cannot be written\n  got: a folder\n  expected: the name of a file\n"
    )
    assert error_of(command, unread, option, "").endswith(": the name of the file to write is empty\n")


@pytest.mark.parametrize(
    ("command", "option"), [("compile", "-o"), ("run", "--output"), ("profile", "--trace"), ("simplify", "-o")]
)
def test_a_model_is_never_written_over(command: str, option: str, model: Path) -> None:
    before = model.read_bytes()
    (model.parent / "link.onnx").symlink_to(model)
    for name in ("mlp.onnx", "link.onnx"):
        assert "would overwrite the input file" in error_of(command, model, option, model.parent / name)
    assert model.read_bytes() == before


def test_a_failed_import_leaves_dumps_as_they_were(model: Path, tmp_path: Path) -> None:
    dump, bad = tmp_path / "dump", tmp_path / "bad.onnx"
    bad.write_bytes(model.read_bytes()[:-100])
    error_of("compile", bad, "-o", tmp_path / "a.ppu", "--dump", dump)
    assert not dump.exists()
    assert ppuc("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "a.ppu", "--dump", dump).exit_code == 0
    before = {p.name: p.read_bytes() for p in dump.glob("*.*")}
    error_of("compile", bad, *TINY, "-o", tmp_path / "b.ppu", "--dump", dump)
    assert {p.name: p.read_bytes() for p in dump.glob("*.*")} == before
    assert not (tmp_path / "b.ppu").exists()


# Names that a terminal would obey.


def test_control_characters_are_shown_not_obeyed(tmp_path: Path) -> None:
    name = "x\x1b[2J\u202e"
    path = small([helper.make_node("Relu", [name], ["y"])], {name: [4]}, tmp_path / "m.onnx")
    for command in (("compile", path, "-o", tmp_path / "a.ppu"), ("check", path), ("inspect", path)):
        shown = ppuc(*command).output
        assert "\x1b" not in shown
        assert r"x\x1b[2J\u202e" in shown
    assert printable("Größe\tin\nlines") == "Größe\\tin\nlines"
    assert str(Diagnostic("m\x07", "what\r")) == r"m\x07: what\r"


# Arrays.


@pytest.mark.parametrize(
    ("content", "got"), [(b"hello, world", "12 bytes that begin with b'hello,'"), (b"", "0 bytes that begin with b''")]
)
def test_files_that_are_no_arrays(content: bytes, got: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    assert error_of("run", model, "--inputs", tmp_path / "x.npz") == (
        f"error: {tmp_path}/x.npz: cannot be read as numpy data\n  got: {got}\n"
        "  expected: .npy or .npz without pickles\n"
    )


def test_sizes_that_contradict_name_the_model(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", q=np.zeros((2, 20), np.float32))
    assert error_of("run", model, "--inputs", tmp_path / "x.npz").startswith(
        f"error: {model}: the model has no input 'q'\n"
    )


# Usage errors are JSON too.


def test_usage_errors_as_json(model: Path) -> None:
    result = ppuc("compile", model, "--precision", "fp7", "--json")
    assert result.exit_code == 2
    record = json.loads(result.stdout)
    assert record["error"] == "UsageError"
    assert "'fp7' is not one of" in record["diagnostics"][0]["what"]


# Nothing to compute.

EMPTY: dict[str, Callable[[Path], Path]] = {
    "output": lambda p: small([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 4]}, p),
    "reduction": lambda p: small([helper.make_node("ReduceSum", ["x"], ["y"])], {"x": ["N", 4]}, p),
    "product": lambda p: small([helper.make_node("MatMul", ["a", "b"], ["y"])], {"a": [3, "N"], "b": ["N", 4]}, p),
    "cache": lambda p: small(
        [helper.make_node("Concat", ["past", "k"], ["c"], axis=1), helper.make_node("Exp", ["c"], ["y"])],
        {"past": [2, "N", 4], "k": [2, 3, 4]},
        p,
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_axes_of_size_zero(name: str, tmp_path: Path) -> None:
    result = ppuc("verify", EMPTY[name](tmp_path / "m.onnx"), "--dim", "N=0", *TINY)
    assert result.exit_code == 0, result.output


# External data.


@pytest.mark.parametrize(
    ("entries", "got"), [({"offset": "-5"}, "offset -5"), ({"offset": "x", "length": "8"}, "offset x, length 8")]
)
def test_offsets_that_are_no_offsets(entries: dict[str, str], got: str, tmp_path: Path) -> None:
    graph = mlp().graph
    tensor = graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    text = error_of("compile", tmp_path / "m.onnx", "-o", tmp_path / "a.ppu")
    assert f"offset and length of external data must be whole numbers\n  got: {got}\n" in text


# Targets and texts.


def test_numbers_beyond_any_machine() -> None:
    text = error_of("targets", "ppu-tiny", "--set", "load.in_flight=99999999999999999999")
    assert text.endswith("is too large\n  got: 99999999999999999999\n  expected: at most 1e+15\n")


@pytest.mark.parametrize("dtype", [DType.F8E4M3, DType.F8E5M2, DType.F4E2M1, DType.F16, DType.BF16, DType.F32])
def test_negative_zero_survives_as_text(dtype: DType) -> None:
    builder = Builder()
    value = builder.const(np.asarray(-0.0).astype(dtype.numpy))
    graph = Graph("g", (), (value,), tuple(builder.ops))
    assert parse_graph(print_graph(graph), {}, "g.ppir") == graph


def test_an_edited_text_that_fails_further_down(model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    assert ppuc("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "a.ppu", "--dump", dump).exit_code == 0
    (allocated,) = dump.glob("*-allocate.ppir")
    text = allocated.read_text()
    (store,) = [line for line in text.splitlines(keepends=True) if line.lstrip().startswith("store ")][-1:]
    allocated.write_text(text.replace(store, ""))
    said = error_of("opt", allocated, "--to-end", "-o", tmp_path / "b.ppu")
    assert f"{allocated}: leads to a program that breaks the rules of the IR\n  got: P6 " in said
    assert not (tmp_path / "b.ppu").exists()

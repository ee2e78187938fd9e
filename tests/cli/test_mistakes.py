"""Mistakes on the command line: the text of every error."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc as package
from ppuc.compiler.cli import INTERNAL_ERROR, cli
from tests.cli.calling import TINY, error_of, ppuc
from tests.support.onnx_text import model_of
from tests.support.small_models import lookup, mlp


def test_missing_model_file() -> None:
    assert error_of("compile", "none.onnx") == "error: none.onnx: there is no such file\n"


def test_unbound_dimension_says_what_to_type(model: Path) -> None:
    assert error_of("compile", model) == (
        f"error: {model}: dimensions of the inputs are not fixed\n"
        "  got: x: f32[N, 20]\n  expected: a size for each\n  hint: add --dim N=...\n"
    )


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("N", "error: --dim: is not of the form NAME=VALUE\n  got: N\n"),
        ("N=two", "error: --dim: the size of 'N' is not a whole number\n  got: two\n  hint: e.g. --dim N=1\n"),
        ("M=2", "error: MODEL: the model has no open dimension 'M'\n  expected: one of N\n"),
    ],
)
def test_wrong_dimensions(model: Path, option: str, text: str) -> None:
    assert error_of("compile", model, "--dim", option) == text.replace("MODEL", str(model))


def test_unknown_target_and_key(model: Path) -> None:
    text = error_of("compile", model, "--dim", "N=1", "--target", "zhenwu-m89")
    assert text.startswith("error: target 'zhenwu-m89': no target has this name\n")
    assert "zhenwu-m890" in text
    assert error_of("targets", "ppu-tiny", "--set", "hbm.gb=1").startswith("error: ")
    assert error_of("targets", "ppu-tiny", "--set", "hbm.gbs=fast").startswith("error: ")


def test_unknown_precision_and_command(model: Path) -> None:
    assert "'fp7' is not one of 'model', 'fp32', 'bf16', 'fp16'" in error_of("compile", model, "--precision", "fp7")
    assert "No such command 'compiel'" in error_of("compiel", model)


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x07\x12\x02"])
def test_damaged_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for command in ("compile", "run", "verify", "profile", "check", "inspect"):
        assert error_of(command, path).startswith(f"error: {path}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.onnx"]


def test_errors_as_json() -> None:
    result = ppuc("compile", "none.onnx", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "error": "ModelError",
        "diagnostics": [
            {
                "where": "none.onnx",
                "what": "there is no such file",
                "got": None,
                "expected": None,
                "hint": None,
                "entities": [],
            }
        ],
    }
    assert result.stderr == "error: none.onnx: there is no such file\n"


def test_internal_errors_show_a_traceback_and_what_to_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    import ppuc.targets.description as description

    def broken() -> list[str]:
        raise RuntimeError("boom")

    monkeypatch.setattr(description, "builtin_targets", broken)
    result = ppuc("targets")
    assert result.exit_code == INTERNAL_ERROR
    assert "RuntimeError: boom" in result.stderr
    assert "This is a fault of ppuc" in result.stderr
    assert result.stdout == ""


def test_files_of_unknown_kind() -> None:
    assert error_of("inspect", "net.pdf") == (
        "error: net.pdf: unsupported file extension\n  expected: .onnx, .ppir, .ppu\n"
    )


def test_wrong_inputs(program: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", y=np.ones((2, 20), np.float32))
    assert error_of("run", program, "--inputs", tmp_path / "in.npz") == (
        f"error: {program}: no input is called 'y'\n  expected: x: f32[2, 20]\n"
        "  hint: an initializer of the model is a constant unless its value is given when compiling\n"
        f"error: {program}: input 'x' is missing\n  expected: f32[2, 20]\n"
        "  hint: --input NAME=random draws random numbers for one\n"
    )
    np.save(tmp_path / "x.npy", np.ones((2, 20)))
    assert error_of("run", program, "--input", f"x={tmp_path / 'x.npy'}") == (
        f"error: {program}: input 'x' has the wrong dtype\n  got: f64[2, 20]\n  expected: f32[2, 20]\n"
        "  hint: convert it with x.astype('float32')\n"
    )
    assert error_of("run", program, "--input", "z=random").startswith(f"error: {program}: no input is called 'z'\n")
    assert error_of("run", program, "--input", "x=none.npy") == "error: none.npy: no such file\n"


@pytest.mark.parametrize("command", ["run", "profile"])
@pytest.mark.parametrize(
    "option",
    [
        ("--alias", "a=b"),
        ("--tune", "2"),
        ("--pipeline", "none"),
        ("--disable-pass", "fold"),
        ("--calibrate", "data.npz"),
        ("--policy", "p.toml"),
        ("--no-repair",),
        ("--no-host",),
    ],
)
def test_options_that_come_too_late_are_refused(program: Path, command: str, option: tuple[str, ...]) -> None:
    assert error_of(command, program, *option) == (
        f"error: {option[0]}: has no effect on a compiled program\n  got: {program}\n  hint: give the .onnx file\n"
    )


def test_options_of_compiling_do_not_fit_a_program(program: Path) -> None:
    assert error_of("run", program, "--dim", "N=1") == (
        f"error: --dim: has no effect on a compiled program\n  got: {program}\n  hint: give the .onnx file\n"
    )
    assert error_of("verify", program).startswith(f"error: {program}: is a compiled program\n")


def test_opt_mistakes(model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "steps"
    assert ppuc("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "a.ppu", "--dump", dump).exit_code == 0
    first = dump / "00-import.ppir"
    assert error_of("opt", first, "-p", "fould").startswith("error: -p: there is no pass 'fould'\n")
    assert "hint: did you mean 'fold'?" in error_of("opt", first, "-p", "fould")
    assert error_of("opt", first, "-p", "fold{speed=3}").startswith("error: -p: pass 'fold' has no option 'speed'\n")
    assert error_of("opt", first, "-p", "fold", "--to-end") == "error: --to-end: cannot be combined with -p\n"
    assert error_of("opt", first, "-o", "x.txt").startswith("error: -o: unsupported output extension")
    assert error_of("opt", first, "-o", tmp_path / "x.ppu").startswith("error: module: holds no program yet")
    assert error_of("opt", first, "--set", "hbm.gbs=900", "-p", "fold").startswith(
        f"error: {first}: was made for another target\n"
    )
    first.write_text(first.read_text().replace("matmul(", "matmull(", 1))
    text = error_of("opt", first, "-p", "fold")
    assert "matmull" in text
    assert "^" in text


def test_mistakes_about_pipelines(model: Path, program: Path, tmp_path: Path) -> None:
    given = ("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "a.ppu", "--dump", tmp_path / "dump")
    assert error_of(*given, "--pipeline", "fast").startswith("error: --pipeline: there is no pipeline 'fast'\n")
    assert error_of(*given, "--disable-pass", "tile") == (
        "error: --disable-pass tile: pass 'tile' is required: it builds the kernels\n"
    )
    assert ppuc(*given).exit_code == 0
    (late,) = (tmp_path / "dump").glob("*-allocate.ppir")
    assert error_of("opt", late, "--pipeline", "none") == "error: --pipeline: has no effect without --to-end\n"
    text = error_of("opt", late, "--to-end", "--disable-pass", "fold")
    assert text.startswith(f"error: {late}: the recorded passes are not a prefix of the pipeline")


def test_damaged_programs(program: Path, tmp_path: Path) -> None:
    whole = program.read_bytes()
    bad = tmp_path / "bad.ppu"
    for content in (b"", whole[:100], whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        bad.write_bytes(content)
        for command in ("run", "profile", "inspect", "disasm"):
            assert error_of(command, bad).startswith(f"error: {bad}: ")


def test_a_precision_that_is_refused_has_no_note(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    result = CliRunner().invoke(cli, ["compile", str(path), "--dim", "N=2", "-p", "mixed"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --precision mixed: needs a policy")


@pytest.mark.parametrize("command", [("run",), ("profile", "--no-interval")])
def test_some_inputs_without_the_others_are_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    """None of them is drawn at random in silence, whether what is given was fixed or not."""
    text = "g (float[4, 6] x, float[4, 6] z, int64[3] n) => (float[A, B, C] y) { s = Add(x, z) y = Expand(s, n) }"
    (tmp_path / "m.onnx").write_bytes(model_of(text).SerializeToString())
    ones = np.ones((4, 6), np.float32)
    given = {"n": np.array([2, 4, 6])}
    for name, arrays in {"fixed": given, "one": {"x": ones}, "both": {"x": ones, **given}}.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    program = tmp_path / "m.ppu"
    made = ppuc("compile", tmp_path / "m.onnx", *TINY, "--inputs", tmp_path / "fixed.npz", "-o", program)
    assert made.exit_code == 0

    def missing(*names: str) -> str:
        hint = "hint: --input NAME=random draws random numbers for one"
        return "".join(f"error: {program}: input '{n}' is missing\n  expected: f32[4, 6]\n  {hint}\n" for n in names)

    assert error_of(*command, program, "--inputs", tmp_path / "fixed.npz") == missing("x", "z")
    assert error_of(*command, program, "--inputs", tmp_path / "one.npz") == missing("z")
    assert error_of(*command, program, "--inputs", tmp_path / "both.npz") == missing("z")
    assert error_of(*command, program, "--input", "z=ones") == missing("x")
    assert ppuc(*command, program).exit_code == 0
    assert ppuc(*command, program, "--inputs", tmp_path / "both.npz", "--input", "z=random").exit_code == 0


def test_a_mistyped_op(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[2].op_type = "Rellu"
    path = tmp_path / "typo.onnx"
    onnx.save(proto, path)
    assert "  hint: did you mean 'Relu'? neither the PPU" in error_of("compile", path, "--dim", "N=2")
    assert "did you mean 'Relu'?" in ppuc("check", path).stdout
    proto.graph.node[2].op_type = "Quux"
    onnx.save(proto, path)
    assert "did you mean" not in error_of("compile", path, "--dim", "N=2")


def test_check_does_without_a_weight_file_and_compile_does_not(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "apart.onnx"
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="apart.bin", size_threshold=0)
    whole = ppuc("check", path, "--dim", "N=2")
    (tmp_path / "apart.bin").unlink()
    result = ppuc("check", path, "--dim", "N=2")
    assert (result.exit_code, result.stdout) == (0, whole.stdout)
    assert result.stderr == "note: apart.bin is missing: checked with zeros in place of its weights\n"
    assert "external data file 'apart.bin' is missing" in error_of("compile", path, "--dim", "N=2")


def test_outputs_without_elements_are_told(model: Path) -> None:
    result = ppuc("verify", model, "--dim", "N=0", *TINY)
    assert result.exit_code == 0
    assert "note: y has no elements: nothing of it is compared\n" in result.stderr


def test_overflow_is_no_warning(tmp_path: Path) -> None:
    weights = {"w": np.full((16, 16), np.inf, np.float32)}
    onnx.save(model_of("m (float[8, 16] x) => (float[8, 16] y) { y = MatMul(x, w) }", weights), tmp_path / "m.onnx")
    code = "from ppuc.compiler.cli import main; main()"
    call = [sys.executable, "-c", code, "verify", str(tmp_path / "m.onnx"), "-p", "int8", *TINY]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Warning" not in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package.verify(package.compile(tmp_path / "m.onnx", "ppu-tiny", "int8"))


@pytest.mark.parametrize("dims", [{"N": 1.0}, {"N": [1.0]}, {"N": "2"}, {"N": None}, {"N": True}, {"N": []}, [2]])
def test_sizes_in_python_that_are_no_whole_numbers(model: Path, dims: Any) -> None:
    with pytest.raises(package.PpucError, match="expected: a whole number, or several, by name, as in"):
        package.compile(model, "ppu-tiny", dims=dims)


def test_sizes_in_python_may_be_of_numpy(model: Path) -> None:
    assert package.compile(model, "ppu-tiny", dims={"N": np.int64(2)}).inputs[0].type.dims == (2, 20)


def test_lists_of_numbers_are_inputs(model: Path) -> None:
    program = package.compile(model, "ppu-tiny", dims={"N": 2})
    x = program.random_inputs()["x"]
    listed = program.run({"x": x.tolist()}).outputs["y"]
    np.testing.assert_array_equal(listed, program.run({"x": x}).outputs["y"])
    assert package.verify(program, {"x": x.tolist()}).ok
    several = package.compile(model, "ppu-tiny", dims={"N": (1, 2)})
    np.testing.assert_array_equal(several.run({"x": x.tolist()}).outputs["y"], listed)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([1], "inputs are not given by name\n  got: list\n  expected: a dict from names to arrays: x"),
        ({"x": [[1.0], [1.0, 2.0]]}, "input 'x' is not an array"),
        ({"x": [["a"]]}, "input 'x' is not an array\n  got: its elements are <U1"),
        ({"x": [[1.0]]}, "input 'x' has the wrong shape"),
        ({"x": 1.0}, "input 'x' has the wrong shape"),
    ],
)
def test_wrong_inputs_in_python(model: Path, inputs: Any, text: str) -> None:
    program = package.compile(model, "ppu-tiny", dims={"N": 2})
    for call in (program.run, lambda given: package.verify(program, given)):
        with pytest.raises(package.PpucError) as caught:
            call(inputs)
        assert text in str(caught.value)


def test_floats_are_no_integers(tmp_path: Path) -> None:
    onnx.save(lookup(), tmp_path / "lookup.onnx")
    program = package.compile(tmp_path / "lookup.onnx", "ppu-tiny")
    assert program.run({"ids": [1, 2, 3], "attention_mask": [1, 0, 1]}).outputs["y"].shape == (3, 4)
    with pytest.raises(package.PpucError, match="got: its elements are float64"):
        program.run({"ids": [1.5, 2, 3], "attention_mask": [1, 0, 1]})
    with pytest.raises(package.PpucError, match="is not an array"):
        program.run({"ids": [2**70, 2, 3], "attention_mask": [1, 0, 1]})

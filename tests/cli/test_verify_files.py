"""ppuc verify on programs, dumped steps and files of reference outputs, and its result in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.cli.calling import TINY, error_of, ppuc

SIZE = ("--dim", "N=2")


def test_a_program_and_every_step_are_verified_with_their_model(model: Path, program: Path, tmp_path: Path) -> None:
    assert ppuc("verify", program, "--model", model).exit_code == 0
    dump = tmp_path / "steps"
    assert ppuc("compile", model, *SIZE, *TINY, "-o", tmp_path / "a.ppu", "--dump", dump).exit_code == 0
    for step in sorted(dump.glob("*.ppir")):
        result = ppuc("verify", step, "--model", model)
        assert result.exit_code == 0, result.stderr
        assert "agrees with ONNX Runtime on ppu-tiny" in result.stdout


def test_a_program_that_was_changed_is_wrong(model: Path, program: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "a.s", tmp_path / "other.ppu"
    text.write_text(ppuc("disasm", program).stdout.replace("relu(", "neg("))
    assert ppuc("asm", text, "--like", program, "-o", other).exit_code == 0
    result = ppuc("verify", other, "--model", model)
    assert result.exit_code == 1
    assert "DISAGREES with ONNX Runtime" in result.stdout


def test_reference_outputs_are_saved_and_compared_with(model: Path, program: Path, tmp_path: Path) -> None:
    kept, wrong = tmp_path / "kept.npz", tmp_path / "wrong.npz"
    assert ppuc("verify", model, *SIZE, *TINY, "--save-reference", kept, "--seed", "3").exit_code == 0
    arrays = dict(np.load(kept))
    assert set(arrays) == {"x", "y"}
    for call in ((model, *SIZE, *TINY), (program, "--model", model)):
        result = ppuc("verify", *call, "--reference", kept)
        assert result.exit_code == 0, result.stderr
        assert kept.name in result.stdout
        assert "ONNX Runtime" not in result.stdout
        assert "random" not in result.stderr
    np.savez(wrong, x=arrays["x"], y=arrays["y"] + 1)
    assert ppuc("verify", program, "--model", model, "--reference", wrong).exit_code == 1


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((2, 20), np.float32)}, "holds no output of the model\n  expected: y\n"),
        ({"z": np.zeros(1)}, "'z' is not an input or output of the model\n  expected: y\n"),
        (
            {"y": np.zeros((3, 7), np.float32)},
            "output 'y' has the wrong type\n  got: float32[3, 7]\n  expected: float32",
        ),
        ({"y": np.zeros((2, 7), np.int32)}, "output 'y' has the wrong type\n  got: int32[2, 7]\n  expected: float32"),
    ],
)
def test_reference_outputs_that_do_not_fit(
    model: Path, tmp_path: Path, arrays: dict[str, np.ndarray], text: str
) -> None:
    np.savez(tmp_path / "r.npz", **arrays)  # type: ignore[arg-type]
    assert text in error_of("verify", model, *SIZE, *TINY, "--reference", tmp_path / "r.npz")


def test_what_does_not_go_together(model: Path, program: Path, tmp_path: Path) -> None:
    assert "is a compiled program" in error_of("verify", program)
    assert "--model: goes with a program" in error_of("verify", model, "--model", model)
    assert "--layers: has no effect" in error_of("verify", program, "--model", model, "--layers")
    assert "cannot be combined with --layers" in error_of("verify", model, "--reference", "r.npz", "--layers")
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes() + b"\x32\x00")  # one more field
    assert f"{program}: was not compiled from {other}\n" in error_of("verify", program, "--model", other)
    narrow = tmp_path / "narrow.ppu"
    assert ppuc("compile", model, *SIZE, *TINY, "-p", "int8", "-o", narrow).exit_code == 0
    assert "has quantized layers" in error_of("verify", narrow, "--model", model)


@pytest.mark.parametrize("offset", [0, 1])
def test_formats_hold_the_same_verdict(model: Path, tmp_path: Path, offset: int) -> None:
    kept = tmp_path / "kept.npz"
    assert ppuc("verify", model, *SIZE, *TINY, "--save-reference", kept).exit_code == 0
    arrays = dict(np.load(kept))
    np.savez(kept, x=arrays["x"], y=arrays["y"] + offset)

    def shown(form: str) -> str:
        result = ppuc("verify", model, *SIZE, *TINY, "--reference", kept, "--format", form)
        assert result.exit_code == offset
        return result.stdout

    assert json.loads(shown("json"))["ok"] is not bool(offset)
    (row,) = csv.DictReader(io.StringIO(shown("csv")))
    assert (row["name"], row["verdict"]) == ("y", ("ok", "wrong")[offset])
    assert shown("markdown").splitlines()[2].startswith("| output | y | f32[2, 7] | " + row["verdict"])
    suite = ElementTree.fromstring(shown("junit"))
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("ppuc verify", "2", str(offset))
    assert shown("github").startswith(("::notice title=agrees y::", "::error title=agrees y::")[offset])
    assert len(json.loads(shown("sarif"))["runs"][0]["results"]) == offset


def test_formats_of_a_profile(program: Path) -> None:
    def shown(form: str) -> str:
        result = ppuc("profile", program, "--timing-only", "--no-interval", "--format", form, "--top", "1")
        assert result.exit_code == 0
        return result.stdout

    kernels = list(csv.DictReader(io.StringIO(shown("csv"))))
    recorded = json.loads(shown("json"))
    assert [k["kernel"] for k in kernels] == [k["kernel"] for k in recorded["kernels"]]
    assert len(shown("markdown").splitlines()) == 3
    assert ElementTree.fromstring(shown("junit")).get("failures") == "0"
    assert shown("github").startswith("::notice title=no-hazard ")
    assert json.loads(shown("sarif"))["runs"][0]["results"] == []


def test_a_mistake_is_json_with_every_spelling(model: Path) -> None:
    for spelling in (("--json",), ("--format", "json"), ("--format=json",)):
        result = ppuc("verify", model, *spelling)
        assert result.exit_code == 2
        assert json.loads(result.stdout)["error"]

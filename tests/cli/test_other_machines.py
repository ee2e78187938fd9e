"""A compiled program on other machines: what fits runs there, what needs another program is refused in a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.calling import TINY, error_of, json_of, ppuc


def test_set_changes_the_machine_that_the_program_was_compiled_for(program: Path) -> None:
    record = json_of("profile", program, "--timing-only", "--no-interval", "--set", "hbm.gbs=900")
    assert record["target"] == "ppu-tiny"


@pytest.mark.parametrize("command", ["run", "profile"])
@pytest.mark.parametrize("option", [("--set", "l2.bytes=8"), ("--set", "acc.bytes=64"), ("--set", "l1.bytes=64")])
def test_a_machine_that_needs_another_program(program: Path, command: str, option: tuple[str, str]) -> None:
    error = error_of(command, program, *option)
    assert error.startswith(f"error: {program}: was compiled for ppu-tiny and exceeds ")
    assert error.count("error: ") == 1
    assert f"({option[1].partition('=')[0]} of ppu-tiny)" in error
    assert error.endswith("hint: give the .onnx file, which is compiled for the machine\n")


def test_a_program_for_many_units_on_a_machine_of_few(model: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.ppu"
    assert ppuc("compile", model, "--dim", "N=512", "-o", wide).exit_code == 0
    error = error_of("profile", wide, "--timing-only", *TINY)
    assert "was compiled for zhenwu-m890" in error
    assert "(cu of ppu-tiny)" in error
    assert error.count("error: ") == 1


@pytest.mark.parametrize("what", ["l2.bytes=8", "cu=1"])
def test_a_sweep_names_the_machine_that_does_not_work_in_a_few_lines(program: Path, what: str) -> None:
    error = error_of("targets", "ppu-tiny", "--sweep", what, "--model", program)
    assert error.startswith(f"error: --sweep {what}: ")
    assert error.count(what) == 1
    assert len(error.splitlines()) <= 4

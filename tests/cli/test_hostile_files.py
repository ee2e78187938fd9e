"""Malicious files in every command that reads models: an error or a result, within limits, and no files written."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from tests.cli.hostile_files import HOSTILE

SECONDS, BYTES = 5.0, 2 << 30
FINE = (
    *("deep_type", "huge_stride", "ifs_in_ifs", "long_name", "option_as_dim"),
    *("nul_in_names", "names_of_300_characters", "names_like_arguments", "names_like_paths", "names_of_blanks"),
)
"""Files that are odd, but mean something."""
LATE = ("huge_kernel",)
"""Files whose fault the host finds when it computes."""
ENDLESS = ("endless_loop", "loop_of_many_trips", "loops_in_loops")
"""Files whose only fault is how long they run: the time limit of the host ends them."""


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_commands_survive(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    HOSTILE[name](folder)
    np.savez(tmp_path / "x.npz", x=np.ones((4, 6), np.float32))
    model = str(folder / "m.onnx")
    commands = (
        ("check", model),
        ("compile", model, "-o", str(folder / "a.ppu")),
        ("run", model),
        ("run", model, "--output", str(folder / "o.npz")),
        ("verify", model),
        ("profile", model, "--no-interval", "--trace", str(folder / "t.json")),
        ("inspect", model),
        ("quantize", model, "--calibrate", str(tmp_path / "x.npz"), "-o", str(folder / "a.toml")),
    )
    for command in commands[:2] if name in ENDLESS else commands:
        before = sorted(folder.rglob("*"))
        started, held = time.process_time(), peak_bytes()
        machine = () if command[0] == "inspect" else ("-t", "ppu-tiny")
        result = CliRunner().invoke(cli, [*command, *machine])
        took = time.process_time() - started
        assert result.exit_code in (0, 1, 2), (command[0], result.output)
        assert "Traceback" not in result.output, result.output
        assert not {"\x1b", "\x07"} & set(result.output), command[0]
        assert took < SECONDS, (command[0], took)
        assert peak_bytes() - held < BYTES, command[0]
        if result.exit_code:
            assert sorted(folder.rglob("*")) == before, command[0]
        if command[0] == "compile":
            assert name in (*FINE, *LATE, *ENDLESS) or result.exit_code == 2, result.output
            Path(command[-1]).unlink(missing_ok=True)
        if command[0] == "run" and name in LATE:
            assert result.exit_code == 2, result.output


@pytest.mark.parametrize("name", ["large_constant_of_shape", "large_f64_on_the_host"])
def test_values_beyond_the_computers_memory(name: str, tmp_path: Path) -> None:
    """On a machine of 100 GB the program fits; here its values may not."""
    HOSTILE[name](tmp_path)
    held = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, held[1]))
    try:
        result = CliRunner().invoke(cli, ["run", str(tmp_path / "m.onnx"), "-t", "zhenwu-m890"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, held)
    assert result.exit_code == 2, result.output
    assert "memory" in result.stderr or "the host" in result.stderr

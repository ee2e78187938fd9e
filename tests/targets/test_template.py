"""`ppuc targets --new`: the file that it writes describes the same machine, with any of its comments enabled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ppuc.compiler.cli import cli
from ppuc.targets.description import known_targets, load_target
from ppuc.targets.template import template


def ppuc(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["targets", *arguments])


@pytest.mark.parametrize("name", known_targets())
def test_a_new_machine_is_the_one_it_begins_as(name: str, tmp_path: Path) -> None:
    like, file = load_target(name), tmp_path / "other-name.toml"
    text = template("mine", like, name)
    file.write_text(text, "utf-8")
    assert (load_target(file).name, load_target(file).hash) == ("mine", like.hash)
    taken_in = re.sub(r"^# ([a-z0-9_.]+ = \{ value)", r"\1", text, flags=re.M)
    file.write_text(taken_in, "utf-8")
    whole = load_target(file)
    assert whole.hash == like.hash
    stated = set(re.findall(r"^([a-z0-9_.]+) = \{ value", taken_in, re.M))
    assert stated == {leaf.path for leaf in whole.leaves()}
    assert max(map(len, (line for line in text.splitlines() if line.startswith("# ") and " = {" not in line))) <= 120


def test_the_command_writes_a_file_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = ppuc("--new", "my-npu", "--like", "tpuv3-core")
    assert made.exit_code == 0, made.output
    assert "my-npu.toml: based on tpuv3-core" in made.output
    text = (
        Path("my-npu.toml")
        .read_text("utf-8")
        .replace("clock.max_mhz = { value = 940.0", "clock.max_mhz = { value = 1880.0")
    )
    Path("my-npu.toml").write_text(text, "utf-8")
    assert load_target("my-npu.toml").peak_tops("bf16") == 2 * load_target("tpuv3-core").peak_tops("bf16")
    assert ppuc("--new", "second", "--like", "my-npu.toml").exit_code == 0
    assert load_target("./second.toml").hash == load_target("./my-npu.toml").hash


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--new", "a/b"), "--new a/b: is not a valid target name"),
        (("--new", "zhenwu-m890"), "--new zhenwu-m890: is already a target"),
        (("--new", "taken"), "taken.toml: exists already"),
        (("--new", "mine", "--like", "tpuv3-cor"), "did you mean 'tpuv3-core'?"),
        (("--new", "mine", "--set", "cu=2"), "--new: goes with --like alone"),
        (("--like", "tpuv3-core"), "--like: has an effect with --new only"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.toml").write_text("", "utf-8")
    done = ppuc(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken.toml"]

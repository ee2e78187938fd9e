"""Documents agree with the code: generated ones are up to date, and the files and commands that others name exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import onnx
import pytest

from ppuc.compiler.cli import cli
from tests.cli.calling import ppuc
from tests.support.small_models import mlp
from tools.generate_docs import DOCUMENTS
from tools.refresh_console import refreshed_text

ROOT = Path(__file__).parents[2]
PROSE = [
    "CHANGELOG.md",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "docs/compiler.md",
    "docs/machine.md",
    "docs/simulator.md",
]
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_documents_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == DOCUMENTS[name](), "stale: run `make docs`"


def test_the_worked_example_prints_what_architecture_shows() -> None:
    """Every command of ARCHITECTURE.md, run again (README.md shows times of this machine, and is not compared)."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert refreshed_text(text) == text, "stale: run `make readme`"


def calls(text: str) -> list[list[str]]:
    """The words of every `ppuc ...` command in code blocks and inline code."""
    code = re.findall(r"`([^`\n]+)`", text) + [
        line.removeprefix("$ ") for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    return [re.split(" [|&]", line)[0].split() for line in code if re.match(r"ppuc( |$)", line)]


@pytest.mark.parametrize("name", PROSE)
def test_commands_and_options_exist(name: str) -> None:
    for words in calls((ROOT / name).read_text(encoding="utf-8")):
        options = [w.partition("=")[0] for w in words[1:] if re.fullmatch(r"--?[a-z][-a-z]*(=.*)?", w)]
        known = {o for p in cli.params for o in p.opts} | {"--help", "-h", "--version"}
        if len(words) > 1 and not words[1].startswith("-") and words[1] != "COMMAND":
            assert words[1] in cli.commands, " ".join(words)
            command: click.Command = cli.commands[words[1]]
            known |= {o for p in command.params for o in p.opts}
        assert set(options) <= known, " ".join(words)


@pytest.mark.parametrize("name", PROSE)
def test_make_targets_exist(name: str) -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z]+)", text) + re.findall(r"^ *\$? ?make ([a-z]+)", text, re.M)) <= rules


@pytest.mark.parametrize("name", [*PROSE, *(p.relative_to(ROOT).as_posix() for p in ADRS)])
def test_paths_and_links_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    heads = ("ir", "targets", "compiler", "tests", "tools", "docs", "examples", "benchmarks")
    paths = re.findall(rf"`((?:{'|'.join(heads)})/[\w./-]*)`", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [p for p in paths if not (ROOT / p).exists()]
    missing += [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert not missing, f"{name} names {missing}"


def test_steps_in_examples_of_help_are_written_by_a_dump(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "net.onnx")
    dumped = (
        "compile",
        tmp_path / "net.onnx",
        "--dim",
        "N=2",
        "-o",
        tmp_path / "net.ppu",
        "--dump",
        tmp_path / "steps",
    )
    assert ppuc(*dumped).exit_code == 0
    written = {f"steps/{path.name}" for path in (tmp_path / "steps").iterdir()}
    named = {name for c in cli.commands.values() for name in re.findall(r"steps/[\w.-]+", c.epilog or "")}
    assert named
    assert named <= written


def test_commands_and_options_in_examples_of_help_exist() -> None:
    for command in cli.commands.values():
        for example in re.findall(r"ppuc [^;|\n]+", command.epilog or ""):
            words = example.split()
            options = [w for w in words if re.fullmatch(r"--?[a-z][-a-z]*", w)]
            assert set(options) <= {o for p in cli.commands[words[1]].params for o in p.opts}, example

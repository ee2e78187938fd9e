"""What a `.ppir` file of this folder asks for: its cases, with the line of everything that is expected.

README.md describes the format. Invariant: every comment that looks like a directive is one; a misspelt directive, and a
case that expects nothing, is a CaseError that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.pass_options import build_passes
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target

SEPARATOR = "// -----"
OUTPUT = re.compile(r"// OUTPUT((?: \w+)*)")
PARTS = ("graph", "kernel", "vector", "placement", "program")
CHECKS = ("CHECK", "CHECK-NEXT", "CHECK-NOT")

_DIRECTIVE = re.compile(r"//\s*([A-Z]{2}[A-Z-]*|error|run)(?::\s*(.*?)\s*)?$")
_COMMENT = re.compile(r"\s*//.*$")
_SETTING = re.compile(r"(?:^|\s)(\w+)=(\S+)")
_NAMED: dict[str, tuple[Pass, ...]] = {"verify": (), "pipeline": PIPELINE}


class CaseError(Exception):
    """A file that does not follow the format, or a case that did not do what its file says."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A directive of the file: its kind, its text, and the line of the file on which it stands (from 1)."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """An error whose text contains `text`, expected at line `at` of the file (0: at no line in particular)."""

    text: str
    line: int
    at: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A RUN line: the passes, the machine, and the options of the module."""

    passes: tuple[Pass, ...]
    target: Target
    options: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Case:
    """One input text, which begins at line `first` of the file, and what is expected of it. `output` is the expected
    text of `parts` of the module (None: not compared)."""

    path: Path
    first: int
    recipe: Recipe
    title: str
    text: str
    output: str | None = None
    parts: tuple[str, ...] = PARTS
    unchanged: bool = False
    checks: list[Expected] = field(default_factory=list)
    errors: list[ExpectedError] = field(default_factory=list)
    calls: list[Expected] = field(default_factory=list)

    def source(self, line: int) -> str:
        """A line of the input without its comment."""
        return _COMMENT.sub("", self.text.split("\n")[line - self.first]).strip()


def read_cases(path: Path) -> list[Case]:
    """The cases of a file. Raises CaseError."""
    cases: list[Case] = []
    for first, lines in _blocks(path.read_text(encoding="utf-8").split("\n")):
        before = cases[-1].recipe if cases else None
        cases.append(_read_case(path, first, lines, before))
    return cases


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    start = 0
    for i, line in enumerate([*lines, SEPARATOR]):
        if line.rstrip() == SEPARATOR:
            yield start + 1, lines[start:i]
            start = i + 1


def _read_case(path: Path, first: int, lines: list[str], before: Recipe | None) -> Case:
    body, output, parts = _split(lines, f"{path}:{first}")
    recipe, title, code = before, "", 0
    found: list[Expected] = []
    errors: list[ExpectedError] = []
    for number, line in enumerate(body, first):
        stripped = line.strip()
        directive = _DIRECTIVE.search(line)
        if stripped and not stripped.startswith("//"):
            code = number
        elif stripped and not directive and not title:
            title = stripped.removeprefix("//").strip().rstrip(".:")
        if directive is None:
            continue
        kind, text = directive[1], directive[2] or ""
        if kind == "RUN":
            recipe = _read_recipe(text, f"{path}:{number}")
        elif kind == "error":
            errors.append(ExpectedError(text, number, code))
        else:
            found.append(Expected(kind, text, number))
    if recipe is None:
        raise CaseError(f"{path}:{first}: the first case of a file needs a line `// RUN: pass, pass`")
    case = Case(path, first, recipe, title, "\n".join(body), output, parts, errors=errors)
    for each in found:
        _add(case, each)
    if not (case.checks or case.errors or case.calls or case.unchanged or output is not None):
        raise CaseError(f"{path}:{first}: the case expects nothing")
    return case


def _split(lines: list[str], where: str) -> tuple[list[str], str | None, tuple[str, ...]]:
    """The lines up to OUTPUT, the text after it, and the parts that it names."""
    for i, line in enumerate(lines):
        if found := OUTPUT.fullmatch(line.rstrip()):
            parts = tuple(found[1].split()) or PARTS
            if not set(parts) <= set(PARTS):
                raise CaseError(f"{where}: OUTPUT names parts of {', '.join(PARTS)}; got '{found[1].strip()}'")
            return lines[:i], "\n".join(lines[i + 1 :]).rstrip("\n"), parts
    return lines, None, PARTS


def _add(case: Case, directive: Expected) -> None:
    if directive.kind in CHECKS:
        case.checks.append(directive)
    elif directive.kind == "run":
        case.calls.append(directive)
    elif directive.kind == "UNCHANGED":
        case.unchanged = True
    else:
        raise CaseError(f"{case.path}:{directive.line}: there is no directive '{directive.kind}'")


def _read_recipe(text: str, where: str) -> Recipe:
    settings = _SETTING.findall(text)
    names = _SETTING.sub("", text).strip()
    if not names:
        raise CaseError(f"{where}: RUN names no pass (`verify` stands for none)")
    passes = _NAMED[names] if names in _NAMED else build_passes(names, where)
    target = load_target(next((value for key, value in settings if key == "target"), "ppu-tiny"))
    target = override(target, *(value for key, value in settings if key == "set"))
    options = tuple(sorted((key, value) for key, value in settings if key not in ("target", "set")))
    return Recipe(passes, target, options)

"""What a case expects of the text of its result: CHECK lines, and the whole of some parts."""

from __future__ import annotations

import difflib
import fcntl
import re
from collections.abc import Sequence
from dataclasses import replace

from ppuc.ir.module import Module
from ppuc.ir.text import print_module
from tests.filetests.case import PARTS, Case, CaseError, Expected

BLESS = "--update-golden"
_KEY = re.compile(r'res\("(\w+):[0-9a-f]{16}"')


def text_of(module: Module, parts: Sequence[str] = PARTS) -> str:
    """Parts of the module's text. What changes with numbers that the case is not about is left out: the hash of the
    machine, and those of constants that passes computed (their values are compared anyway)."""
    if module.program is not None:
        module = replace(module, program=replace(module.program, target_hash=""))
    blocks = _KEY.sub(r'res("\1"', print_module(module)).split("\n\n")
    return "\n\n".join(block.rstrip("\n") for block in blocks if block.startswith(tuple(parts)))


def check_text(case: Case, text: str) -> None:
    """Raise CaseError unless CHECK lines are found in order: each after the one before it, CHECK-NEXT on the very next
    line, and CHECK-NOT nowhere between its neighbours. Blanks count as one; `{{...}}` is a regular expression."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    at = 0
    absent: list[Expected] = []
    for check in case.checks:
        if check.kind == "CHECK-NOT":
            absent.append(check)
            continue
        end = at + 1 if check.kind == "CHECK-NEXT" else len(lines)
        wanted = _pattern(check)
        found = next((i for i in range(at, min(end, len(lines))) if wanted.search(lines[i])), None)
        if found is None:
            where = f"the line after '{lines[at - 1]}'" if check.kind == "CHECK-NEXT" else "what follows"
            raise CaseError(f"{case.path}:{check.line}: not found in {where}: {check.text}\n\n{text}")
        _check_absent(case, absent, lines[at:found], text)
        at, absent = found + 1, []
    _check_absent(case, absent, lines[at:], text)


def _pattern(check: Expected) -> re.Pattern[str]:
    plain, regular = re.split(r"\{\{(.*?)\}\}", " ".join(check.text.split())), ""
    for i, part in enumerate(plain):
        regular += f"(?:{part})" if i % 2 else re.escape(part)
    return re.compile(regular)


def _check_absent(case: Case, absent: Sequence[Expected], lines: Sequence[str], text: str) -> None:
    for check in absent:
        if any(map(_pattern(check).search, lines)):
            raise CaseError(f"{case.path}:{check.line}: found, and should not be: {check.text}\n\n{text}")


def compare_output(case: Case, text: str, bless: bool) -> None:
    """Raise CaseError when the output is another text than the file says; with `bless`, write it into the file."""
    assert case.output is not None
    if text == case.output:
        return
    if not bless:
        raise different(case, "another output", case.output, text, f"if this is meant: pytest {BLESS}")
    with case.path.open("r+", encoding="utf-8") as file:  # other cases of the file may be written at the same time
        fcntl.flock(file, fcntl.LOCK_EX)
        before, body, after = file.read().partition(case.text)
        head, _, rest = after.lstrip("\n").partition("\n")
        rest = rest.removeprefix(case.output).lstrip("\n")
        file.seek(0)
        file.write(f"{before}{body}\n{head}\n{text}\n{rest}")
        file.truncate()


def different(case: Case, what: str, want: str, got: str, hint: str = "") -> CaseError:
    """The error that shows where `got` is not the text that was expected."""
    diff = difflib.unified_diff(want.split("\n"), got.split("\n"), "expected", "now", lineterm="")
    return CaseError("\n".join([f"{case.path}:{case.first}: expected {what}", *diff, "", hint]).rstrip())

"""Checks that a comparison must pass, and their outcome in the formats that CI systems read.

JUnit: the testsuite XML that Jenkins, GitLab and others take. SARIF: OASIS SARIF 2.1.0. GitHub: workflow commands
(https://docs.github.com/actions/reference/workflow-commands-for-github-actions).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from ppuc.ir.errors import UsageError

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True)
class Check:
    """A rule on one subject (the model, or an output), whether it holds, and a sentence with the numbers."""

    rule: str
    subject: str
    ok: bool
    text: str

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"rule": self.rule, "subject": self.subject, "ok": self.ok, "text": self.text}


def percentage(text: str, option: str) -> float:
    """`2%` or `0.02` as a share. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if match is None:
        raise UsageError.of(option, "is not a share", got=text, expected="as in 2% or 0.02")
    return float(match[1]) / (100 if match[2] else 1)


def decibels(text: str, option: str) -> float:
    """`1dB` or `1` as a number of decibels. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:dB)?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError.of(option, "is not a number of decibels", got=text, expected="as in 1dB or 0.5")
    return float(match[1])


def checks(compared: Mapping[str, Any], most_slower: float | None, most_drop: float | None) -> list[Check]:
    """The checks of the limits given: the time of the whole run, the noise of every output and its verdict. Raises
    UsageError when the runs hold no numbers to check."""
    model, found = compared["b"]["model"], list[Check]()
    if most_slower is not None:
        seconds = compared["totals"].get("seconds")
        if seconds is None or seconds["ratio"] is None:
            raise UsageError.of("--max-slower", "has no times to compare", hint="give runs of `ppuc profile --record`")
        slower = seconds["ratio"] - 1
        before, after = (f"{seconds[side] * 1e6:.4g} us" for side in ("a", "b"))
        text = f"{after}, {before} before: {slower:+.2%} (at most {most_slower:+.2%})"
        found.append(Check("max-slower", model, slower <= most_slower, text))
    if most_drop is not None:
        if not compared["outputs"]:
            raise UsageError.of(
                "--max-drop", "has no accuracy to compare", hint="give runs of `ppuc verify --record`, or .onnx models"
            )
        for row in compared["outputs"]:
            before, after = row["sqnr_db"]
            drop, right = before - after, row["verdict"][1] != "wrong"
            text = f"{after:.1f} dB, {before:.1f} dB before (at most {most_drop:g} dB less), {row['verdict'][1]}"
            found.append(Check("max-drop", row["output"], drop <= most_drop and right, text))
    return found


def verified_checks(found: Mapping[str, Any], strict: bool = False) -> list[Check]:
    """The checks of a verification, given as its JSON: that every tensor agrees (with `strict`, so that it proves
    something), and that there is no hazard."""
    rows = [*found["outputs"], *found["layers"]]
    good = ("ok",) if strict else ("ok", "unproven")
    made = []
    for row in rows:
        why = row["reason"] or row["unproven"]
        text = f"SQNR {row['sqnr_db']:.1f} dB, max abs {row['max_abs']:.3g}, {row['verdict']}"
        made.append(Check("agrees", row["name"], row["verdict"] in good, f"{text}: {why}" if why else text))
    return [*made, hazard_check(found)]


def hazard_check(found: Mapping[str, Any]) -> Check:
    """The check that a run, given as its JSON, has no hazard."""
    hazards = found["hazards"]
    text = f"{len(hazards)}, the first: {hazards[0]}" if hazards else "none"
    return Check("no-hazard", found["model"], not hazards, f"hazards: {text}")


def junit(found: Sequence[Check], name: str) -> str:
    """The checks as the JUnit test suite `name`, ending in a newline."""
    cases = []
    for check in found:
        head = f"  <testcase classname={quoteattr('ppuc.' + check.rule)} name={quoteattr(check.subject)}"
        failure = f"<failure message={quoteattr(check.text)}>{escape(check.text)}</failure>"
        cases.append(f"{head}/>" if check.ok else f"{head}>{failure}</testcase>")
    failures = sum(not check.ok for check in found)
    head = f'<testsuite name={quoteattr(name)} tests="{len(found)}" failures="{failures}" errors="0" skipped="0">'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *cases, "</testsuite>", ""])


def github(found: Sequence[Check]) -> str:
    """The checks as workflow commands: failed ones as errors, the others as notices."""
    lines = []
    for check in found:
        kind, title = ("notice" if check.ok else "error"), _escaped(f"{check.rule} {check.subject}", properties=True)
        lines.append(f"::{kind} title={title}::{_escaped(check.text)}\n")
    return "".join(lines)


def _escaped(text: str, properties: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if properties else text


def sarif(found: Sequence[Check], version: str) -> str:
    """The checks as SARIF: a result for each failed one, on the model."""
    rules = sorted({check.rule for check in found})
    results = [
        {
            "ruleId": check.rule,
            "level": "error",
            "message": {"text": f"{check.subject}: {check.text}"},
            "locations": [{"logicalLocations": [{"fullyQualifiedName": check.subject, "kind": "module"}]}],
        }
        for check in found
        if not check.ok
    ]
    driver = {"name": "ppuc", "version": version, "rules": [{"id": rule} for rule in rules]}
    log = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"

"""ONNX's official backend suite through ppuc: compile, simulate, compare with what the suite expects.

    python -m benchmarks.backend_suite [--target ppu-tiny] [--only PATTERN] [--write docs/backend.md] [--json FILE]

`--write` also writes the pass rates of single ops, which `make docs` reads. Prints how many tests pass, how many of
those without a host step, and the reason for each failure. Tests run in worker processes with a time limit, so that a
hang or a crash fails only one test. The exit code is 1 if a test crashed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.suite_cases import EXPLAINED, Case, Outcome, cases, run_case

SECONDS = 120.0
START_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole, as counts."""

    part: int
    whole: int

    def __str__(self) -> str:
        return f"{self.part:,} of {self.whole:,} ({self.part / self.whole:.1%})" if self.whole else "none"


def _serve(connection: Connection, target: str) -> None:
    """Run the tests whose names are received, until None."""
    known = {case.name: case for case in cases()}
    run_case(next(iter(known.values())), target)  # the first simulation may compile the simulator
    connection.send(None)
    while (name := connection.recv()) is not None:
        connection.send(run_case(known[name], target))


class Worker:
    """A process that runs tests in sequence; it is replaced when it dies."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.target), daemon=False)
        self.process.start()
        theirs.close()
        if not self.connection.poll(START_SECONDS):
            raise SystemExit(f"a worker took more than {START_SECONDS:.0f} s to start")
        self.connection.recv()

    def run(self, case: Case) -> Outcome:
        """The outcome of one test."""
        started = time.perf_counter()
        self.connection.send(case.name)
        try:
            if self.connection.poll(SECONDS):
                outcome: Outcome = self.connection.recv()
                return outcome
            reason = f"took more than {SECONDS:.0f} s"
        except EOFError:
            self.process.join()
            reason = f"the process died with exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self._start()
        return Outcome(case.name, "crash", reason, (), (), time.perf_counter() - started)

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def run_all(chosen: Iterable[Case], target: str) -> list[Outcome]:
    """Outcomes in the order of the tests."""
    worker = Worker(target)
    found = []
    for number, case in enumerate(chosen):
        found.append(worker.run(case))
        if sys.stderr.isatty():
            print(f"\r{number + 1} {case.name:<70}", end="", file=sys.stderr)
    worker.stop()
    return found


def summary(outcomes: list[Outcome], known: dict[str, Case]) -> dict[str, Any]:
    """Counts, pass rates, and the tests that do not pass."""
    passed = [o for o in outcomes if o.status == "pass"]
    plain = [o for o in outcomes if known[o.name].plain]
    native = [o for o in plain if o.status == "pass" and not o.host]
    return {
        "tests": len(outcomes),
        "pass": len(passed),
        "status": dict(Counter(o.status for o in outcomes)),
        "native": sum(not o.host for o in passed),
        "plain": len(plain),
        "plain_native": len(native),
        "seconds": sum(o.seconds for o in outcomes),
        "outcomes": [asdict(o) for o in outcomes],
    }


def by_op(found: dict[str, Any]) -> dict[str, list[int]]:
    """ONNX op -> tests of this op alone, how many pass, and how many of these without a host step."""
    ops: dict[str, list[int]] = {}
    for o in found["outcomes"]:
        if len(o["ops"]) == 1:
            row = ops.setdefault(o["ops"][0], [0, 0, 0])
            passed = o["status"] == "pass"
            row[0] += 1
            row[1] += passed
            row[2] += passed and not o["host"]
    return ops


def report(found: dict[str, Any]) -> str:
    """The summary as Markdown."""
    outcomes = [Outcome(**{**o, "host": tuple(o["host"]), "ops": tuple(o["ops"])}) for o in found["outcomes"]]
    lines = [
        "# The official ONNX backend suite",
        "",
        "<!-- Written by `python -m benchmarks.backend_suite --write docs/backend.md`. -->",
        "",
        f"- pass through compiler and simulator, with the host's help: {Share(found['pass'], found['tests'])}",
        f"- of these, without any host step: {Share(found['native'], found['pass'])}",
        "- of the tests whose inputs and outputs are all f32, i64, i32 or bool, pass without any host step: "
        f"{Share(found['plain_native'], found['plain'])}",
        "",
        "Sizes and axes that a test feeds as inputs are fixed when its program is compiled, as with "
        "`ppuc compile --inputs`.",
        "",
        "## Tests that do not pass",
        "",
        "| test | outcome | reason |",
        "|---|---|---|",
    ]
    for o in outcomes:
        if o.status != "pass":
            found_reason = re.sub(r"\s+", " ", o.reason)[:300].replace("|", "\\|")
            lines.append(f"| {o.name} | {o.status} | {EXPLAINED.get(o.name, found_reason)} |")
    lines += ["", "## Tests that need the host", "", "| ops on the host | tests | why |", "|---|---|---|"]
    groups: dict[tuple[str, str], int] = Counter()
    for o in outcomes:
        if o.status == "pass" and o.host:
            op, _, why = o.host[0].partition(": ")
            groups[op, why] += 1
    lines += [f"| {op} | {n} | {why.replace('|', chr(92) + '|')} |" for (op, why), n in sorted(groups.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="zhenwu-m890")
    parser.add_argument("--only", default="", metavar="PATTERN", help="tests whose name matches")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th test, from the I-th")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the report there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    arguments = parser.parse_args()
    first, _, every = arguments.shard.partition("/")
    known = {case.name: case for case in cases()}
    chosen = [c for c in known.values() if re.search(arguments.only, c.name)][int(first) :: int(every)]
    found = summary(run_all(chosen, arguments.target), known)
    text = report(found)
    print(text)
    print(f"{found['status']}, {found['seconds']:.0f} s")
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
        shares = json.dumps(by_op(found), indent=0, sort_keys=True)
        arguments.write.with_suffix(".json").write_text(shares + "\n", encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 1 if found["status"].get("crash") else 0


if __name__ == "__main__":
    sys.exit(main())

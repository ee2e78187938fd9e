"""Malformed models through the commands that read models.

    python -m benchmarks.malformed [--count 300] [--seed 0] [--only TEXT]

Models of ONNX's own node tests are changed in one place (`tests/fuzz/malformed.py`); those that ONNX's checker, its
strict inference or ONNX Runtime refuse, crash on or do not end on go through `check`, `compile`, `run` and `verify`,
each in a process with 5 CPU-seconds and 500 MB more than it starts with. Prints each command that took a model for
good, ended in a traceback, or reached a limit. Exit code 1 when there was one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from click.testing import CliRunner
from onnx.backend.test.case.node import collect_testcases

from ppuc.compiler.cli import cli
from tests.fuzz.malformed import MUTATIONS, baked, refused_by_others

SECONDS, BYTES = 5, 500 << 20
COMMANDS = ("check", "compile", "run", "verify")
REFUSED = {"check": ("exit 1", "exit 2"), "compile": ("exit 2",), "run": ("exit 2",), "verify": ("exit 2",)}
"""Command -> how it ends on a model that it refuses."""
LEFT_OPEN = ("graph without name", "output without type")
"""What ONNX's checker refuses although no meaning is lost."""


def limited(work: Callable[[], int], seconds: int, room: int) -> str:
    """How `work` ends in a process of its own: "exit N", or the signal that ended it."""

    def inside() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - of the process, to its end
        os._exit(work())

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    process.join()
    code = process.exitcode
    return f"exit {code}" if code is not None and code >= 0 else f"signal {-(code or 0)}"


def malformed(draw: random.Random, only: str) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Changed models, in random order, that somebody refuses."""
    cases = [c for c in collect_testcases(None) if c.model is not None and only in c.name]
    while True:
        case = draw.choice(cases)
        feeds = {i.name: x for i, x in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        arrays = {n: x for n, x in feeds.items() if isinstance(x, np.ndarray)}
        whole = baked(case.model, arrays) if draw.random() < 0.5 else case.model
        mutants = list(MUTATIONS[draw.choice(sorted(MUTATIONS))](whole))
        if not mutants:
            continue
        what, model = draw.choice(mutants)
        given = {i.name for i in whole.graph.input}
        feeds, arrays = ({n: x for n, x in named.items() if n in given} for named in (feeds, arrays))
        fed = arrays if len(arrays) == len(feeds) and not what.startswith(("input", "output")) else None
        if what in LEFT_OPEN:
            continue
        if limited(lambda: int(bool(refused_by_others(model, fed))), 20, 4 << 30) != "exit 0":  # noqa: B023
            yield f"{case.name}: {what}", model


def ends(path: Path) -> Iterator[tuple[str, str]]:
    """Every command and how it ends."""
    for command in COMMANDS:
        arguments = arguments_of(command, path)
        yield command, limited(lambda: CliRunner().invoke(cli, arguments).exit_code, SECONDS, BYTES)  # noqa: B023


def arguments_of(command: str, path: Path) -> list[str]:
    """A command on a model; what it writes goes beside the model."""
    more = ["-o", str(path.with_suffix(".ppu"))] if command == "compile" else []
    return [command, str(path), "-t", "ppu-tiny", *more]


def main() -> int:
    """Try `--count` models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="node tests whose name contains this")
    arguments = parser.parse_args()
    os.environ["PPUC_CACHE_DIR"] = ""
    found, faults = malformed(random.Random(arguments.seed), arguments.only), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])).SerializeToString())
        for command in COMMANDS:  # load what commands need, once and before processes are forked
            CliRunner().invoke(cli, arguments_of(command, path))
        for _ in range(arguments.count):
            what, model = next(found)
            path.write_bytes(model.SerializeToString())
            for command, end in ends(path):
                if end not in REFUSED[command]:
                    faults[end] += 1
                    print(f"{what}: {command}: {end}", flush=True)
    print(f"{arguments.count} models, {sum(faults.values())} commands of {4 * arguments.count} that did not refuse")
    return 1 if sum(faults.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())

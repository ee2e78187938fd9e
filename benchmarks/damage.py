"""Damaged files through the commands that read them, in numbers that no test has time for.

    python -m benchmarks.damage [--count 10000] [--seed 0] [--only KIND]

A .ppu takes `count` single bit flips and as many lost, doubled or exchanged parts; texts and data take a fifth of that
each. Prints for each kind how many were refused, gave what the whole file gives, and were read as another valid file:
texts without checksums, in which a number may be another number. Exit code 1 when a damaged .ppu passed for whole, a
dump's constants gave another program, or a command ended in a traceback or took more than ten seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.ir.errors import ArtifactError
from ppuc.targets.artifact import check
from tests.support.damage import bit_flips, cuts, text_mutations
from tests.support.onnx_text import model_of
from tests.support.small_models import lookup, mlp

SECONDS = 10.0
SIZES = ("--dim", "N=3", "-t", "ppu-tiny")
TARGETS = Path(__file__).resolve().parents[1] / "targets"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage: a file, its changed versions, and what is done with each, which says how it ended."""

    path: Path
    changed: Iterable[bytes]
    attempt: Callable[[], str]


def checked(path: Path) -> Callable[[], str]:
    """Reads all of a .ppu."""

    def attempt() -> str:
        try:
            check(path)
        except ArtifactError:
            return "refused"
        return "PASSED"

    return attempt


def command(*arguments: object, result: Path | None = None, strict: bool = False) -> Callable[[], str]:
    """Runs a command and compares what it writes to `result` or else prints with what it gives for the whole file,
    which stands there now; `strict`: anything else is a fault."""

    def given() -> tuple[int, bytes]:
        if result is not None:
            result.unlink(missing_ok=True)
        done = CliRunner().invoke(cli, [str(a) for a in arguments])
        read = result.read_bytes() if result is not None and result.exists() else done.output.encode()
        return done.exit_code, read

    whole, want = given()
    assert whole == 0, want.decode()

    def attempt() -> str:
        code, read = given()
        if code == 2:
            return "refused"
        if code:
            return f"EXIT {code}: {read.decode(errors='replace').strip().splitlines()[-5:]}"
        return "same" if read == want else "DIFFERENT" if strict else "another file"

    return attempt


def kinds(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, Kind]]:
    """Every kind by name."""
    few = max(1, count // 5)
    model, program, data, policy, out = (folder / n for n in ("m.onnx", "m.ppu", "x.npz", "p.toml", "out.ppu"))
    model.write_bytes(mlp().SerializeToString())
    made = ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 3})
    made.save(program)
    yield "ppu: a bit", Kind(program, bit_flips(program.read_bytes(), count, rng), checked(program))
    yield "ppu: parts", Kind(program, cuts(program.read_bytes(), count, rng), checked(program))
    for reader in (("run", program), ("inspect", program, "--check"), ("profile", program, "--timing-only")):
        changed = [*bit_flips(program.read_bytes(), few // 2, rng), *cuts(program.read_bytes(), few // 2, rng)]
        yield f"ppu: {reader[0]}", Kind(program, changed, command(*reader, strict=True))
    np.savez(data, x=np.random.default_rng(0).standard_normal((24, 20), np.float32))
    changed = [*bit_flips(data.read_bytes(), few // 2, rng), *cuts(data.read_bytes(), few // 2, rng)]
    yield "npz", Kind(data, changed, command("run", model, "-t", "ppu-tiny", "--inputs", data))
    target = folder / "ppu-tiny.toml"
    target.write_bytes((TARGETS / target.name).read_bytes())
    yield "target", Kind(target, text_mutations(target.read_text(), few, rng), command("targets", target))
    command("quantize", model, "--calibrate", data, *SIZES, "-o", policy)()
    compiling = command("compile", model, *SIZES, "-p", "fp8", "--policy", policy, "-o", out, result=out)
    yield "policy", Kind(policy, text_mutations(policy.read_text(), few, rng), compiling)
    yield from dumps(folder, few, rng)


def dumps(folder: Path, few: int, rng: random.Random) -> Iterator[tuple[str, Kind]]:
    """The texts of dumps, and the constants beside them."""
    ppuc.compile(mlp(), target="ppu-tiny", precision="bf16", dims={"N": 3}, dump=folder / "mlp")
    ppuc.compile(lookup(), target="ppu-tiny", dump=folder / "lookup")
    steps = sorted(folder.glob("*/*.ppir"))
    for step in steps:
        name, text = f"{step.parent.name}/{step.name}", step.read_text()
        yield f"ppir {name}", Kind(step, text_mutations(text, few // len(steps) + 1, rng), command("opt", step))
        attempt = command("opt", step, "--to-end", "-o", folder / "o.ppu", result=folder / "o.ppu")
        yield f"ppir {name}, to the end", Kind(step, text_mutations(text, few // len(steps) + 1, rng), attempt)
    manifest = folder / "mlp" / "manifest.json"
    attempt = command("inspect", manifest.parent, "--fusion")
    yield "manifest", Kind(manifest, text_mutations(manifest.read_text(), few, rng), attempt)
    weights = {"w": np.random.default_rng(1).standard_normal((128, 256), np.float32), "b": np.ones(128, np.float32)}
    model = model_of("g (float[3, 256] x) => (float[3, 128] y) { y = Gemm<transB = 1>(x, w, b) }", weights)
    program, again, place = folder / "g.ppu", folder / "again.ppu", folder / "gemm" / "constants"
    ppuc.compile(model, target="ppu-tiny", precision="bf16", dump=folder / "gemm").save(program)
    last = sorted((folder / "gemm").glob("*.ppir"))[-1]
    attempt = command("opt", last, "--to-end", "-o", again, result=again, strict=True)
    for path in sorted(place.iterdir()):
        if path.suffix == ".bin":
            data = path.read_bytes()
            yield (
                f"constant {path.name}",
                Kind(path, [*bit_flips(data, few // 4, rng), *cuts(data, few // 4, rng)], attempt),
            )
        else:
            yield f"constants' {path.name}", Kind(path, text_mutations(path.read_text(), few, rng), attempt)


def judged(kind: Kind) -> Counter[str]:
    """How often each end was reached; the file is put back."""
    before, found = kind.path.read_bytes(), Counter[str]()
    for data in kind.changed:
        kind.path.write_bytes(data)
        started = time.process_time()
        end = kind.attempt()
        found["SLOW" if time.process_time() - started > SECONDS else end] += 1
    kind.path.write_bytes(before)
    return found


def main() -> int:
    """Run all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    arguments = parser.parse_args()
    os.environ["PPUC_CACHE_DIR"] = ""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds(Path(folder), arguments.count, random.Random(arguments.seed)):
            if arguments.only not in name:
                continue
            started = time.process_time()
            found = judged(kind)
            faults += sum(n for end, n in found.items() if end not in ("refused", "same", "another file"))
            ends = ", ".join(f"{n:,} {end}" for end, n in sorted(found.items()))
            print(f"{name}: {ends}; {time.process_time() - started:.0f} s", flush=True)
    print(f"{faults:,} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

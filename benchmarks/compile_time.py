"""Time and memory to compile and simulate ResNet-50: `python -m benchmarks.compile_time [--json] [--cold]`.

ResNet-50 with seeded weights, batch 1, for zhenwu-m890. Every figure is measured on a fresh process: CPU seconds (user
and system, all threads, including interpreter start and imports) and peak memory. The simulator's compiled code comes
from the store (ppuc.ir.jit.store), which `make` fills; `--cold` also measures a first run with an empty one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx

from benchmarks.models import image, resnet50

TARGET = "zhenwu-m890"
PEERS = {"OpenVINO 2026.4": 0.9, "Vela 5.2": 2.9, "TVM 0.27": 4.2, "IREE 3.13": 8.0, "tpu-mlir 1.30": 16.7}
"""CPU seconds to compile the same network, measured on the same kind of machine (two cores)."""
PEER_SIMULATION = 205.0
"""CPU seconds of the nearest peer's functional simulator for one inference of it."""

COMPILE = "import sys, ppuc; ppuc.compile(sys.argv[1], target=sys.argv[2]).save(sys.argv[3])"
DUMP = "import sys, ppuc; ppuc.compile(sys.argv[1], target=sys.argv[2], dump=sys.argv[4]).save(sys.argv[3])"
TIME = "import sys, ppuc; p = ppuc.load(sys.argv[3]).time().profile; print(p.cycles)"
COLD = "import sys; from pathlib import Path; from ppuc.ir.jit import store; store.PACKAGED = Path(sys.argv[6]); "
VALUES = "import sys, numpy, ppuc; ppuc.load(sys.argv[3]).run(dict(numpy.load(sys.argv[5])))"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One process: CPU and wall seconds, and its peak resident memory in MB."""

    what: str
    cpu_seconds: float
    wall_seconds: float
    peak_mb: float
    goal: str = ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What compiling and simulating ResNet-50 costs.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--cold", action="store_true", help="measure a first run that compiles the loops too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, facts = measured(Path(folder), options.cold)
    if options.json:
        record = {"target": TARGET, "measurements": [asdict(r) for r in rows], "peers": PEERS, **facts}
        print(json.dumps(record | {"peer_functional_simulation": PEER_SIMULATION}, indent=2))
    else:
        show(rows, facts)


def measured(folder: Path, cold: bool) -> tuple[list[Measurement], dict[str, float]]:
    """All measurements, and the sizes of the dump's text, its constants and the model, in bytes."""
    model, sample, program, dump = folder / "model.onnx", folder / "x.npz", folder / "model.ppu", folder / "dump"
    onnx.save(proto := resnet50(), model)
    np.savez(sample, **{proto.graph.input[0].name: image()})
    words = [str(p) for p in (model, TARGET, program, dump, sample)]
    rows = []
    python(COMPILE, words)
    if cold:
        environment = os.environ | {"PPUC_CACHE_DIR": ""}
        first = "values and time, and compiling the loops"
        rows.append(python(COLD + VALUES, [*words, str(folder / "loops")], first, environment=environment))
    python(VALUES, words)
    rows = [
        python("import ppuc", [], "import ppuc", "0.3"),
        python("from ppuc.compiler.cli import main; main()", ["--help"], "ppuc --help", "0.3"),
        python(COMPILE, words, "compile to .ppu", "6"),
        python(DUMP, words, "compile with a dump of every pass", "1.5 x compile"),
        python(TIME, words, "timing-only simulation", "1"),
        python(VALUES, words, "values and time", "10"),
        *rows,
    ]
    text = sum(f.stat().st_size for f in dump.glob("*.*"))
    whole = sum(f.stat().st_size for f in dump.rglob("*") if f.is_file())
    return rows, {"dump_text_bytes": text, "dump_constants_bytes": whole - text, "model_bytes": model.stat().st_size}


def python(
    program: str, words: Sequence[str], what: str = "", goal: str = "", environment: Mapping[str, str] | None = None
) -> Measurement:
    """Run `program` in a fresh interpreter and measure it. Raises CalledProcessError when it fails."""
    reporter = (
        "import resource, subprocess, sys;"
        "c = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode;"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(u.ru_utime + u.ru_stime, u.ru_maxrss); sys.exit(c)"
    )
    began = time.perf_counter()
    command = [sys.executable, "-c", reporter, "-c", program, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    cpu, peak_kib = map(float, done.stdout.split())
    return Measurement(what, round(cpu, 2), round(time.perf_counter() - began, 2), round(peak_kib * 1.024e-3, 1), goal)


def show(rows: Sequence[Measurement], facts: Mapping[str, float]) -> None:
    """Print the table."""
    print(f"ResNet-50, batch 1, {TARGET}; fresh processes, loops compiled unless said otherwise\n")
    print(f"{'':42}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}   goal (CPU s)")
    for r in rows:
        print(f"{r.what:42}{r.cpu_seconds:8.2f}{r.wall_seconds:8.2f}{r.peak_mb:9.0f}   {r.goal}")
    sizes = {key: f"{value / 1e6:.1f} MB" for key, value in facts.items()}
    print(f"\ndump: {sizes['dump_text_bytes']} of text, {sizes['dump_constants_bytes']} of constants", end=" ")
    print(f"(the model has {sizes['model_bytes']})")
    print("\nothers, CPU s to compile it: " + ", ".join(f"{name} {cost:g}" for name, cost in PEERS.items()))
    print(f"the nearest functional simulator of another project: {PEER_SIMULATION:g} CPU s for one inference")


if __name__ == "__main__":
    main()

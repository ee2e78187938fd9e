"""CPU time to compile the same ONNX files with ppuc and with other compilers: `python -m benchmarks.peers
[--network NAME ...] [--rounds N] [--json]`.

Every compilation is a fresh process: user and system seconds of all its threads and children, imports included. The
rounds take turns, so that a slow minute of the machine meets all compilers, and the median counts. The peers come with
the extra `bench` (`pip install -e '.[bench]'`) and compile for the host's CPU; one that is not installed, or refuses a
file, is named with the reason. ppuc compiles for zhenwu-m890 with the search store as a previous compilation left it
(warm), and without one (cold).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx
import onnx.version_converter

from benchmarks import networks, perception
from benchmarks.compile_time import COMPILE, TARGET, python
from benchmarks.models import resnet50

OPENVINO = "import sys, openvino; openvino.Core().compile_model(sys.argv[1], 'CPU')"
TVM = """
import sys, onnx, tvm
from tvm.relax.frontend.onnx import from_onnx
tvm.compile(from_onnx(onnx.load(sys.argv[1])), target="llvm").export_library(sys.argv[3] + ".so")
"""
IREE = """
import sys
from iree.compiler.tools import compile_file
from iree.compiler.tools.import_onnx.__main__ import main, parse_arguments
main(parse_arguments([sys.argv[1], "-o", sys.argv[3] + ".mlir"]))
compile_file(sys.argv[3] + ".mlir", input_type="onnx", target_backends=["llvm-cpu"], output_file=sys.argv[3] + ".vmfb",
             extra_args=["--iree-llvmcpu-target-cpu=host"])
"""
IR_VERSION, OPSET = 8, 17
"""IREE refuses older files, in which initializers are inputs, too."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A program that compiles argv[1] (for the target argv[2]) to argv[3]. `package` is its distribution, "" for
    ppuc."""

    name: str
    program: str
    package: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def version(self) -> str | None:
        """Its version; None if it is not installed."""
        try:
            return importlib.metadata.version(self.package or "ppuc")
        except importlib.metadata.PackageNotFoundError:
            return None


WARM, COLD = "ppuc, warm", "ppuc, cold"
OWN = (Compiler(WARM, COMPILE), Compiler(COLD, COMPILE, environment={"PPUC_CACHE_DIR": ""}))
PEERS = (
    Compiler("OpenVINO", OPENVINO, "openvino"),
    Compiler("TVM", TVM, "apache-tvm"),
    Compiler("IREE", IREE, "iree-base-compiler"),
)


def seeded_resnet50(folder: Path) -> Path:
    """The network of `benchmarks.compile_time`, in a newer opset."""
    model = resnet50()
    model.ir_version = IR_VERSION
    onnx.save(onnx.version_converter.convert_version(model, OPSET), path := folder / "resnet50.onnx")
    return path


NETWORKS: dict[str, Callable[[Path], Path]] = {
    "resnet50": seeded_resnet50,
    "mobilenetv2": lambda folder: networks.mobilenet_v2(folder, 1),
    "bert-base": lambda folder: networks.bert_base(folder, 1, 128),
    "swin": lambda folder: perception.swin(folder, 1),
    "repvit": lambda folder: perception.repvit(folder, 1),
    "whisper": lambda folder: perception.whisper_encoder(folder, 1),
}
DEFAULT = ("resnet50", "mobilenetv2", "bert-base")


@dataclass(frozen=True, slots=True)
class Row:
    """Median CPU seconds of a compiler for a network; None with the reason if it refused it."""

    network: str
    compiler: str
    cpu_seconds: float | None
    refused: str = ""


def measured(network: str, compilers: Sequence[Compiler], rounds: int) -> list[Row]:
    """A row for each compiler."""
    found: dict[str, list[float]] = {c.name: [] for c in compilers}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = NETWORKS[network](Path(folder))
        words = [str(path), TARGET, str(Path(folder) / "out")]
        with suppress(subprocess.CalledProcessError):  # which the rounds will report
            python(COMPILE, words)  # fills the store
        for _ in range(rounds):
            for c in (c for c in compilers if c.name not in refused):
                try:
                    cost = python(c.program, words, environment=os.environ | c.environment)
                except subprocess.CalledProcessError as error:
                    refused[c.name] = reason(error)
                else:
                    found[c.name].append(cost.cpu_seconds)
    return [
        Row(network, c.name, None, refused[c.name])
        if c.name in refused
        else Row(network, c.name, round(statistics.median(found[c.name]), 2))
        for c in compilers
    ]


def reason(error: subprocess.CalledProcessError) -> str:
    """The first line that a failed program calls an error, otherwise its last one."""
    lines = (error.stderr or "").strip().splitlines() or [f"exit code {error.returncode}"]
    return next((line for line in lines if "error:" in line.lower()), lines[-1])


def show(rows: Sequence[Row]) -> None:
    """Print the times of one network, and those of ppuc relative to each."""
    seconds = {r.compiler: r.cpu_seconds for r in rows}
    for r in rows:
        if r.cpu_seconds is None:
            print(f"{r.network:14}{r.compiler:14}  refused: {r.refused[:90]}")
            continue
        own = (seconds.get(name) for name in (WARM, COLD))
        ratios = "".join(f"{'-':>9}" if s is None else f"{s / r.cpu_seconds:9.2f}" for s in own)
        print(f"{r.network:14}{r.compiler:14}{r.cpu_seconds:8.2f}{ratios}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU time to compile, beside other compilers.")
    parser.add_argument("--network", action="append", choices=sorted(NETWORKS), help="instead of the usual ones")
    parser.add_argument("--rounds", type=int, default=3, help="compilations of each file with each compiler")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    versions = {c.name: c.version() for c in PEERS}
    missing = [c for c in PEERS if versions[c.name] is None]
    compilers = [*OWN, *(c for c in PEERS if c not in missing)]
    for c in missing:
        print(f"{c.name}: skipped, {c.package} is not installed (pip install -e '.[bench]')", file=sys.stderr)
    if not options.json:
        present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        print(f"{present}; " if present else "", end="")
        print(f"CPU seconds to compile, median of {options.rounds}, and ppuc's relative to them\n")
        print(f"{'':28}{'CPU s':>8}{'warm':>9}{'cold':>9}")
    rows: list[Row] = []
    for network in options.network or DEFAULT:
        rows += (here := measured(network, compilers, options.rounds))
        if not options.json:
            show(here)
    if options.json:
        fields = [{name: getattr(r, name) for name in Row.__slots__} for r in rows]
        print(json.dumps({"versions": versions, "measurements": fields}, indent=2))


if __name__ == "__main__":
    main()

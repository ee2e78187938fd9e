"""Checks whether a change of the compiler changes its programs.

    python -m tools.compare_programs --write before.json     # before the change
    python -m tools.compare_programs --against before.json   # after it; exit code 1 when a program differs

Compiles networks, random models and small models for several machines, precisions and options, and compares digests of
instruction words, descriptors, symbols, constants and host models. Metadata (options, versions) may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx

import ppuc
from benchmarks import networks
from benchmarks.models import resnet50
from ppuc.ir.errors import PpucError
from ppuc.targets.artifact import Artifact
from ppuc.targets.assembler import encode
from tests.fuzz.models import model_of_seed
from tests.support.small_models import lookup, mlp

Source = Path | onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Case:
    """A function that builds a model in a folder, and the other arguments of `ppuc.compile`."""

    build: Callable[[Path], Source]
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _decoder(tokens: int, past: int, block: int = 0) -> Callable[[Path], Source]:
    small = {"layers": 2, "hidden": 512, "heads": 8, "groups": 2, "inner": 1024}
    return lambda folder: networks.decoder(folder, tokens, past, block=block, **small)


def _samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(11)
    return [{"x": rng.standard_normal((3, 20), np.float32)} for _ in range(4)]


def cases() -> Iterator[tuple[str, Case]]:
    """All cases by name."""
    m890, a810, tiny = "zhenwu-m890", "zhenwu-810e", "ppu-tiny"
    for target in (m890, a810):
        for batch in (1, 8):
            yield (
                f"resnet50-b{batch} {target}",
                Case(lambda folder, b=batch: networks.resnet50(folder, b), target, {"precision": "bf16"}),
            )
        yield (
            f"mobilenetv2-b4 {target}",
            Case(lambda folder: networks.mobilenet_v2(folder, 4), target, {"precision": "bf16"}),
        )
        yield f"bert {target}", Case(lambda folder: networks.bert_base(folder, 1, 128), target, {"precision": "bf16"})
        yield f"prefill {target}", Case(_decoder(256, 0), target, {"precision": "bf16"})
        yield (
            f"decode {target}",
            Case(_decoder(1, 128), target, {"precision": "bf16", "alias": networks.decoder_caches(2)}),
        )
    yield "vit-b fp8", Case(lambda folder: networks.vit_b(folder, 1), m890, {"precision": "fp8"})
    yield "gemm-1024 tuned", Case(lambda folder: networks.gemm(folder, 1024), m890, {"precision": "bf16", "tune": 8})
    yield "decode in blocks", Case(_decoder(1, 128, 32), m890, {"precision": "bf16"})
    yield "resnet50 f32", Case(lambda folder: resnet50(), m890)
    yield "resnet50 int8", Case(lambda folder: resnet50(), a810, {"precision": "int8"})
    for precision in ("model", "bf16", "fp16", "fp8", "int8", "mxfp8", "mxfp4", "nvfp4"):
        yield f"mlp {precision}", Case(lambda folder: mlp(), m890, {"precision": precision, "dims": {"N": 3}})
    for precision in ("fp8", "int8"):
        options = {"precision": precision, "dims": {"N": 3}, "calibrate": _samples()}
        yield f"mlp calibrated {precision}", Case(lambda folder: mlp(), m890, options)
    yield "mlp variants", Case(lambda folder: mlp(), tiny, {"dims": {"N": (1, 4, 16)}, "pad": ("N",)})
    yield "lookup", Case(lambda folder: lookup(), tiny)
    for seed in range(33):
        target, precision = ((tiny, "model"), (m890, "bf16"), (a810, "model"))[seed % 3]
        sample = model_of_seed(seed, 6)
        yield (
            f"random {seed}",
            Case(lambda folder, model=sample.model: model, target, {"precision": precision, "values": sample.feeds}),
        )


def digest(artifact: Artifact) -> str:
    """The sha256 of everything in an artifact that is executed."""
    encoded = encode(artifact.program, artifact.vectors)
    found = hashlib.sha256(encoded.code.tobytes() + encoded.descriptors.tobytes())
    found.update(json.dumps(encoded.symbols, sort_keys=True).encode())
    for name in sorted(artifact.constants):
        array = artifact.constant(name)
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    for name, data in sorted(artifact.host.items()):
        found.update(name.encode() + data)
    return found.hexdigest()


def outcome(case: Case, folder: Path) -> str:
    """The digest of a case's program, or the text of its error."""
    try:
        program = ppuc.compile(case.build(folder), target=case.target, **case.options)
    except PpucError as error:
        return f"{type(error).__name__}: {error}"
    artifacts = [v.artifact for v in program.variants.every] if program.variants else [program.artifact]
    return "+".join(map(digest, artifacts))


def main() -> int:
    """Write digests, or compare with written ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--against", type=Path, metavar="FILE")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    os.environ["PPUC_CACHE_DIR"] = ""
    warnings.simplefilter("ignore")
    before = json.loads(arguments.against.read_text()) if arguments.against else {}
    found: dict[str, str] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for name, case in cases():
            if arguments.only not in name:
                continue
            found[name] = outcome(case, Path(place))
            if arguments.against and found[name] != before.get(name):
                print(f"{name}: {found[name][:200]}, was {before.get(name, 'not there')[:200]}", flush=True)
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1) + "\n")
    different = sum(found[name] != before.get(name) for name in found) if arguments.against else 0
    print(f"{len(found)} programs, {different} of them different, {time.perf_counter() - started:.0f} s")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())

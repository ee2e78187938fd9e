"""A run as one JSON file: what a command found, with all that a report shows of the program.

Invariants: a record is complete, so showing it needs neither the model nor the program; nothing is run again to
explain it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppuc.compiler.frontend.outline import graph_record
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.recording.kernels import kernel_records, tensor_records
from ppuc.compiler.recording.passes import PassWatch
from ppuc.compiler.report.memory import plan_of_program, refused
from ppuc.compiler.report.sweep import rates
from ppuc.compiler.version import VERSION
from ppuc.ir.errors import UsageError
from ppuc.ir.files import write_file
from ppuc.ir.strict_json import plain, read_json
from ppuc.targets.schema import Target

FORMAT = "ppuc run"
RECORD_SCHEMA = 1
"""Version of the record; it grows when a field goes or changes its meaning."""


def run_record(
    command: str,
    model: Path,
    program: CompiledProgram,
    sections: Mapping[str, Mapping[str, Any]],
    watch: PassWatch | None = None,
) -> dict[str, Any]:
    """The record of a run of `command` on `program`. `sections` are what it found, by the name of the command that
    prints it as JSON. `watch` saw the compilation of the .onnx file `model`; without one (a .ppu), there are remarks,
    but neither texts of passes nor the ONNX graph."""
    artifact = program.artifact
    about = {"file": str(model), "name": program.name, "sha256": artifact.meta.get("model_sha256", "")}
    return {
        **_head(command, about, program.target, program.options.precision),
        "options": {k: v for k, v in artifact.meta.items() if k not in ("nodes", "plan", "variants")},
        "inputs": {s.name: str(s.type) for s in artifact.inputs},
        "outputs": {s.name: str(s.type) for s in artifact.outputs},
        "graph": graph_record(model) if watch is not None else None,
        "passes": _passes(program, watch),
        "kernels": kernel_records(artifact.program, watch.modules if watch is not None else ()),
        "tensors": tensor_records(artifact.program),
        "booked": program.nodes,
        "memory": plan_of_program(artifact.program, program.target).record() | {"refused": refused(program.remarks)},
        **sections,
    }


def study_record(command: str, model: Path, target: Target, precision: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a command that studies a model without a program to show: its ONNX graph, and what was found."""
    about = {"file": str(model), "name": model.stem, "sha256": ""}
    program: dict[str, Any] = {
        "options": {},
        "inputs": {},
        "outputs": {},
        "passes": [],
        "kernels": {},
        "tensors": {},
        "booked": {},
    }
    head = _head(command, about, target, precision)
    return {**head, **program, "memory": None, "graph": graph_record(model), command: found}


def _head(command: str, model: Mapping[str, str], target: Target, precision: str) -> dict[str, Any]:
    """What every record begins with."""
    return {
        "format": FORMAT,
        "schema": RECORD_SCHEMA,
        "ppuc": VERSION,
        "command": command,
        "model": model,
        "target": _machine(target),
        "precision": precision,
    }


def _machine(target: Target) -> dict[str, Any]:
    """What charts need to know of a machine: peaks, bandwidths, sizes."""
    return {
        "name": target.name,
        "hash": target.hash,
        "description": target.description,
        "units": target.cu,
        "clock_ghz": 1 / target.clk_ns,
        "l2_bytes": target.l2.bytes,
        "hbm_bytes": target.hbm.bytes,
        **rates(target),
    }


def _passes(program: CompiledProgram, watch: PassWatch | None) -> list[dict[str, Any]]:
    """The passes in order, each with what it changed; of a loaded program, only their remarks."""
    if watch is None:
        names = dict.fromkeys((r.segment, r.pass_name) for r in program.remarks)
        return [
            {
                "pass": name,
                "segment": segment,
                "remarks": [r.record() for r in program.remarks if (r.segment, r.pass_name) == (segment, name)],
            }
            for segment, name in names
        ]
    number = sum(made.changed for made in program.passes)
    changes = iter(watch.changes[len(watch.changes) - number :])  # without those of an attempt to do without the host
    rows, segment = [], -1
    for made in program.passes:
        segment += made.name == "import"
        change = next(changes).record() if made.changed else None
        rows.append({**made.record(), "segment": segment, "change": change})
    return rows


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, compressed where the name ends in .gz. Raises UsageError when that is not possible."""
    data = json.dumps(plain(record), ensure_ascii=False, separators=(",", ":")).encode()
    write_file(path, gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data)


def read_record(path: Path) -> dict[str, Any]:
    """Read a record. Raises UsageError for a file that is none, or one of a later version."""
    try:
        data = path.read_bytes()
        record = read_json(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if record["format"] != FORMAT or type(record["schema"]) is not int:
            raise ValueError(f"its format is {record['format']!r}")
    except OSError as error:
        raise UsageError.of(str(path), "cannot be read", got=error.strerror or error) from None
    except (ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
        hint = "write one with --record, as in `ppuc profile net.onnx --record run.json`"
        raise UsageError.of(str(path), "is not the record of a run", got=error, hint=hint) from None
    if record["schema"] > RECORD_SCHEMA:
        raise UsageError.of(
            str(path),
            "was written by a later ppuc",
            got=f"schema {record['schema']}",
            expected=f"{RECORD_SCHEMA} at most",
        )
    return dict(record)

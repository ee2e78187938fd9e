"""Describes files as records: models, dumped modules, compiled programs.

Invariant: describing a file reads no weights unless it is checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.ir.program import Instr, KernelProgram, Program, StreamLoop, StreamNode
from ppuc.ir.types import Space

if TYPE_CHECKING:
    from rich.console import Console


def model_record(path: Path) -> dict[str, Any]:
    """Describe an ONNX file."""
    from ppuc.compiler.frontend.survey import survey

    return {"kind": "model", **survey(path).record()}


def module_record(path: Path) -> dict[str, Any]:
    """Describe a dumped module at any level."""
    from ppuc.compiler.pipeline.manager import op_counts
    from ppuc.compiler.pipeline.resume import read_module

    module = read_module(path)
    types = {v.name: str(v.type) for v in (*module.graph.params, *module.graph.results)}
    record: dict[str, Any] = {
        "kind": "module",
        "target": module.target,
        "target_hash": module.target_hash,
        "options": dict(module.options),
        "done": list(module.done),
        "inputs": {name: types[value] for name, value in module.inputs},
        "outputs": {name: types[value] for name, value in module.outputs},
        "ops": op_counts(module.graph),
        "kernels": [
            {"kernel": k.name, "units": k.units, "buffers": len(k.buffers), "loc": list(k.loc)} for k in module.kernels
        ],
        "vector_programs": len(module.vectors),
    }
    return record | (program_record(module.program) if module.program is not None else {})


def artifact_record(path: Path, whole: bool = False) -> dict[str, Any]:
    """Describe a compiled program; with `whole`, also read its weights and verify the program."""
    from ppuc.targets.artifact import check, load

    artifact = check(path) if whole else load(path)
    return {
        "kind": "program",
        "name": artifact.program.name,
        "bytes": path.stat().st_size,
        "checked": whole,
        "target": artifact.program.target,
        "target_hash": artifact.program.target_hash,
        "options": {key: text for key, text in artifact.meta.items() if key not in ("nodes", "plan", "variants")},
        "nodes": json.loads(artifact.meta.get("nodes", "{}")),
        "inputs": {s.name: str(s.type) for s in artifact.inputs},
        "outputs": {s.name: str(s.type) for s in artifact.outputs},
        "vector_programs": len(artifact.vectors),
        **program_record(artifact.program),
    }


def program_record(program: Program) -> dict[str, Any]:
    """Memory by space and role, and one entry per kernel."""
    memory: Counter[tuple[str, str]] = Counter()
    top: Counter[str] = Counter()
    for tensor in program.tensors:
        memory[str(tensor.space), tensor.role] += tensor.bytes
        top[str(tensor.space)] = max(top[str(tensor.space)], tensor.address + tensor.bytes)
    return {
        "segments": len(program.segments),
        "memory": [{"space": s, "role": r, "bytes": n} for (s, r), n in sorted(memory.items())],
        "extent_bytes": dict(sorted(top.items())),
        "copies": sum(len(s.copies) for s in program.segments),
        "counters": sum(s.counters_used for s in program.segments),
        "programs": [_kernel(k) for s in program.segments for k in s.kernels],
    }


def _kernel(kernel: KernelProgram) -> dict[str, Any]:
    used = {s: max((r.base + r.slot_bytes * r.depth for r in kernel.rings if r.space is s), default=0) for s in _UNIT}
    return {
        "kernel": kernel.name,
        "grid": dict(kernel.grid),
        "rings": [
            {"ring": r.name, "tile": f"{r.dtype}{list(r.shape)}", "space": str(r.space), "depth": r.depth}
            for r in kernel.rings
        ],
        "instructions": {str(q): sum(1 for _ in _instructions(stream)) for q, stream in kernel.streams},
        "l1_bytes": used[Space.L1],
        "acc_bytes": used[Space.ACC],
        "loc": list(kernel.loc),
    }


_UNIT = (Space.L1, Space.ACC)


def _instructions(stream: tuple[StreamNode, ...]) -> Iterator[Instr]:
    for node in stream:
        if isinstance(node, StreamLoop):
            yield from _instructions(node.body)
        else:
            yield node


def show(out: Console, record: dict[str, Any]) -> None:
    """Print a record of any kind."""
    from ppuc.compiler.report.tables import quantity, table

    inner = {"programs", "memory", "kernels", "ops", "inputs", "outputs", "options", "nodes"}
    hidden = {*inner, "file", "kind", "checked"}
    out.print(f"{record['file']}: {record['kind']} {record.get('name', '')}".rstrip())
    for key, value in record.items():
        if key not in hidden and key != "name":
            out.print(f"  {key.replace('_', ' ')}: {_flat(_sized(key, value))}")
    if record.get("checked"):
        out.print("  checked: all checksums match")
    for key in ("inputs", "outputs", "options"):
        _show_pairs(out, key, record.get(key, {}))
    if record.get("ops"):
        table(out, "\nops", ("op", "count"), record["ops"].items())
    if record.get("memory"):
        rows = [(m["space"], m["role"], quantity(m["bytes"], "B")) for m in record["memory"]]
        table(out, "\nmemory", ("space", "role", "bytes"), rows, left=(0, 1))
    if record.get("programs"):
        columns = ("kernel", "units", "rings", "code", "l1", "acc", "from")
        table(out, "\nkernels", columns, map(_program_row, record["programs"]), left=(0, 6))
    elif record.get("kernels"):
        lines = [(k["kernel"], k["units"], k["buffers"], _flat(k["loc"][:2])) for k in record["kernels"]]
        table(out, "\nkernels", ("kernel", "units", "buffers", "from"), lines, left=(0, 3))


def _program_row(kernel: dict[str, Any]) -> tuple[object, ...]:
    from ppuc.compiler.report.tables import capacity, shortened

    memory = (capacity(kernel["l1_bytes"]), capacity(kernel["acc_bytes"]))
    grid = " x ".join(map(str, kernel["grid"].values()))
    code = sum(kernel["instructions"].values())
    more = f" +{len(kernel['loc']) - 1}" if len(kernel["loc"]) > 1 else ""
    origin = shortened(kernel["loc"][0], 22) + more if kernel["loc"] else ""
    return (shortened(kernel["kernel"], 24), grid, len(kernel["rings"]), code, *memory, origin)


def _sized(key: str, value: Any) -> Any:
    """Byte counts and numbers of parameters with a prefix."""
    from ppuc.compiler.report.tables import quantity

    if key == "bytes":
        return quantity(value, "B")
    if key == "parameters":
        return quantity(value)
    return {space: quantity(size, "B") for space, size in value.items()} if key == "extent_bytes" else value


def _show_pairs(out: Console, key: str, entries: dict[str, str] | list[str]) -> None:
    lines = [f"{k}: {v}" for k, v in entries.items()] if isinstance(entries, dict) else entries
    for line in lines:
        out.print(f"  {key.removesuffix('s')} {line}")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

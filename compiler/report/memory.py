"""The memory plan: addresses and live ranges of tensors in l2 and hbm.

A step is a group of the graph (or a stage copy) in a model or a dump, a kernel in a compiled program. Invariant: the
plan shown is the one that the pipeline compiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.passes.memory.capacity import holdings
from ppuc.compiler.passes.memory.l2_plan import overwritten
from ppuc.compiler.passes.memory.minimalloc import max_live
from ppuc.compiler.passes.memory.ranges import Range
from ppuc.compiler.passes.remarks import Remark
from ppuc.compiler.pipeline.resume import read_module
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module
from ppuc.ir.program import Program
from ppuc.ir.types import Space
from ppuc.targets.schema import Target

if TYPE_CHECKING:
    from rich.console import Console

SPACES = (Space.L2, Space.HBM)
SHOWN = 10
"""Maximum tensors per space in the table."""

_ROLES = {"const": "constant", "temp": "activation"}


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes `[address, address + bytes)` live from step `start` to step `end`, both included. `tensor` is the ONNX name
    of a tensor, or of the node that computes it."""

    tensor: str
    role: str
    type: str
    address: int
    bytes: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """One memory. `bound` is a lower bound for any plan: the bytes live at the fullest step."""

    space: str
    capacity: int
    extent: int
    bound: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """`steps` names each step by its last ONNX node."""

    name: str
    target: str
    steps: tuple[str, ...]
    spaces: tuple[SpacePlan, ...]

    def record(self) -> dict[str, Any]:
        """As JSON; blocks by falling size."""
        spaces = [asdict(s) for s in self.spaces]
        for s in spaces:
            s["blocks"] = sorted(s["blocks"], key=lambda b: (-b["bytes"], b["address"], b["start"]))
        return {"kind": "memory", "target": self.target, "steps": list(self.steps), "spaces": spaces}


def plan_of_dump(file: Path, target: Target) -> MemoryPlan:
    """The plan in a `.ppir`. Raises UsageError for a dump without addresses."""
    module = read_module(file)
    if not module.placement:
        done = ", ".join(module.done)
        raise UsageError.of(str(file), "holds no addresses yet", got=f"done: {done}", expected="a dump of allocate")
    return plan_of_module(module, target)


def plan_of_module(module: Module, target: Target) -> MemoryPlan:
    """Placements of a module with their live steps."""
    names = [{value: name for name, value in pairs} for pairs in (module.inputs, module.outputs)]
    held = {h.name: h for h in holdings(module.graph, *names)}
    ops = module.graph.ops
    number = list(accumulate((op.name != "const" for op in ops), initial=0))  # constants are not steps
    blocks: dict[Space, list[Block]] = {space: [] for space in SPACES}
    at = {p.name: (p.space, p.address) for p in module.placement}
    replaced = {old for new, old in overwritten(module.graph).items() if at.get(new, new) == at.get(old, old)}
    for p in module.placement:
        if p.space in blocks and p.name in held:
            h = held[p.name]
            end = number[min(h.end, len(ops))] - (p.name in replaced)  # its successor holds the last step
            block = Block(h.label, h.role, str(h.type), p.address, p.bytes, number[max(h.start, 0)], end)
            blocks[p.space].append(block)
    steps = tuple(op.loc[-1] if op.loc else op.name for op in ops if op.name != "const")
    return MemoryPlan(module.graph.name, target.name, steps, _spaces(blocks, target))


def plan_of_program(program: Program, target: Target) -> MemoryPlan:
    """Tensors of a compiled program from the first to the last kernel that accesses them. Stage copies run concurrently
    with kernels: their destinations count from the first reader on."""
    kernels = [k for s in program.segments for k in s.kernels]
    touched: dict[str, list[int]] = {}
    for step, kernel in enumerate(kernels):
        for param in kernel.params:
            touched.setdefault(param.tensor, []).append(step)
    names = {t.name: t.source or t.name for t in program.tensors}
    names |= {tensor: name for name, tensor in (*program.inputs, *program.outputs)}
    staged = {c.dst: names[c.src] for s in program.segments for c in s.copies}
    blocks: dict[Space, list[Block]] = {space: [] for space in SPACES}
    for t in program.tensors:
        steps = touched.get(t.name, [0])
        whole = t.role != "temp"
        start, end = (0, max(len(kernels) - 1, 0)) if whole else (steps[0], steps[-1])
        role = "staged" if t.name in staged else _ROLES.get(t.role, t.role)
        label = staged.get(t.name, names[t.name])
        if t.space in blocks:
            blocks[t.space].append(Block(label, role, f"{t.dtype}[{t.elements}]", t.address, t.bytes, start, end))
    return MemoryPlan(program.name, program.target, tuple(k.name for k in kernels), _spaces(blocks, target))


def refused(remarks: Sequence[Remark]) -> list[dict[str, Any]]:
    """Candidates that are not in l2, with the additional device-memory bytes and a lower bound on the cycles lost,
    costliest first."""
    found = [r for r in remarks if r.decision in ("kept-in-hbm", "not-staged")]
    return [
        {
            "tensor": r.entity,
            "nodes": list(r.nodes),
            "bytes": r.details["bytes"],
            "saved_bytes": r.details["saved_bytes"],
            "lost_clk": r.lost_clk,
            "why": r.reason,
        }
        for r in sorted(found, key=lambda r: -r.lost_clk)
    ]


def _spaces(blocks: Mapping[Space, Sequence[Block]], target: Target) -> tuple[SpacePlan, ...]:
    capacities = {Space.L2: target.l2.bytes, Space.HBM: target.hbm.bytes}
    return tuple(
        SpacePlan(
            str(space),
            capacities[space],
            max((b.address + b.bytes for b in found), default=0),
            max_live([Range(b.tensor, b.bytes, b.start, b.end) for b in found]),
            tuple(sorted(found, key=lambda b: (b.address, b.start))),
        )
        for space, found in blocks.items()
    )


def show(out: Console, record: dict[str, Any]) -> None:
    """Print the contents of each memory, and its largest tensors."""
    from ppuc.compiler.report.tables import quantity, table

    for s in record["spaces"]:
        out.print(
            f"{s['space']}: {len(s['blocks'])} tensors in {quantity(s['extent'], 'B')} of "
            f"{quantity(s['capacity'], 'B')}; alive together at most {quantity(s['bound'], 'B')}"
        )
        rows = [
            (b["tensor"], b["role"], b["type"], quantity(b["bytes"], "B"), b["address"], f"{b['start']}-{b['end']}")
            for b in s["blocks"][:SHOWN]
        ]
        if rows:
            table(out, "", ("tensor", "role", "type", "bytes", "address", "steps"), rows, left=(0, 1, 2))
    if record["refused"]:
        costliest = record["refused"][:SHOWN]
        lines = [(r["tensor"], quantity(r["bytes"], "B"), f"{r['lost_clk']:,.0f}", r["why"]) for r in costliest]
        title = f"not in l2 (the costliest {len(costliest)} of {len(record['refused'])})"
        table(out, title, ("tensor", "bytes", "costs clk", "reason"), lines, left=(0, 3))
    out.print(f"drawn in {record['drawing']}")

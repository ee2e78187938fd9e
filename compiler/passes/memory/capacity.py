"""Memory use over time, under ONNX names, and the error when the model does not fit.

Invariant: tensors that share memory (views, in-place updates) are counted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.passes.memory.live_ranges import assign, live_ranges, storage_roots
from ppuc.compiler.passes.memory.minimalloc import max_live
from ppuc.compiler.passes.memory.ranges import Range, padded
from ppuc.compiler.precisions import named_precision
from ppuc.ir.errors import CapacityError, Diagnostic, Entity, EntityKind
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.ir.types import DType, Space, TensorType
from ppuc.targets.description import builtin_targets, load_target
from ppuc.targets.schema import Target

SHOWN = 5
"""Number of tensors that an error names."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A tensor in memory from step `start` to step `end`, both included. `name` is its value in the graph, `label` the
    ONNX tensor or node that it comes from, `role` one of input, output, constant, staged, activation."""

    name: str
    label: str
    role: str
    type: TensorType
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Size including alignment."""
        return padded(self.type)

    @property
    def range(self) -> Range:
        """The live range for the allocator."""
        return Range(self.name, self.bytes, self.start, self.end)


def holdings(graph: Graph, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> list[Holding]:
    """Every tensor of `graph` that has memory of its own. `inputs` and `outputs` map value names to ONNX names."""
    roots = storage_roots(graph)
    live = live_ranges(graph, roots)
    producers = {r.name: op for op in graph.ops for r in op.results}
    types = {v.name: v.type for v in graph.params} | {r.name: r.type for op in graph.ops for r in op.results}
    written = {roots[value]: onnx_name for value, onnx_name in outputs.items()}
    found = []
    for name, (start, end) in live.items():
        role, label = _origin(name, producers, inputs, written)
        found.append(Holding(name, label, role, types[name], start, end))
    return found


def _origin(
    name: str, producers: Mapping[str, Op], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> tuple[str, str]:
    """Role and label of a tensor; a staged copy has the label of its source."""
    op = producers.get(name)
    if op is None:
        return "input", inputs.get(name, name)
    if op.name == "const":
        return "constant", op.attrs.value.name or name  # type: ignore[attr-defined]
    if op.name == "stage":
        return "staged", _origin(op.operands[0].name, producers, inputs, outputs)[1]
    if name in outputs:
        return "output", outputs[name]
    return "activation", op.loc[-1] if op.loc else name


def require_hbm(module: Module, graph: Graph, spaces: Mapping[str, Space], target: Target) -> None:
    """Raise CapacityError if the tensors that `spaces` assigns to hbm exceed it."""
    names = [{value: name for name, value in pairs} for pairs in (module.inputs, module.outputs)]
    held = [h for h in holdings(graph, *names) if spaces.get(h.name) is Space.HBM]
    capacity = target.hbm.bytes
    if sum(h.bytes for h in held) <= capacity:
        return
    needed = max_live([h.range for h in held])
    if needed <= capacity and not assign([h.range for h in held], capacity)[1]:
        return
    raise CapacityError(_refusal(module, graph, held, needed, target))


def _refusal(module: Module, graph: Graph, held: Sequence[Holding], needed: int, target: Target) -> Diagnostic:
    step = fullest_step(held)
    alive = sorted((h for h in held if h.start <= step <= h.end), key=lambda h: (-h.bytes, h.name))
    shares = {role: sum(h.bytes for h in alive if h.role == role) for role in ("constant", "input", "output")}
    shares["activation"] = sum(h.bytes for h in alive) - sum(shares.values())
    parts = ", ".join(f"{role}s {size:,}" for role, size in shares.items() if size)
    largest = "; ".join(f"{h.role} '{h.label}' {h.type}: {h.bytes:,}" for h in alive[:SHOWN])
    return Diagnostic(
        f"target {target.name}",
        "the model does not fit hbm",
        f"{needed:,} bytes live at {step_name(graph, step)} ({parts}); largest: {largest}",
        f"at most {target.hbm.bytes:,} bytes",
        _remedies(module, held, needed, target, shares),
        _entities(alive[:SHOWN]),
    )


def _entities(holdings: Sequence[Holding]) -> tuple[Entity, ...]:
    """Error entities: inputs, outputs and constants by ONNX name, other tensors by graph name."""
    kinds = {"input": EntityKind.INPUT, "output": EntityKind.OUTPUT, "constant": EntityKind.TENSOR}
    return tuple(
        Entity(kinds[h.role], h.label) if h.role in kinds else Entity(EntityKind.TENSOR, h.name) for h in holdings
    )


def fullest_step(held: Sequence[Holding]) -> int:
    """The first step with the most live bytes."""
    steps = sorted({h.start for h in held})
    return max(steps, key=lambda s: (sum(h.bytes for h in held if h.start <= s <= h.end), -s), default=0)


def step_name(graph: Graph, step: int) -> str:
    """Description of a step by the node whose kernel runs in it."""
    op = graph.ops[step] if 0 <= step < len(graph.ops) else None
    return "the start" if op is None or not op.loc else f"node '{op.loc[-1]}'"


def _remedies(module: Module, held: Sequence[Holding], needed: int, target: Target, shares: Mapping[str, int]) -> str:
    """Hints on how to make the model fit, with numbers."""
    found = []
    wide = sum(h.bytes for h in held if h.role == "constant" and h.type.dtype is DType.F32)
    narrow = needed - wide // 2
    stored_wide = named_precision(module.option("precision", "model"), "precision").storage_type is None
    if wide and narrow <= target.hbm.bytes and stored_wide:
        found.append(f"--precision bf16 (weights in half the bytes: about {narrow:,})")
    if shares["constant"] <= target.hbm.bytes and needed - shares["constant"] > shares["constant"]:
        found.append("smaller sizes with --dim (most of it grows with the inputs)")
    others = (load_target(name) for name in builtin_targets() if name != target.name)
    larger = [t for t in others if t.hbm.bytes >= needed]
    if larger:
        best = min(larger, key=lambda t: (t.hbm.bytes, t.name))
        found.append(f"--target {best.name} (hbm of {best.hbm.bytes:,} bytes)")
    found.append(f"--set hbm.bytes={needed} to see what more memory would give")
    return "; or ".join(found)

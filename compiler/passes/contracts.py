"""What passes need of a module and leave in it: named predicates that the pass manager checks.

A pass lists those that must hold before it (`requires`) and those that hold after it (`ensures`). Later passes may end
what an earlier one ensured: a contract is about the module between two passes, not about all that follow.

Invariant: a check looks at the module alone and names the first entity that breaks the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ppuc.ir.graph import Op
from ppuc.ir.module import Module
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.reduction import ReduceAttrs


@dataclass(frozen=True, slots=True)
class Contract:
    """`rule` is what holds, `broken` finds what breaks it in a module: the first entity, or "" when there is none."""

    name: str
    rule: str
    broken: Callable[[Module], str]


def _first(module: Module, wrong: Callable[[Op], bool]) -> str:
    return next((str(op.results[0]) for op in module.graph.ops if wrong(op)), "")


def _named(*names: str) -> Callable[[Module], str]:
    return lambda module: _first(module, lambda op: op.name in names)


def _groups(module: Module) -> Iterator[Op]:
    return (op for op in module.graph.ops if op.name == "group")


def _no_space(module: Module) -> str:
    return _first(module, lambda op: any(r.space is None for r in op.results))


def _no_kernel(module: Module) -> str:
    known = {kernel.name for kernel in module.kernels}
    return next((str(op.results[0]) for op in _groups(module) if getattr(op.attrs, "kernel", "") not in known), "")


def _no_address(module: Module) -> str:
    placed = {p.name for p in module.placement}
    buffers = (f"{kernel.name}/{buffer.name}" for kernel in module.kernels for buffer in kernel.buffers)
    return next((name for name in buffers if name not in placed), "")


FEW_MOVES = Contract(
    "few_moves",
    "movement is concat, gather along an axis, scatter of rows and pads",
    _named("gather_nd", "gather_elements", "scatter_elements"),
)
PLAIN_PADS = Contract(
    "plain_pads",
    "every pad is constant",
    lambda module: _first(module, lambda op: isinstance(op.attrs, PadAttrs) and op.attrs.mode != "constant"),
)
FULL_RANK = Contract(
    "full_rank",
    "every reduction keeps its axes",
    lambda module: _first(module, lambda op: isinstance(op.attrs, ReduceAttrs) and not op.attrs.keepdims),
)
GROUPED = Contract(
    "grouped",
    "every op that computes or moves is in a group",
    lambda module: _first(module, lambda op: op.name not in ("const", "group", "reshape", "empty", "stage")),
)
SPACES_ASSIGNED = Contract("spaces_assigned", "every value has a memory", _no_space)
TILED = Contract("tiled", "every group names a kernel of the module", _no_kernel)
ALLOCATED = Contract("allocated", "every buffer of a kernel has an address", _no_address)
EMITTED = Contract("emitted", "the module holds a program", lambda m: "" if m.program is not None else m.graph.name)

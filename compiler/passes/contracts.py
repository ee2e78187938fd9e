"""Contracts: named preconditions and postconditions of passes that the pass manager checks.

A pass lists its preconditions (`requires`) and postconditions (`ensures`). A postcondition need not survive later
passes.

Invariant: a check depends only on the module and the target, and names the first entity that breaks the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ppuc.compiler.lowering.kinds import anchoring_ops
from ppuc.ir.graph import Op
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import Target


@dataclass(frozen=True, slots=True)
class Contract:
    """`rule` states the property; `broken` returns the first entity of a module that violates it on a target, or ""."""

    name: str
    rule: str
    broken: Callable[[Module, Target], str]


def _first(module: Module, wrong: Callable[[Op], bool]) -> str:
    return next((str(op.results[0]) for op in module.graph.ops if wrong(op)), "")


def _named(*names: str) -> Callable[[Module, Target], str]:
    return lambda module, _: _first(module, lambda op: op.name in names)


def _composite(module: Module, _: Target) -> str:
    kept = {*anchoring_ops(), "unblock"}
    return _first(module, lambda op: OPS[op.name].decompose is not None and op.name not in kept)


def _foreign_format(module: Module, target: Target) -> str:
    return _first(module, lambda op: op.name in CONTRACTIONS and not multiplies(target, op.operands[0].type.dtype))


def multiplies(target: Target, dtype: DType) -> bool:
    """Whether the tensor engine takes operands of `dtype`. u8 runs as i8 with a wider product."""
    return target.tensor.supports(DType.I8 if dtype is DType.U8 else dtype)


def _groups(module: Module) -> Iterator[Op]:
    return (op for op in module.graph.ops if op.name == "group")


def _is_plain(pad: PadAttrs) -> bool:
    return pad.mode == "constant" and not any(pad.interior) and min((*pad.low, *pad.high), default=0) >= 0


def _no_space(module: Module, _: Target) -> str:
    return _first(module, lambda op: any(r.space is None for r in op.results))


def _no_kernel(module: Module, _: Target) -> str:
    known = {kernel.name for kernel in module.kernels}
    return next((str(op.results[0]) for op in _groups(module) if getattr(op.attrs, "kernel", "") not in known), "")


def _no_address(module: Module, _: Target) -> str:
    placed = {p.name for p in module.placement}
    buffers = (f"{kernel.name}/{buffer.name}" for kernel in module.kernels for buffer in kernel.buffers)
    return next((name for name in buffers if name not in placed), "")


CONTRACTIONS = ("matmul", "conv", "attention")
"""Ops that the tensor engine computes."""

PRIMITIVE = Contract("primitive", "every composite op has a kernel of its own", _composite)
MACHINE_FORMATS = Contract(
    "machine_formats", "every contraction multiplies a format of the tensor engine", _foreign_format
)
CHANNELS_LAST = Contract(
    "channels_last",
    "every convolution and pool has its channels last",
    lambda module, _: _first(
        module, lambda op: isinstance(op.attrs, ConvAttrs | PoolAttrs) and op.attrs.layout == "nchw"
    ),
)
FEW_MOVES = Contract(
    "few_moves",
    "movement is concat, gather along an axis, scatter of rows and pads",
    _named("gather_nd", "gather_elements", "scatter_elements"),
)
PLAIN_PADS = Contract(
    "plain_pads",
    "every pad is constant, without interior, and crops nothing",
    lambda module, _: _first(module, lambda op: isinstance(op.attrs, PadAttrs) and not _is_plain(op.attrs)),
)
FULL_RANK = Contract(
    "full_rank",
    "every reduction keeps its axes",
    lambda module, _: _first(module, lambda op: isinstance(op.attrs, ReduceAttrs) and not op.attrs.keepdims),
)
NOT_EMPTY = Contract(
    "not_empty",
    "no op reads or computes an empty tensor",
    lambda module, _: _first(
        module, lambda op: op.name != "const" and any(not v.type.elements for v in (*op.operands, *op.results))
    ),
)
GROUPED = Contract(
    "grouped",
    "every op that computes or moves is in a group",
    lambda module, _: _first(module, lambda op: op.name not in ("const", "group", "reshape", "empty", "stage")),
)
SPACES_ASSIGNED = Contract("spaces_assigned", "every value has a memory", _no_space)
TILED = Contract("tiled", "every group names a kernel of the module", _no_kernel)
ALLOCATED = Contract("allocated", "every buffer of a kernel has an address", _no_address)
EMITTED = Contract("emitted", "the module holds a program", lambda m, _: "" if m.program is not None else m.graph.name)

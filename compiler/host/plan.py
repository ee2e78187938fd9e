"""The execution plan of a program with host steps, as stored in the artifact.

Invariant: a step reads only model inputs and results of earlier steps; names are unique in the plan. Types of tensors
that the PPU reads or writes are known; others concern only the host.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ppuc.compiler.frontend.offload.product_ops import PRODUCTS

PLAN = "plan"
"""Metadata key of the artifact."""


@dataclass(frozen=True, slots=True)
class HostedNode:
    """A node of the model that the host runs, and the reason."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostStep:
    """A host model: `model` is its name in the artifact; its inputs and outputs have names of the plan. `custom`: its
    ops are Python functions of the user."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[HostedNode, ...]
    custom: bool = False


@dataclass(frozen=True, slots=True)
class PpuStep:
    """A segment of the program; `inputs` and `outputs` pair names of the plan with tensors of the program."""

    segment: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DeferredStep:
    """Nodes that are compiled for the PPU at run time, when their sizes are known: `model` is their ONNX model in the
    artifact. `control`: it is one If, Loop or Scan, whose bodies are compiled and whose trips the host counts."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[HostedNode, ...]
    control: bool = False

    @property
    def name(self) -> str:
        """The node that is likely to have most of the arithmetic."""
        return next((n.node for n in self.nodes if n.op.rpartition(".")[2] in PRODUCTS), self.nodes[0].node)


Step = HostStep | PpuStep | DeferredStep


@dataclass(frozen=True, slots=True)
class Plan:
    """`inputs` and `outputs` pair ONNX names with names of the plan; `host_inputs` and `host_outputs` are the types, as
    text, of inputs and outputs (by ONNX name) that only the host can hold; `types` are those of tensors that the PPU
    accesses."""

    steps: tuple[Step, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    host_inputs: tuple[tuple[str, str], ...] = ()
    host_outputs: tuple[tuple[str, str], ...] = ()
    types: tuple[tuple[str, str], ...] = field(default=())

    @property
    def nodes(self) -> tuple[HostedNode, ...]:
        """All nodes on the host, in order."""
        return tuple(n for s in self.steps if isinstance(s, HostStep) for n in s.nodes)

    @property
    def deferred(self) -> tuple[HostedNode, ...]:
        """All nodes compiled at run time, in order."""
        return tuple(n for s in self.steps if isinstance(s, DeferredStep) for n in s.nodes)

    @property
    def ppu_steps(self) -> tuple[PpuStep, ...]:
        return tuple(s for s in self.steps if isinstance(s, PpuStep))

    def to_json(self) -> str:
        """The JSON stored in the artifact."""
        steps = [{"kind": _KINDS[type(s)], **asdict(s)} for s in self.steps]
        return json.dumps({**asdict(self), "steps": steps}, sort_keys=True)

    @staticmethod
    def of_json(text: str) -> Plan:
        """Inverse of `to_json`. Raises ValueError, KeyError or TypeError for damaged text."""
        data = json.loads(text)
        pairs = ("inputs", "outputs", "host_inputs", "host_outputs", "types")
        return Plan(tuple(map(_step, data["steps"])), **{key: _pairs(data[key]) for key in pairs})


_KINDS: dict[type, str] = {HostStep: "host", PpuStep: "ppu", DeferredStep: "deferred"}


def _step(data: dict[str, Any]) -> Step:
    if data["kind"] == "ppu":
        return PpuStep(int(data["segment"]), _pairs(data["inputs"]), _pairs(data["outputs"]))
    nodes = tuple(HostedNode(**n) for n in data["nodes"])
    place = (data["model"], tuple(data["inputs"]), tuple(data["outputs"]), nodes)
    if data["kind"] == "deferred":
        return DeferredStep(*place, bool(data["control"]))
    return HostStep(*place, bool(data["custom"]))


def _pairs(data: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((first, second) for first, second in data)

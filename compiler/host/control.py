"""Runs If, Loop and Scan on the host: it counts trips, evaluates conditions and stacks results; callers compute the
bodies.

Invariant: the results are those of the ONNX node; results of a loop without trips are not computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppuc.compiler.frontend.offload.deferred import Body, ControlNode
from ppuc.compiler.host.client import HostError
from ppuc.ir.errors import Entity, EntityKind

MOST_TRIPS = 100_000
"""Maximum trips before a loop counts as endless."""

Call = Callable[[str, Body, Mapping[str, Any]], Sequence[Any]]
"""Computes a body, given by its attribute name, on its inputs; returns its outputs in order."""


class OnHostError(Exception):
    """The host must compute a node that was to be compiled, for the given reason."""


def run_control(node: ControlNode, feeds: Mapping[str, Any], call: Call) -> list[Any]:
    """The outputs of `node`; `feeds` holds its inputs by name, including those of its bodies. Raises OnHostError, and
    HostError for an endless loop."""
    known = {**node.constants, **feeds}
    given = [known[name] if name else None for name in node.inputs]
    if node.kind == "If":
        branch = "then_branch" if _truth(given[0]) else "else_branch"
        body = node.bodies[branch]
        return list(call(branch, body, _outer(body, known)))
    body = node.bodies["body"]

    def trip(own: Sequence[Any]) -> Sequence[Any]:
        return call("body", body, {**_outer(body, known), **dict(zip(body.inputs, own, strict=True))})

    return _loop(node, body, given, trip) if node.kind == "Loop" else _scan(node, body, given, trip)


def _truth(value: Any) -> bool:
    return bool(np.reshape(value, ()))


def _outer(body: Body, known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: known[name] for name in body.outer}


def _loop(
    node: ControlNode, body: Body, given: Sequence[Any], trip: Callable[[Sequence[Any]], Sequence[Any]]
) -> list[Any]:
    first, second, *carried = (*given, None)[: max(len(given), 2)]
    trips = None if first is None else int(np.reshape(first, ()))
    going = second is None or _truth(second)
    stacks: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    number = 0
    while going and (trips is None or number < trips):
        if trips is None and number >= MOST_TRIPS:
            raise HostError.of(
                f"node '{node.name}' (Loop)",
                "the loop does not end",
                got=f"more than {MOST_TRIPS} trips",
                entities=(Entity(EntityKind.NODE, node.name),),
            )
        more, *results = trip([np.array(number, np.int64), np.array(going), *carried])
        going = second is None or _truth(more)
        carried = results[: len(carried)]
        for stack, element in zip(stacks, results[len(carried) :], strict=True):
            stack.append(element)
        number += 1
    return [*carried, *(_stacked(stack, 0) for stack in stacks)]


def _scan(
    node: ControlNode, body: Body, given: Sequence[Any], trip: Callable[[Sequence[Any]], Sequence[Any]]
) -> list[Any]:
    count = node.attributes["num_scan_inputs"][0]
    states, scanned = list(given[: len(given) - count]), given[len(given) - count :]
    results = len(body.outputs) - len(states)
    axes = _attribute(node, "scan_input_axes", count)
    backward = _attribute(node, "scan_input_directions", count)
    lengths = {np.shape(a)[axis] for a, axis in zip(scanned, axes, strict=True)}
    if len(lengths) != 1:
        raise OnHostError("what it scans has no common length")
    (length,) = lengths
    stacks: list[list[Any]] = [[] for _ in range(results)]
    for number in range(length):
        at = [length - 1 - number if b else number for b in backward]
        elements = [np.take(a, i, axis) for a, i, axis in zip(scanned, at, axes, strict=True)]
        outputs = trip([*states, *elements])
        states = list(outputs[: len(states)])
        for stack, element in zip(stacks, outputs[len(states) :], strict=True):
            stack.append(element)
    placed, prepended = (_attribute(node, f"scan_output_{what}", results) for what in ("axes", "directions"))
    ordered = [stack[::-1] if p else stack for stack, p in zip(stacks, prepended, strict=True)]
    return [*states, *(_stacked(stack, axis) for stack, axis in zip(ordered, placed, strict=True))]


def _attribute(node: ControlNode, name: str, count: int) -> list[int]:
    return list(node.attributes.get(name, [0] * count))


def _stacked(stack: Sequence[Any], axis: int) -> Any:
    if not stack:
        raise OnHostError("it makes no trip")
    if len({np.shape(a) for a in stack}) > 1:
        raise OnHostError("its results change shape")
    return np.stack(stack, axis)


__all__ = ["Call", "OnHostError", "run_control"]

"""Tensors that ops only move: channel shuffles, concatenations, splits, pooling by maximum, nearest resizing.

Rounding commutes with moving. Where only layers of one format and one scale read what a chain of such ops makes, the
elements are rounded by what computes them, moved in 8 bits, and no kernel quantizes them later:

    %c = concat(%a, %b)                        %p: f8 = cast(%a * (1 / s))   (joins the kernel of %a)
    %q: f8 = cast(%c * (1 / s))     ->         %q: f8 = concat(%p, cast(%b * (1 / s)))

Scales of layers that read parts of such a chain are made equal where their formats lose little by it.

Invariant: moving stored numbers gives the bits that storing moved ones does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.types import DType

Stored = tuple[float, DType]
"""A static scale, and the type of the stored numbers."""

WIDEST_FLOAT, WIDEST_INTEGER = 8.0, 1.25
"""The largest ratio of scales that are made equal. The precision of floating-point numbers is relative: of E4M3's 17
binades the lowest three go. Integers lose a bit for each factor of two."""


def moved_operands(op: Op) -> tuple[Value, ...]:
    """The operands whose elements, and zeros, make up the result; () if `op` computes something."""
    if op.name in ("reshape", "transpose", "slice", "concat", "expand"):
        return op.operands
    if op.name == "gather":
        return op.operands[:1]
    if op.name == "pad":
        zeros = op.attrs.mode != "constant" or op.attrs.value == 0  # type: ignore[attr-defined]
        return op.operands[:1] if zeros else ()
    if op.name == "pool":
        return op.operands if op.attrs.kind == "max" else ()  # type: ignore[attr-defined]
    return ()


def stored_in(layer: Layer, plan: LayerPlan, operand: int) -> Stored | None:
    """How a layer stores an operand; None if its type stays, or its scale is computed at run time or applies to
    differences."""
    if operand >= len(layer.inputs) or not plan.quantized or plan.weights_only or not plan.scales:
        return None
    if operand == 0 and plan.offset is not None:
        return None
    return plan.scales[operand], plan.input_dtype(operand)


def moved_in_8_bits(graph: Graph, chosen: Mapping[str, tuple[Layer, LayerPlan]]) -> dict[str, Stored]:
    """Parameters, and results of ops that move elements, by name, which all readers, also through more such ops, store
    alike, and which are made of such values or of computed ones. `chosen` has the quantized layers and their plans by
    result."""
    wanted: defaultdict[str, set[Stored | None]] = defaultdict(set)
    for value in graph.results:
        wanted[value.name].add(None)
    for op in reversed(graph.ops):
        layer = chosen.get(op.results[0].name)
        moved = {v.name for v in moved_operands(op)}
        for i, value in enumerate(op.operands):
            if layer is not None:
                wanted[value.name].add(stored_in(*layer, i))
            else:
                wanted[value.name] |= wanted[op.results[0].name] if value.name in moved else {None}
    uncomputed = [*(p.name for p in graph.params), *(op.results[0].name for op in graph.ops if moved_operands(op))]
    found: dict[str, Stored] = {}
    for name in uncomputed:
        formats = wanted[name]
        if len(formats) == 1 and (only := next(iter(formats))) is not None:
            found[name] = only
    refused = {*uncomputed} - {*found}
    for op in graph.ops:
        if any(v.name in refused for v in moved_operands(op)):  # no kernel computes them that could round them, too
            refused.add(op.results[0].name)
            found.pop(op.results[0].name, None)
    return found


def with_shared_scales(graph: Graph, layers: Iterable[Layer], plan: Plan) -> Plan:
    """`plan` with equal scales for operands that are moved parts of each other, where they are similar."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.get(name, name) != name:
            name = root[name]
        return name

    for op in graph.ops:
        for value in moved_operands(op):
            root[find(value.name)] = find(op.results[0].name)
    alike: defaultdict[tuple[str, DType], list[tuple[str, int]]] = defaultdict(list)
    for layer in layers:
        for i, value in enumerate(layer.inputs):
            if layer.name in plan.layers and (stored := stored_in(layer, plan.layers[layer.name], i)) is not None:
                alike[find(value.name), stored[1]].append((layer.name, i))
    changed = dict(plan.layers)
    for (_, dtype), operands in alike.items():
        scales = [changed[name].scales[i] for name, i in operands]
        if max(scales) > min(scales) * (WIDEST_INTEGER if dtype.is_integer else WIDEST_FLOAT):
            continue
        for name, i in operands:
            own = changed[name].scales
            changed[name] = replace(changed[name], scales=(*own[:i], max(scales), *own[i + 1 :]))
    return plan.with_layers(changed)

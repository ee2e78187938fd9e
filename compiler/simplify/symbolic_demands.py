"""Sizes of symbolic dimensions that weights and constant shapes require.

Invariant: a size is required only if the model runs with no other, except for broadcasts of size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ppuc.compiler.simplify.model import ModelGraph, Node, Shape
from ppuc.compiler.simplify.symbolic_shapes import BROADCASTING
from ppuc.compiler.simplify.symbolic_sizes import Poly, Size, product

Equation = tuple[Size, Size]

_PER_CHANNEL = {"BatchNormalization": 1, "InstanceNormalization": 1, "GroupNormalization": 1}
_RECURRENT = ("RNN", "GRU", "LSTM")


def demanded_sizes(g: ModelGraph) -> dict[str, int]:
    """The required sizes by symbol. The types of `g` must be inferred already."""
    equations = [e for node in g.nodes if not node.domain for e in _equations(g, node)]
    found: dict[str, int] = {}
    while True:
        more: dict[str, int] = {}
        for a, b in equations:
            for unknown, size in ((a, _value(b, found)), (b, _value(a, found))):
                if isinstance(unknown, Poly) and size is not None and (solved := _solved(unknown, size, found)):
                    more.setdefault(*solved)
        more = {symbol: size for symbol, size in more.items() if symbol not in found}
        if not more:
            return found
        found |= more


def _value(size: Size, found: Mapping[str, int]) -> int | None:
    """The value of a size; None if it has unknown symbols."""
    if isinstance(size, int):
        return size
    total = 0
    for symbols, coefficient in size.terms:
        for symbol in symbols:
            if symbol not in found:
                return None
            coefficient *= found[symbol]
        total += coefficient
    return total


def _solved(size: Poly, value: int, found: Mapping[str, int]) -> tuple[str, int] | None:
    """The only unknown symbol of `size`, if `size` is linear in it, and the symbol's value for which `size` equals
    `value`."""
    unknown = {symbol for symbols, _ in size.terms for symbol in symbols if symbol not in found}
    if len(unknown) != 1:
        return None
    (name,) = unknown
    factor = constant = 0
    for symbols, coefficient in size.terms:
        for symbol in symbols:
            coefficient *= found.get(symbol, 1)
        if symbols.count(name) > 1:
            return None
        factor, constant = (factor + coefficient, constant) if name in symbols else (factor, constant + coefficient)
    if not factor or (value - constant) % factor or (value - constant) // factor < 0:
        return None
    return name, (value - constant) // factor


def _equations(g: ModelGraph, node: Node) -> Iterator[Equation]:
    """Sizes that are equal whenever the node runs."""
    shapes = [g.shape(name) if name else None for name in node.inputs]
    x, w = (*shapes, None, None)[:2]
    if node.op in BROADCASTING or node.op == "PRelu":
        yield from _broadcast([s for s in shapes if s is not None])
    if node.op == "Reshape" and x is not None:
        yield from _reshaped(g, node, x)
    if node.op == "Concat":
        yield from _concatenated(node, shapes)
    if not x or not w:
        return
    if node.op == "MatMul":
        yield x[-1], w[-2 if len(w) > 1 else 0]
        yield from _broadcast([x[:-2], w[:-2]])
    elif node.op == "Gemm" and len(x) == len(w) == 2:
        yield x[0 if node.attr("transA", 0) else 1], w[1 if node.attr("transB", 0) else 0]
    elif node.op == "Conv" and len(x) > 2 and isinstance(w[1], int):
        yield x[1], w[1] * int(node.attr("group", 1))
    elif node.op == "ConvTranspose" and len(x) > 2:
        yield x[1], w[0]
    elif node.op in _PER_CHANNEL and len(x) > 1 and (node.op != "GroupNormalization" or g.opset >= 21):
        yield x[_PER_CHANNEL[node.op]], w[0]
    elif node.op in ("LayerNormalization", "RMSNormalization"):
        axis = int(node.attr("axis", -1)) % len(x)
        yield from _broadcast([x[axis:], w])
    elif node.op in _RECURRENT and len(x) == len(w) == 3:
        yield x[2], w[2]


def _broadcast(shapes: list[Shape]) -> Iterator[Equation]:
    """Equations between broadcast sizes: if one is a number other than 1, the others equal it (or are 1)."""
    for axis in range(1, 1 + max(map(len, shapes), default=0)):
        sizes = [s[-axis] for s in shapes if len(s) >= axis]
        numbers = [s for s in sizes if isinstance(s, int) and s != 1]
        for size in sizes if numbers else ():
            if not isinstance(size, int):
                yield size, numbers[0]


def _reshaped(g: ModelGraph, node: Node, x: Shape) -> Iterator[Equation]:
    target = g.values.get(node.input(1))
    if target is None or node.attr("allowzero", 0):
        return
    sizes = [x[i] if n == 0 and i < len(x) else n for i, n in enumerate(target.reshape(-1))]
    if all(isinstance(n, Poly) or (isinstance(n, int) and n > 0) for n in sizes):
        yield product(x), product(tuple(sizes))


def _concatenated(node: Node, shapes: list[Shape | None]) -> Iterator[Equation]:
    known = [s for s in shapes if s is not None]
    if len({len(s) for s in known}) != 1:
        return
    axis = int(node.attr("axis", 0)) % len(known[0])
    for i, sizes in enumerate(zip(*known, strict=True)):
        if i != axis:
            yield from ((sizes[0], size) for size in sizes[1:])

"""Chains of data movement: views, constant pads and concatenations as one kernel of strided copies.

The result of a chain is followed back to the parameters that it holds: each piece is copied straight from a parameter,
so nothing between is stored. Invariant: the pieces partition the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ppuc.compiler.lowering.kernels.copies import Copy, add_copies, copies_clk, strided_copy
from ppuc.compiler.lowering.tiling.body import External, NotFusable, Resolver, stored_part
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.compiler.lowering.tiling.pieces import Piece, follow, whole
from ppuc.ir.graph import Graph, Value
from ppuc.ir.kernel import View
from ppuc.targets.schema import Target


def most_pieces(target: Target) -> int:
    """Maximum pieces of one kernel, each of which has rings of its own."""
    return max(2, target.sync.rings_per_cu // 2)


def check_copy(body: Graph, target: Target) -> None:
    """Raise NotFusable unless the body only moves elements, in few pieces."""
    pieces = sum(len(list(_sources(body, value, view))) for value, view in _stored(body))
    if pieces > most_pieces(target):
        raise NotFusable(f"{pieces} pieces are too many for one kernel")


class CopyLowering:
    """Lowers a group of views, constant pads and concatenations: each result is stored row-major. Raises NotFusable."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        self.name, self.loc, self.target = name, loc, target
        self.copies: list[Copy] = []
        for result, (value, view) in zip(body.results, _stored(body), strict=True):
            for source, part in _sources(body, value, view):
                self.copies.append(strided_copy(source, part, tensors[source.value.name], tensors[result.name]))

    @property
    def price(self) -> float:
        """Expected cycles."""
        return copies_clk(self.copies, self.target)

    def lower(self) -> KernelBuilder:
        """Build the kernel."""
        kernel = KernelBuilder(self.name, self.loc)
        add_copies(kernel, self.copies, self.target)
        return kernel


def lower_copy(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Build the kernel of such a group. Raises NotFusable."""
    return CopyLowering(name, body, tensors, loc, target).lower()


def _stored(body: Graph) -> Iterator[tuple[Value, View]]:
    """The value that is stored for each result, and its view in the result's memory."""
    for result in body.results:
        yield stored_part(body, result)


def _sources(body: Graph, value: Value, view: View) -> Iterator[tuple[External, View]]:
    """The parts of parameters that make up `value`, which is stored as `view`, each with the view it is copied to.
    Raises NotFusable."""
    resolver = Resolver(body)
    for piece in follow(body, whole(value, view), lambda p: resolver.external(p.value) is not None):
        external = resolver.external(piece.value)
        assert external is not None
        if external.padded:
            yield _padded(external, piece)
        else:
            yield External(external.value, piece.read(external.view)), piece.stored()


def _padded(external: External, piece: Piece) -> tuple[External, View]:
    """Where a piece of a padded value is read and stored. Raises NotFusable for parts of dimensions."""
    atoms = piece.boxed()
    extents = tuple(1 if a is None else a.extent for a in atoms)
    low = tuple(n - start for n, start in zip(external.low, piece.starts, strict=True))
    stored = View(extents, tuple(0 if a is None else a.stride for a in atoms), piece.offset)
    return External(external.value, external.view, low, extents, external.pad), stored

"""Lowerings whose tiles keep one axis for every axis of the domain but the outermost ones, even for an axis of size 1.

A sliding window's input and output extents differ along each axis, and the rows of an attention tile span several
domain axes; neither allows merging axes. Invariant: every tile of a vec has the axes `kept`, in domain order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering.kernels.contraction import ContractionLowering
from ppuc.compiler.lowering.tiling.body import Chain, External
from ppuc.compiler.lowering.tiling.nest import Nest, Tiling
from ppuc.compiler.lowering.tiling.space import Access, Axis, IterationSpace
from ppuc.compiler.lowering.tiling.tiled import stored_parts
from ppuc.compiler.lowering.tiling.vectorise import ChainEmitter, ProgramBuilder
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Load, Vec, View
from ppuc.targets.schema import Target


def access_of(operand: External | View) -> Access:
    """An operand in domain coordinates, with size 1 where it is broadcast."""
    if isinstance(operand, External) and operand.padded:
        return Access(operand.view, operand.low, operand.pad, padded=True)
    view = operand.view if isinstance(operand, External) else operand
    shape = tuple(1 if stride == 0 else size for size, stride in zip(view.shape, view.strides, strict=True))
    return Access(View(shape, view.strides, view.offset), (0,) * len(shape))


def slot_bytes(elements: int, element_bytes: int) -> int:
    """Bytes of one ring slot, rounded up to a multiple of 32."""
    return -(-elements * element_bytes // 32) * 32


class UnmergedLowering(ContractionLowering):
    """Base of window and attention lowerings. `names` are the loop variables of the domain's axes; the first `outer` of
    them are loops only (tiles of one, no tile axis)."""

    def __init__(
        self,
        name: str,
        body: Graph,
        tensors: Mapping[str, str],
        loc: tuple[str, ...],
        target: Target,
        chain: Chain,
        names: Sequence[str],
        outer: int,
    ) -> None:
        super().__init__(name, body, tensors, loc, target, chain)
        axes = tuple(
            Axis(axis, size, i in chain.reduce_axes)
            for i, (axis, size) in enumerate(zip(names, chain.domain, strict=True))
        )
        accesses = {key: access_of(external) for key, external in chain.externals.items()}
        accesses |= {key: access_of(part) for key, part in stored_parts(chain).items()}
        self.space = IterationSpace(axes, accesses)
        self.operands = self._operands()
        self.kept = list(range(outer, len(axes)))
        self.tiles = [1] * len(axes)
        self.loaded: set[tuple[str, ...]] = set()
        """Loads so far: buffer, and the loops around the load."""

    def tile_axes(self) -> list[int]:
        return self.kept

    def merged_axis_of(self) -> dict[int, int]:
        return {axis: axis for axis in range(len(self.space.axes))}

    def axis_of(self) -> dict[int, int]:
        return {axis: i for i, axis in enumerate(self.kept)}

    def load_once(self, nest: Nest, depth: int, load: Load) -> None:
        """Add a load at `depth`, unless its buffer is loaded inside the same loops already."""
        key = (load.dst, *(loop.name for loop in nest.loops[:depth]))
        if key not in self.loaded:
            self.loaded.add(key)
            nest.add(depth, load)

    def finish_chain(
        self,
        nest: Nest,
        depth: int,
        builder: ProgramBuilder,
        ins: Sequence[str],
        anchor: str,
        loops: Mapping[str, Tiling],
        *,
        after: bool,
        whole: bool = False,
        slots: int = 2,
        buffers: dict[str, str] | None = None,
    ) -> None:
        """Complete `builder`, whose parameters read the buffers `ins` and whose step `anchor` holds the anchor's
        result, by the chain's ops; add its vec at `depth`, the loads it needs and the stores of its results. `whole`
        tiles are computed in full even if only part is valid (a window computes whole tiles). `slots`: ring slots of
        results. `buffers`: those of an earlier call to share, by operand; its new ones are added."""
        assert self.chain.anchor is not None
        names, ins = {self.chain.anchor.name: anchor}, list(ins)
        buffers = {} if buffers is None else buffers
        for operand in self.operands:
            if operand.written:
                continue
            names[operand.key] = builder.param(operand.dtype, whole)
            around = [
                loops[a.name].name
                for i, a in enumerate(self.space.axes)
                if operand.access.present(i) and a.name in loops
            ]
            if operand.key not in buffers:
                ahead = self.operand_slots(operand, self.tiles)
                shape = self.tile_shape(operand.access)
                buffers[operand.key] = self.kernel.buffer("t", operand.dtype, shape, depth=ahead)
            param = self.kernel.param(operand.tensor, operand.dtype, operand.access.view)
            load = Load(buffers[operand.key], param, self.index(operand.access, loops), operand.access.pad)
            self.load_once(nest, nest.depth_of(around), load)
            ins.append(buffers[operand.key])
        emitter = ChainEmitter(self.chain, builder, names, self.axis_of())
        for op in self.chain.ops:
            emitter.emit(op)
        written = [o for o in self.operands if o.written]
        for o in written:
            if o.key not in buffers:
                buffers[o.key] = self.kernel.buffer("o", o.dtype, self.tile_shape(o.access), depth=slots)
        outs = [buffers[o.key] for o in written]
        results = [(emitter.value(o.key[4:]), o.dtype) for o in written]
        program = builder.finish(self.name, results)
        if all(program.name != known.name for known in self.kernel.vectors):
            self.kernel.vector(program)
        nest.add(depth, Vec(program.name, tuple(outs), tuple(ins), self.valid(loops)), after=after)
        for operand, buffer in zip(written, outs, strict=True):
            self.store(self.kernel, nest, depth, operand, buffer, loops, after=after)

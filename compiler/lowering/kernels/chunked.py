"""Reductions over axes that do not fit l1: elements are read in chunks, and state tiles hold partial results.

Dependent reductions (a softmax's sum needs its maximum) take one walk over the chunks per level, and a last walk
computes results that have the reduced axes. Every walk recomputes its inputs from the loaded elements and the states of
earlier levels. Chunks are combined in order, so the result does not depend on timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ppuc.compiler.lowering.tiling.body import op_axes
from ppuc.compiler.lowering.tiling.nest import Nest, Tiling
from ppuc.compiler.lowering.tiling.vectorise import ChainEmitter, ProgramBuilder, last_position
from ppuc.ir.affine import Affine
from ppuc.ir.graph import Op
from ppuc.ir.kernel import Load, Stmt, Vec
from ppuc.ir.types import DType
from ppuc.ir.vector import compute_dtype

if TYPE_CHECKING:
    from ppuc.compiler.lowering.tiling.tiled import Operand, TiledLowering

COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def identity(kind: str, dtype: DType) -> float:
    """The neutral element of a reduction on compute dtype `dtype`."""
    if kind in ("sum", "prod"):
        return 0.0 if kind == "sum" else 1.0
    if dtype is DType.F32:
        return float("-inf") if kind == "max" else float("inf")
    if dtype is DType.BOOL:
        return 0 if kind == "max" else 1
    low, high = (-(2**63), 2**63 - 1) if dtype is DType.I64 else (-(2**31), 2**31 - 1)
    return low if kind == "max" else high


class ChunkedReduction:
    """Builds the walks of one lowering with chunked reduction axes. With `in_step`, all walks of an operand share a
    ring of one slot, so that nothing is loaded ahead: what a thread block that waits for its own loads does."""

    def __init__(self, lowering: TiledLowering, loops: Sequence[Tiling], parallel: int, in_step: bool = False) -> None:
        self.low = lowering
        self.chain = lowering.chain
        self.outer = Nest(list(loops[:parallel]))
        self.chunks = list(loops[parallel:])
        self.levels = self._levels()
        self.states: dict[str, tuple[str, ...]] = {}  # reduction result -> its state buffers (value first)
        self.by_result = {op.results[0].name: op for op in self.chain.ops}
        self.loaded: dict[str, str] = {}  # operands without chunk axes, loaded once
        self.in_step = in_step
        self.shared: dict[str, str] = {}  # the ring of each operand whose walks share one

    def _levels(self) -> dict[str, int]:
        levels: dict[str, int] = {}
        for op in self.chain.ops:
            below = max((levels.get(self._name(v.name), 0) for v in op.operands), default=0)
            levels[op.results[0].name] = below + (1 if op_axes(op) else 0)
        return levels

    def _name(self, value: str) -> str:
        return self.chain.alias.get(value, value)

    def build(self) -> None:
        """Append the nest to the kernel."""
        depth = len(self.outer.loops)
        reductions = [op for op in self.chain.ops if op_axes(op)]
        for level in range(1, max((self.levels[op.results[0].name] for op in reductions), default=0) + 1):
            here = [op for op in reductions if self.levels[op.results[0].name] == level]
            for stmt in self._walk(level, here):
                self.outer.add(depth, stmt)
        whole = [o for o in self.low.operands if o.written and not self._chunked(o)]
        if whole:
            nest = Nest([])
            for stmt in self._outputs(nest, whole, {}):
                self.outer.add(depth, stmt)
        cut = [o for o in self.low.operands if o.written and self._chunked(o)]
        if cut:
            nest, loops = self._chunk_nest("last")
            for stmt in self._outputs(nest, cut, loops):
                self.outer.add(depth, stmt)
        self.low.kernel.nests.append(self.outer)

    def _chunked(self, operand: Operand) -> bool:
        return any(operand.access.present(i) for i in self.low.reduced)

    def _chunk_nest(self, suffix: str) -> tuple[Nest, dict[str, Tiling]]:
        """A nest of the chunk loops under fresh variable names, and the loop of each axis."""
        loops = [replace(c, name=f"{c.name}.{suffix}") for c in self.chunks]
        return Nest(loops), {c.name: loop for c, loop in zip(self.chunks, loops, strict=True)}

    def _all_loops(self, chunk: dict[str, Tiling]) -> dict[str, Tiling]:
        return {loop.name: loop for loop in self.outer.loops} | chunk

    def ring(self, operand: Operand) -> str:
        """The ring into which the current walk loads chunks of `operand`."""
        kernel, shape = self.low.kernel, self.low.tile_shape(operand.access)
        if not self.in_step:
            return kernel.buffer("t", operand.dtype, shape, depth=2)
        if operand.key not in self.shared:
            self.shared[operand.key] = kernel.buffer("t", operand.dtype, shape, depth=1)
        return self.shared[operand.key]

    def _state(self, dtype: DType) -> str:
        kept = self.low.tile_axes()
        shape = tuple(1 if i in self.low.reduced else self.low.tiles[i] for i in kept)
        return self.low.kernel.buffer("s", dtype, shape, depth=1)

    def _walk(self, level: int, reductions: Sequence[Op]) -> list[Stmt]:
        """Initialise the states of one level, then accumulate them over the chunks."""
        init = ProgramBuilder()
        results, states = [], []
        for op in reductions:
            dtype = compute_dtype(op.operands[0].type.dtype)
            kind: str = op.attrs.kind  # type: ignore[attr-defined]
            buffers = [self._state(dtype)]
            results.append((init.const(identity(kind, dtype), dtype), dtype))
            if op.name == "argreduce":
                buffers.append(self._state(DType.I64))
                results.append((init.const(0, DType.I64), DType.I64))
            states.append(tuple(buffers))
        name = self.low.kernel.vector(init.finish(f"{self.low.name}.init{level}", results))
        outs = tuple(b for group in states for b in group)
        nest, chunk = self._chunk_nest(str(level))
        body = _Program(self, nest, chunk)
        updated: list[tuple[str, DType]] = []
        for op, state in zip(reductions, states, strict=True):
            updated += self._accumulate(body, op, state)
        bounds = self.low.valid(self._all_loops(chunk))
        program = self.low.kernel.vector(body.builder.finish(f"{self.low.name}.reduce{level}", updated))
        nest.add(len(nest.loops), Vec(program, outs, tuple(body.ins), bounds, tuple(body.scalars)))
        for op, state in zip(reductions, states, strict=True):
            self.states[op.results[0].name] = state
        return [Vec(name, outs, ()), *nest.build()]

    def _accumulate(self, body: _Program, op: Op, buffers: Sequence[str]) -> list[tuple[str, DType]]:
        """Steps that combine one chunk into the state of `op`; returns the new state values."""
        builder = body.builder
        dtype = compute_dtype(op.operands[0].type.dtype)
        kind: str = op.attrs.kind  # type: ignore[attr-defined]
        value = body.operand(op, 0)
        axes = sorted({body.axis_of[a] for a in op_axes(op) if a in body.axis_of})
        old = body.state(buffers[0], dtype)
        if op.name == "reduce":
            partial = builder.step(f"reduce_{kind}", value, ints=axes) if axes else value
            return [(builder.step(COMBINE[kind], old, partial), dtype)]
        partial = builder.step(f"reduce_{kind}", value, ints=axes)
        last: bool = op.attrs.last  # type: ignore[attr-defined]
        if last:
            where = last_position(builder, op, value, partial, axes)
        else:
            where = builder.step(f"arg{kind}", value, ints=axes)
        position = builder.step("add", where, body.scalar(self._chunk_offset(op, body)))
        better = _better(builder, kind, last, partial, old, dtype.is_float)
        index = body.state(buffers[1], DType.I64)
        return [
            (builder.step("select", better, partial, old), dtype),
            (builder.step("select", better, position, index), DType.I64),
        ]

    def _chunk_offset(self, op: Op, body: _Program) -> Affine:
        """Where the current chunk starts along the axis of an argreduce."""
        for axis in self.low.reduced:
            loop = body.chunk.get(self.low.space.axes[axis].name)
            if loop is not None:
                return loop.offset
        return Affine()

    def _outputs(self, nest: Nest, operands: Sequence[Operand], chunk: dict[str, Tiling]) -> list[Stmt]:
        body = _Program(self, nest, chunk)
        results = [(body.need(o.key[4:]), o.dtype) for o in operands]
        kernel = self.low.kernel
        outs = tuple(kernel.buffer("o", o.dtype, self.low.tile_shape(o.access)) for o in operands)
        suffix = "apply" if chunk else "result"
        program = kernel.vector(body.builder.finish(f"{self.low.name}.{suffix}", results))
        loops = self._all_loops(chunk)
        depth = len(nest.loops)
        nest.add(depth, Vec(program, outs, tuple(body.ins), self.low.valid(loops), tuple(body.scalars)))
        for operand, buffer in zip(operands, outs, strict=True):
            self.low.store(kernel, nest, depth, operand, buffer, loops)
        return list(nest.build())


def _better(builder: ProgramBuilder, kind: str, last: bool, new: str, old: str, is_float: bool) -> str:
    """Whether a chunk's extreme replaces that of earlier chunks. A NaN beats every number; among NaNs, the first or the
    last one counts."""
    compare = {("max", False): "gt", ("max", True): "ge", ("min", False): "lt", ("min", True): "le"}[kind, last]
    better = builder.step(compare, new, old)
    if not is_float:
        return better
    better = builder.step("or", better, builder.step("isnan", new))
    return better if last else builder.step("and", better, builder.step("eq", old, old))


class _Program:
    """One vector program of a walk: loads operands and recomputes values on demand."""

    def __init__(self, owner: ChunkedReduction, nest: Nest, chunk: dict[str, Tiling]) -> None:
        self.owner, self.nest, self.chunk = owner, nest, chunk
        self.builder = ProgramBuilder()
        self.ins: list[str] = []
        self.scalars: list[Affine] = []
        self.axis_of = owner.low.axis_of()
        self.emitter = ChainEmitter(owner.chain, self.builder, {}, self.axis_of)

    def scalar(self, value: Affine) -> str:
        """A step that holds an affine of loop variables."""
        self.scalars.append(value)
        return self.builder.step("scalar", ints=(len(self.scalars) - 1,))

    def state(self, buffer: str, dtype: DType) -> str:
        """A parameter that reads a state tile."""
        self.ins.append(buffer)
        return self.builder.param(dtype)

    def need(self, name: str) -> str:
        """The step that holds chain value `name`, emitted with its dependences if needed."""
        owner = self.owner
        name = owner._name(name)
        if name not in self.emitter.names:
            if name in owner.states:
                op = owner.by_result[name]
                buffer = owner.states[name][-1]
                dtype = DType.I64 if op.name == "argreduce" else compute_dtype(op.operands[0].type.dtype)
                self.emitter.names[name] = self.builder.wrapped(op, self.state(buffer, dtype))
            else:
                op = owner.by_result[name]
                for i in range(len(op.operands)):
                    self.operand(op, i)
                self.emitter.emit(op)
        return self.emitter.names[name]

    def operand(self, op: Op, index: int) -> str:
        """The step that holds an operand of `op`: loaded, an immediate, or computed."""
        key = self.owner.chain.operand_keys.get((op.results[0].name, index))
        value = op.operands[index]
        if key is not None:
            self._load(key)
            return self.emitter.names[key]
        if value.name in self.owner.chain.constants:
            return self.builder.const(self.owner.chain.constants[value.name], value.type.dtype)
        return self.need(value.name)

    def _load(self, key: str) -> None:
        if key in self.emitter.names:
            return
        owner = self.owner
        operand = next(o for o in owner.low.operands if o.key == key)
        if owner._chunked(operand):
            kernel, loops = owner.low.kernel, owner._all_loops(self.chunk)
            buffer = owner.ring(operand)
            param = kernel.param(operand.tensor, operand.dtype, operand.access.view)
            index = owner.low.index(operand.access, loops)
            self.nest.add(len(self.nest.loops), Load(buffer, param, index, operand.access.pad))
        elif key in owner.loaded:
            buffer = owner.loaded[key]
        else:
            buffer = owner.loaded[key] = owner.low.load(owner.outer, operand, 2)
        self.ins.append(buffer)
        self.emitter.names[key] = self.builder.param(operand.dtype)

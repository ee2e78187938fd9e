"""Translates the chain ops of a group into steps of a vector program.

Tiles have one axis per merged axis that is tiled (size 1 where an operand is broadcast), so numpy broadcasting of the
graph carries over unchanged; reductions keep their axes. Invariant: the steps compute the body at each point of the
domain, except that intermediate floats stay in f32 and are not rounded between ops of a group. Integers narrower than
the engine's compute type wrap around after every op that may overflow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering.tiling.body import Chain, op_axes
from ppuc.compiler.lowering.tiling.vector_steps import combined
from ppuc.ir.graph import Op
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.types import DType
from ppuc.ir.vector import Step, VecParam, VectorProgram, compute_dtype

WRAPPING = frozenset({"abs", "add", "bitnot", "cumsum", "div", "mul", "neg", "pow", "reduce", "shl", "sub"})
"""Integer ops that may overflow their type."""


def _holds(to: DType, source: DType) -> bool:
    """Whether a cast from `source` to `to` needs no step: same compute type, and every value is preserved."""
    if compute_dtype(source) is not compute_dtype(to) or to.is_float != source.is_float or to.bits < source.bits:
        return False
    return to.is_float or to.is_signed == source.is_signed or (to.is_signed and to.bits > source.bits)


class ProgramBuilder:
    """Collects parameters and steps under short names (%0, %1, ...)."""

    def __init__(self) -> None:
        self.params: list[VecParam] = []
        self.steps: list[Step] = []
        self._count = 0
        self._constants: dict[tuple[float, DType], str] = {}
        self._wraps: set[str] = set()

    def _fresh(self) -> str:
        self._count += 1
        return str(self._count - 1)

    def param(self, dtype: DType, whole: bool = False) -> str:
        """Add a tile operand; returns its name."""
        name = self._fresh()
        self.params.append(VecParam(name, dtype, whole))
        return name

    def step(
        self, op: str, *args: str, ints: Sequence[int] = (), number: float = 0.0, dtype: DType | None = None
    ) -> str:
        """Add a step; returns its result's name."""
        name = self._fresh()
        self.steps.append(Step(name, op, args, tuple(int(i) for i in ints), number, dtype))
        return name

    def const(self, number: float, dtype: DType) -> str:
        """An immediate, shared between uses."""
        dtype = compute_dtype(dtype)
        key = (number, dtype)
        if key not in self._constants:
            self._constants[key] = self.step("const", number=number, dtype=dtype)
        return self._constants[key]

    def wrapped(self, op: Op, name: str) -> str:
        """Wrap the step `name`, which computes `op`, to the range of the op's integer type."""
        dtype = op.results[0].type.dtype
        if op.name not in WRAPPING or not dtype.is_integer or compute_dtype(dtype) is dtype:
            return name
        step = self.step("cast", name, dtype=dtype)
        self._wraps.add(step)
        return step

    def finish(self, name: str, results: Sequence[tuple[str, DType]]) -> VectorProgram:
        """The program with the given results. Integers that are only stored wrap at the store."""
        made = {step.result: step for step in self.steps}
        read = Counter((*(arg for step in self.steps for arg in step.args), *(result for result, _ in results)))
        kept = list(results)
        for i, (result, dtype) in enumerate(results):
            if result in self._wraps and read[result] == 1 and made[result].dtype is dtype:
                kept[i] = (made.pop(result).args[0], dtype)
        steps = combined(list(made.values()), [result for result, _ in kept])
        return VectorProgram(name, tuple(self.params), tuple(kept), steps)


def emit_op(builder: ProgramBuilder, op: Op, args: Sequence[str], axes: Sequence[int]) -> str:
    """Append the step(s) of one chain op; `axes` are its reduction axes in tile axes. Returns the result's name."""
    attrs = op.attrs
    if op.name == "cast":
        to: DType = attrs.to  # type: ignore[attr-defined]
        return args[0] if _holds(to, op.operands[0].type.dtype) else builder.step("cast", args[0], dtype=to)
    if op.name == "reduce":
        return builder.step(f"reduce_{attrs.kind}", args[0], ints=axes) if axes else args[0]  # type: ignore[attr-defined]
    if op.name == "argreduce":
        return _argreduce(builder, op, args[0], axes)
    if op.name == "cumsum":
        return _cumsum(builder, op, args[0], axes)
    if op.name == "isinf":
        return builder.step("isinf", args[0], ints=(attrs.positive, attrs.negative))  # type: ignore[attr-defined]
    if OPS[op.name].kind is not Kind.ELEMENTWISE:
        raise ValueError(f"'{op.name}' has no vector step")
    return builder.step(op.name, *args)


def _cumsum(builder: ProgramBuilder, op: Op, x: str, axes: Sequence[int]) -> str:
    """Along an axis of one element, the sum is the element, or zero if exclusive."""
    exclusive: bool = op.attrs.exclusive  # type: ignore[attr-defined]
    if axes:
        return builder.step("cumsum", x, ints=(axes[0], exclusive, op.attrs.reverse))  # type: ignore[attr-defined]
    return builder.const(0, op.results[0].type.dtype) if exclusive else x


def _argreduce(builder: ProgramBuilder, op: Op, x: str, axes: Sequence[int]) -> str:
    """Emit the first position of the extreme; the last one is the largest position where x equals it."""
    attrs = op.attrs
    if not axes:
        return builder.const(0, DType.I64)
    kind: str = attrs.kind  # type: ignore[attr-defined]
    if not attrs.last:  # type: ignore[attr-defined]
        return builder.step(f"arg{kind}", x, ints=axes)
    return last_position(builder, op, x, builder.step(f"reduce_{kind}", x, ints=axes), axes)


def last_position(builder: ProgramBuilder, op: Op, x: str, extreme: str, axes: Sequence[int]) -> str:
    """The last position along the axis where `x` equals its `extreme`; a NaN counts as an extreme, as in `reduce`."""
    source, axis = op.operands[0].type, op.attrs.axis  # type: ignore[attr-defined]
    hit = builder.step("eq", x, extreme)
    if source.dtype.is_float:
        hit = builder.step("or", hit, builder.step("isnan", x))
    position = builder.step("iota", x, ints=(axes[0], source.dims[axis]))
    masked = builder.step("select", hit, position, builder.const(-1, DType.I64))
    return builder.step("reduce_max", masked, ints=axes)


class ChainEmitter:
    """Emits chain ops of a group into a ProgramBuilder, in order, remembering the name of each value."""

    def __init__(
        self, chain: Chain, builder: ProgramBuilder, names: Mapping[str, str], axis_of: Mapping[int, int]
    ) -> None:
        self.chain, self.builder = chain, builder
        self.names = dict(names)  # chain value or external key -> step name
        self.axis_of = axis_of  # domain axis -> tile axis, for reduction axes

    def value(self, name: str) -> str:
        """The step that holds chain value `name`."""
        return self.names[self.chain.alias.get(name, name)]

    def emit(self, op: Op) -> None:
        """Append `op`. Rounding of a group's result is left to the store into its tile."""
        args = []
        for i, operand in enumerate(op.operands):
            key = self.chain.operand_keys.get((op.results[0].name, i))
            if key is not None:
                args.append(self.names[key])
            elif operand.name in self.chain.constants:
                args.append(self.builder.const(self.chain.constants[operand.name], operand.type.dtype))
            else:
                args.append(self.value(operand.name))
        if op.name == "cast" and self.chain.rounds_on_store(op):
            self.names[op.results[0].name] = args[0]
            return
        axes = sorted({self.axis_of[a] for a in op_axes(op) if a in self.axis_of})
        self.names[op.results[0].name] = self.builder.wrapped(op, emit_op(self.builder, op, args, axes))

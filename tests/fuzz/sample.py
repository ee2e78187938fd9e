"""The choices of one random node: shapes, element types, arrays.

Structure is drawn from a `random.Random`, which may be hypothesis' own, so that failing nodes shrink; the elements of
arrays come from a numpy generator seeded with one of its draws.

Invariant: the same op and the same draws give the same node, the same inputs and the same opset.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

T = TypeVar("T")

F64, F32, F16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL = (
    np.dtype(t)
    for t in (
        *(np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8),
        *(np.uint64, np.uint32, np.uint16, np.uint8, np.bool_),
    )
)
BF16 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
TYPES = {
    "double": F64, "float": F32, "float16": F16, "bfloat16": BF16, "int64": I64, "int32": I32, "int16": I16, "int8": I8,
    "uint64": U64, "uint32": U32, "uint16": U16, "uint8": U8, "bool": BOOL,
    **{
        name: helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, name.upper()))
        for name in ("float8e4m3fn", "float8e5m2")
    },
}  # fmt: skip
"""Element types as schemas write them, of those that the machine can hold."""
WIDESPREAD = (F64, F32, I64, I32, I8, U8, BOOL)
"""What ONNX Runtime has kernels for, as a rule."""
COMMON = 0.5
"""Share of f32 where it is allowed."""
SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)
MOST_ELEMENTS = 3000
FINITE = (0.0, -0.0, 1e-40, -1e-40, 1e-3, 88.0, -104.0, 0.5, 1.5, 2.5, -0.5, 1.0, -1.0, 1e30, 3.4e38, -3.4e38)
SPECIAL = (*FINITE, math.inf, -math.inf, math.nan)


class UnsuitedError(Exception):
    """These draws make no node."""


@dataclass(frozen=True, slots=True)
class Node:
    """A model of one node and the arrays that its inputs are fed with; what `undefined` outputs hold is nobody's
    promise."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    undefined: frozenset[str] = frozenset()

    def __str__(self) -> str:
        graph = self.model.graph
        arrays = {**self.feeds, **{t.name: numpy_helper.to_array(t) for t in graph.initializer}}
        lines = [onnx.printer.to_text(graph.node[0]), f"opset {self.model.opset_import[0].version}"]
        for name, array in sorted(arrays.items()):
            values = " ".join(map(str, array.reshape(-1)[:8].tolist())) + (" ..." if array.size > 8 else "")
            fixed = "" if name in self.feeds else " (constant)"
            lines.append(f"{name}: {array.dtype}{list(array.shape)}{fixed} {values}")
        return "\n  ".join(lines)


@dataclass(slots=True)
class Sample:
    """A node of `op` in the making. `types` are the element types that its schema allows, by parameter; a `calm` node
    has no extreme values."""

    random: random.Random
    op: str
    domain: str
    opset: int
    types: dict[str, tuple[np.dtype, ...]]
    calm: bool = False
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    inputs: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=lambda: ["y0"])
    undefined: frozenset[str] = frozenset()
    numbers: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(self.random.getrandbits(32))

    # Choices

    def flip(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.random.randrange(len(choices))]

    def between(self, low: int, high: int) -> int:
        """A number in low..high, both possible."""
        return self.random.randint(low, high)

    def size(self, least: int = 0, most: int = 33) -> int:
        return self.pick([s for s in SIZES if least <= s <= most])

    def shape(self, low: int = 0, high: int = 5, least: int = 0, most: int = MOST_ELEMENTS) -> tuple[int, ...]:
        """A shape of rank low..high, of sizes from `least` on and with at most `most` elements."""
        dims = [self.size(least) for _ in range(self.between(low, high))]
        while math.prod(d for d in dims if d) > most:
            dims[dims.index(max(dims))] = max(least, self.between(1, 4))
        return tuple(dims)

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return self.between(-rank, rank - 1) if rank else self.pick((0, -1))

    def axes(self, rank: int, least: int = 0) -> list[int]:
        """Some different axes, in any order, counted from either end."""
        chosen = self.random.sample(range(rank), self.between(min(least, rank), rank))
        return [a - rank if self.flip(0.4) else a for a in chosen]

    def broadcast(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        dims = [1 if self.flip(0.3) else d for d in shape]
        return tuple(dims[self.between(0, len(dims)) :]) if self.flip(0.4) else tuple(dims)

    def dtype(self, parameter: str = "T", among: Iterable[np.dtype] = ()) -> np.dtype:
        """An element type that the schema allows for a parameter (and that is in `among`); f32 most often."""
        allowed = list(self.types[parameter])
        kept = [d for d in allowed if d in tuple(among)] if among else allowed
        if not kept:
            raise UnsuitedError(f"{parameter} of {self.op}")
        if self.calm:
            kept = [d for d in kept if d in (WIDESPREAD if F32 not in kept else (F32, F64))] or kept
        if F64 in kept and len(kept) > 1 and self.flip(0.8):  # the machine has no f64; what is refused says so
            kept.remove(F64)
        return F32 if F32 in kept and self.flip(COMMON) else self.pick(kept)

    # Arrays

    def array(self, dtype: np.dtype, shape: Sequence[int], special: float = 0.0, scale: float = 2.0) -> np.ndarray:
        """Numbers of either sign, about `scale` large (integers within 20); a share `special` of them are extreme
        ones."""
        rng = self.numbers
        if dtype == BOOL:
            return rng.integers(0, 2, shape).astype(bool)
        odd = rng.random(shape) < (0.0 if self.calm else special)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            plain = rng.integers(max(info.min, -20), min(info.max, 20), shape, endpoint=True).astype(dtype)
            return np.where(odd, rng.choice(np.array([info.min, info.max, info.max // 2, 0, 1], dtype), shape), plain)
        with np.errstate(all="ignore"):
            plain = (rng.standard_normal(shape) * scale).astype(dtype)
            extremes = np.array(SPECIAL, np.float32).astype(dtype)
            return np.asarray(np.where(odd, rng.choice(extremes, shape), plain))

    def positive(self, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
        """Floats in 0.1..2."""
        return self.numbers.uniform(0.1, 2, shape).astype(dtype)

    def distinct(self, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
        """Different numbers as far as the type has them, in random order."""
        return self.numbers.permutation(math.prod(shape)).reshape(shape).astype(dtype)

    def indices(self, size: int, shape: Sequence[int], dtype: np.dtype = I64) -> np.ndarray:
        """Positions on an axis of `size` elements, some counted from its end."""
        low = -size if self.flip(0.4) else 0
        if not size and math.prod(shape):
            raise UnsuitedError("an index into nothing")
        return self.numbers.integers(low, max(size, 1), shape).astype(dtype)

    # Inputs

    def add(self, array: np.ndarray | None, fixed: bool = False) -> str:
        """The next input; None for one that is left out. `fixed` inputs become initializers."""
        if array is None:
            self.inputs.append("")
            return ""
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.arrays[name] = np.asarray(array)
        if fixed:
            self.fixed.add(name)
        return name

    def ints(self, values: Sequence[int], dtype: np.dtype = I64) -> str:
        """A constant list of integers as the next input."""
        return self.add(np.array(values, dtype).reshape(len(values)), fixed=True)

    def listed(self, name: str, values: Sequence[int], since: int) -> None:
        """A list that is an attribute before opset `since` and the next input from then on."""
        if self.opset < since:
            self.attributes[name] = list(values)
        else:
            self.ints(values)

    def results(self, count: int, chance: float = 0.5) -> None:
        """`count` outputs of which those behind the first are present by `chance`."""
        names = ["y0", *(f"y{i}" if self.flip(chance) else "" for i in range(1, count))]
        while not names[-1]:
            names.pop()
        self.outputs = names

    def node(self) -> Node:
        """What has been drawn."""
        inputs = list(self.inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        domain = self.domain
        made = helper.make_node(self.op, inputs, self.outputs, name="node", domain=domain, **self.attributes)
        infos = [_info(n, x) for n, x in self.arrays.items() if n not in self.fixed]
        weights = [numpy_helper.from_array(np.asarray(self.arrays[n], order="C"), n) for n in sorted(self.fixed)]
        results = [helper.make_empty_tensor_value_info(o) for o in self.outputs if o]
        graph = helper.make_graph([made], "one", infos, results, weights)
        opsets = [helper.make_opsetid("", self.opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
        version = 8 if self.opset <= 18 else 10 if self.opset <= 23 else 11
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        return Node(model, {n: x for n, x in self.arrays.items() if n not in self.fixed}, self.undefined)


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

"""A random ONNX model that grows by ops whose shapes are solved for: what an op requires of an operand is met by an
earlier tensor that fits, by views of one that does not, or by a constant.

Invariant: a seed gives the same model and inputs every time; floats stay within some units, and no op jumps where its
operand changes by a rounding, so that any correct program agrees with ONNX Runtime.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MOST = 4096
"""Elements of a tensor at the most."""
Shape = tuple[int, ...]
FLOAT, INTEGERS = np.dtype(np.float32), (np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.uint32))


class SolvedModel:
    """A model and what is known of its tensors: element type and shape by name. `free` are those that nothing reads."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.numbers = np.random.default_rng(source.getrandbits(32))
        self.types: dict[str, tuple[np.dtype, Shape]] = {}
        self.free: list[str] = []
        self.constants: dict[str, np.ndarray] = {}
        self.feeds: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []

    def shape(self, name: str) -> Shape:
        """Dimensions of a tensor."""
        return self.types[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Element type of a tensor."""
        return self.types[name][0]

    def data(self, dtype: np.dtype, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
        """Random elements: normal floats, integers of the whole range or small ones."""
        if dtype == FLOAT:
            return np.asarray(self.numbers.standard_normal(tuple(shape)) * scale, dtype)
        info = np.iinfo(dtype)
        wide = self.random.random() < 0.3
        low, high = (info.min, info.max) if wide else (max(info.min, -9), 9)
        return np.asarray(self.numbers.integers(low, high, tuple(shape), dtype, endpoint=True))

    def input(self, dtype: np.dtype, shape: Shape) -> str:
        """A new input of the model."""
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.data(dtype, shape)
        self.types[name] = (dtype, shape)
        return name

    def constant(self, array: np.ndarray) -> str:
        """A new initializer."""
        name = f"w{len(self.constants)}"
        self.constants[name] = array
        return name

    def weight(self, dtype: np.dtype, shape: Shape, scale: float = 1.0) -> str:
        """An initializer of this type and shape, often one that other nodes read too."""
        same = [n for n, a in self.constants.items() if a.shape == shape and a.dtype == dtype]
        if same and self.random.random() < 0.6:
            return self.random.choice(same)
        return self.constant(self.data(dtype, shape, scale))

    def emit(self, op: str, inputs: Sequence[str], shape: Sequence[int], dtype: np.dtype, **attributes: Any) -> str:
        """Append a node with a result of this type and shape."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{len(self.nodes)}", **attributes))
        self.types[name] = (dtype, tuple(map(int, shape)))
        self.free = [n for n in self.free if n not in inputs] + [name]
        return name

    def pick(self, accepts: Callable[[np.dtype, Shape], bool] = lambda dtype, shape: True) -> str | None:
        """An earlier tensor that is accepted, mostly one that nothing reads yet."""
        known = self.free if self.free and self.random.random() < 0.7 else list(self.types)
        fitting = [n for n in known if accepts(*self.types[n])] or [n for n in self.types if accepts(*self.types[n])]
        return self.random.choice(fitting) if fitting else None

    # views that bring a tensor into another shape

    def indices(self, values: Sequence[int]) -> str:
        """A constant list, of shapes, axes and the like."""
        return self.constant(np.array(values, np.int64).reshape(len(values)))

    def reshaped(self, x: str, shape: Sequence[int]) -> str:
        """The same elements in another shape, which may be no strided view."""
        return self.emit("Reshape", [x, self.indices(shape)], shape, self.dtype(x))

    def fitted(self, x: str, shape: Shape) -> str:
        """As many elements of `x`, repeated or cut, as `shape` has, in that shape."""
        have, want = math.prod(self.shape(x)), math.prod(shape)
        if self.shape(x) == shape:
            return x
        if have == want:
            return self.reshaped(x, shape)
        flat = self.reshaped(x, (have,))
        if have < want:
            times = -(-want // have)
            flat = self.emit("Tile", [flat, self.indices([times])], (have * times,), self.dtype(x))
        start = self.random.randint(0, math.prod(self.shape(flat)) - want)
        flat = self.cut(flat, [start], [want], [1])
        return self.reshaped(flat, shape) if shape != (want,) else flat

    def cut(self, x: str, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> str:
        """A slice of all axes."""
        ends = [
            s + n * t if t > 0 or s + n * t >= 0 else -(2**31) for s, n, t in zip(starts, sizes, steps, strict=True)
        ]
        given = [x, self.indices(starts), self.indices(ends), self.indices(range(len(starts))), self.indices(steps)]
        return self.emit("Slice", given, sizes, self.dtype(x))

    def factors(self, count: int, rank: int) -> Shape:
        """`rank` sizes whose product is `count`, in any order."""
        sizes, primes, rest, at = [1] * rank, [], count, 2
        while rest > 1:
            while rest % at == 0:
                primes.append(at)
                rest //= at
            at = at + 1 if at * at <= rest else max(rest, at + 1)
        for prime in primes:
            sizes[self.random.randrange(rank)] *= prime
        return tuple(sizes)

    def operand_for(self, dtype: np.dtype, shape: Shape) -> str:
        """A tensor that broadcasts to `shape`: of rank 0, of fewer axes, or with axes of size 1. It is an earlier one,
        a view of one, an input or a constant."""
        lead = self.random.choice((0, 0, self.random.randint(0, len(shape)), len(shape)))
        wanted = tuple(1 if self.random.random() < 0.25 else n for n in shape[lead:])

        def fits(other: np.dtype, have: Shape) -> bool:
            tail = shape[len(shape) - len(have) :]
            return (
                other == dtype and len(have) <= len(shape) and all(a in (1, b) for a, b in zip(have, tail, strict=True))
            )

        way = self.random.random()
        if way < 0.35 and (found := self.pick(fits)):
            return found
        if way < 0.6 and (found := self.pick(lambda other, have: other == dtype)):
            return self.fitted(found, wanted)
        if way < 0.75 and len(self.feeds) < 6:
            return self.input(dtype, wanted)
        return self.weight(dtype, wanted)

    def model(self) -> onnx.ModelProto:
        """The model; its outputs are the tensors that nothing reads."""

        def info(name: str, of_shape: bool) -> onnx.ValueInfoProto:
            dtype, shape = self.types[name]
            return helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(dtype), shape if of_shape else None
            )

        outputs = [n for n in self.free if n not in self.feeds]
        graph = helper.make_graph(
            self.nodes,
            "solved",
            [info(name, True) for name in self.feeds],
            [info(name, True) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

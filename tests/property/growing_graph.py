"""A graph that grows at random, one layer at a time.

While it grows it is executed twice, once as
it is and once with every float result changed by a few roundings. A layer whose result the two executions disagree on
(a comparison of nearly equal values, a norm of a constant row) or that is not finite is taken back: whatever remains
has values that any correct program agrees with.

Invariant: every layer that stands is well conditioned, finite and small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from ppuc.ir.graph import Attrs, Value
from ppuc.ir.ops import OPS, Kind
from ppuc.ir.types import DType, TensorType
from tests.support.pass_graphs import Sketch

T = TypeVar("T")

FLOATS = (DType.F32, DType.F16, DType.BF16)
INTEGERS = (DType.I64, DType.I32)
LARGEST = 12_000
"""Elements of the largest tensor."""
DIMS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129)
NOISE = {DType.F32: 2.0**-20, DType.F16: 2.0**-10, DType.BF16: 2.0**-7}
"""Relative change of every computed element in the second execution."""
NARROW = 2.0**-16
"""Noise beyond which equal results of a choice say little: formats with few values have many ties."""
AGREEMENT = {True: 4, False: 30}
"""How many times its noise a result may change in the mean, a fourth of what a single element may; fewer times in
narrow formats, where little of a value is left by then."""
COPYING = (Kind.VIEW, Kind.MOVE, Kind.CONSTANT)


class Rejected(Exception):  # noqa: N818 - the generator takes the layer back
    """A layer does not fit, or its result is badly conditioned."""


class RandomGraph(Sketch):
    """A graph that grows at random. `known` holds the values that later layers may read."""

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        super().__init__(seed)
        self.noise = noise
        self.known: list[Value] = []
        self.inputs: dict[str, np.ndarray] = {}
        self.weights: list[Value] = []
        self._runs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    # choices

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        """low .. high, both included."""
        return int(self.rng.integers(low, high + 1))

    def one_of(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def shape(self, rank: int, limit: int = 3000) -> tuple[int, ...]:
        """A random shape of at most `limit` elements."""
        dims: list[int] = []
        for left in range(rank, 0, -1):
            most = max(1.0, (limit / max(math.prod(dims), 1)) ** (1.5 / left))
            dims.append(self.one_of([d for d in DIMS if d <= most]))
        return tuple(int(d) for d in self.rng.permutation(dims))

    def pick(self, ranks: Sequence[int] = (), dtypes: Sequence[DType] = FLOATS, least: int = 1) -> Value:
        """A value of one of `ranks` (any if empty) and at least `least` elements, later ones more likely; a new
        parameter when there is none."""
        fitting = [
            v
            for v in self.known
            if v.type.dtype in dtypes and (not ranks or v.type.rank in ranks) and v.type.elements >= least
        ]
        if not fitting or self.chance(0.07):
            rank = self.one_of(ranks) if ranks else self.integer(1, 4)
            shape = self.shape(rank)
            if math.prod(shape) < least:
                raise Rejected("no value is large enough")
            return self.parameter(shape, self.one_of(dtypes) if self.chance(0.2) else dtypes[0])
        return fitting[max(int(self.rng.integers(len(fitting))), int(self.rng.integers(len(fitting))))]

    # growing

    def array(self, shape: Sequence[int], dtype: DType, scale: float = 1.0) -> np.ndarray:
        """Seeded data: normal floats, small integers, both bools."""
        if dtype is DType.BOOL:
            return np.asarray(self.rng.random(shape) < 0.5)
        if dtype.is_integer:
            return self.rng.integers(0 if dtype is DType.U8 else -9, 10, shape).astype(dtype.numpy)
        return (self.rng.standard_normal(shape) * scale).astype(dtype.numpy)

    def parameter(self, shape: Sequence[int], dtype: DType = DType.F32, values: np.ndarray | None = None) -> Value:
        """A new input of the graph, fed with `values` (random ones when None)."""
        value = self.param(*shape, dtype=dtype)
        self.inputs[value.name] = self.array(shape, dtype) if values is None else values
        self._runs[value.name] = (self.inputs[value.name],) * 2
        self.known.append(value)
        return value

    def weights_of(self, dtype: DType, *shape: int, scale: float = 1.0) -> Value:
        """A constant, shared with an earlier layer where one of that type exists."""
        wanted = TensorType(dtype, shape)
        known = [w for w in self.weights if w.type == wanted]
        if known and self.chance(0.6):
            return self.one_of(known)
        if self.chance(0.08):
            return self.parameter(shape, dtype, self.array(shape, dtype, scale))
        self.weights.append(self.const(self.array(shape, dtype, scale)))
        return self.weights[-1]

    def op(self, name: str, *operands: Value, attrs: Attrs | None = None) -> Value:
        """Append an op of one result."""
        return self.ops(name, *operands, attrs=attrs)[0]

    def ops(self, name: str, *operands: Value, attrs: Attrs | None = None) -> tuple[Value, ...]:
        """Append an op, execute it twice and check it. Raises Rejected."""
        self.b.loc = (f"node_{len(self.b.ops)}",)
        try:
            results = self.b.emit(name, operands, attrs)
        except ValueError as error:
            raise Rejected(str(error)) from None
        if any(r.type.elements > LARGEST for r in results):
            raise Rejected("too large")
        op = self.b.ops[-1]
        reference = OPS[name].reference
        assert reference is not None
        runs = [self._run(v) for v in operands]
        chosen = not all(r.type.dtype.is_float for r in results)
        if chosen and self.noise > NARROW and not all(np.array_equal(a, b) for a, b in runs):
            raise Rejected("a choice between values that rounding makes equal")
        moved = [b for _, b in runs]
        if OPS[name].kind is Kind.COMPOSITE:  # rounds inside as well
            moved = [self._moved(b, v.type.dtype) for b, v in zip(moved, operands, strict=True)]
        with np.errstate(all="ignore"):
            first = reference(op.attrs, *(a for a, _ in runs))
            second = reference(op.attrs, *moved)
        for value, a, b in zip(results, first, second, strict=True):
            self._runs[value.name] = self._checked(value, np.asarray(a), np.asarray(b), OPS[name].kind)
        return results

    def _run(self, value: Value) -> tuple[np.ndarray, np.ndarray]:
        if value.name not in self._runs:
            op = next(op for op in self.b.ops if value in op.results)
            self._runs[value.name] = (op.attrs.value.array(),) * 2  # type: ignore[attr-defined]
        return self._runs[value.name]

    def _checked(self, value: Value, a: np.ndarray, b: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        dtype = value.type.dtype
        if not dtype.is_float:
            if not np.array_equal(a, b):
                raise Rejected("a choice between nearly equal values")
            return a, b
        exact, moved = a.astype(np.float64), b.astype(np.float64)
        if not (np.isfinite(exact).all() and np.isfinite(moved).all()) or np.abs(exact).max(initial=0) > 300:
            raise Rejected("not finite, or large")
        noise = self._noise(dtype)
        scale = math.sqrt(float(np.mean(exact**2))) if a.size else 0.0
        change = math.sqrt(float(np.mean((exact - moved) ** 2))) if a.size else 0.0
        allowed = AGREEMENT[noise > NARROW] * noise
        if change > allowed * scale or (np.abs(exact - moved) > 4 * allowed * (np.abs(exact) + scale)).any():
            raise Rejected("badly conditioned")
        return a, b if kind in COPYING else self._moved(b, dtype)

    def _noise(self, dtype: DType) -> float:
        return max(self.noise, NOISE[dtype])

    def _moved(self, array: np.ndarray, dtype: DType) -> np.ndarray:
        """Floats changed by the noise of their format."""
        if not dtype.is_float:
            return array
        factor = 1 + self._noise(dtype) * self.rng.standard_normal(array.shape)
        return (array.astype(np.float64) * factor).astype(dtype.numpy)

    def grow(self, layer: Callable[[RandomGraph], Value | Sequence[Value]]) -> bool:
        """Add a layer; takes everything of it back and returns False when it is rejected."""
        ops, params, known, weights = len(self.b.ops), len(self.params), len(self.known), len(self.weights)
        try:
            made = layer(self)
        except Rejected:
            for value in self.params[params:]:
                del self.inputs[value.name]
            del self.b.ops[ops:], self.params[params:], self.known[known:], self.weights[weights:]
            return False
        self.known += [made] if isinstance(made, Value) else made
        return True

    # results

    def outputs(self) -> Iterator[Value]:
        """Some of the last values and some of all; now and then an input, a constant, or the same value again."""
        count = self.integer(1, 5)
        yield self.known[-1]
        for _ in range(count - 1):
            yield self.known[-1 - self.integer(0, min(len(self.known), 6) - 1)]
        if self.chance(0.15):
            yield self.one_of(self.params)
        if self.weights and self.chance(0.15):
            yield self.one_of(self.weights)
        if self.chance(0.1):
            yield self.known[-1]

"""Kernels of single groups: lowered in every tiling that the search considers, run, and held against the group's body.

The bound on a float's error comes from running the body on magnitudes: a sum of K products errs by at most
(K + 1) u sum |a b| however it is ordered, and what follows a sum passes its error on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.lowering.kinds import check_group, lower_group
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.interpret_kernel import run_kernel
from ppuc.ir.kernel import Kernel
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from ppuc.ir.vector import VectorProgram
from ppuc.ir.verify import verify_kernel, verify_vector
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target

TARGETS = ("ppu-tiny", "zhenwu-m890")
UNIT = {DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}
STALE = 0xA5
"""What a result's memory holds before its kernel runs."""


@functools.cache
def target_of(name: str) -> Target:
    return load_target(name)


class Body:
    """The body of a group being written down."""

    def __init__(self) -> None:
        self.b = Builder()
        self.params: list[Value] = []

    def param(self, *shape: int, dtype: DType = DType.F32) -> Value:
        self.params.append(Value(self.b.fresh("p"), TensorType(dtype, shape)))
        return self.params[-1]

    def number(self, number: float, dtype: DType = DType.F32) -> Value:
        return self.b.scalar(number, dtype)

    def op(self, name: str, *operands: Value, attrs: Attrs | None = None) -> Value:
        return self.b(name, *operands, attrs=attrs)

    def graph(self, *results: Value) -> Graph:
        return Graph("body", tuple(self.params), results, tuple(self.b.ops))


def data(type: TensorType, seed: int = 0) -> np.ndarray:
    """Normal floats, small integers, both bools."""
    rng = np.random.default_rng(seed)
    if type.dtype is DType.BOOL:
        return np.asarray(rng.random(type.dims) < 0.5)
    if type.dtype.is_integer:
        return rng.integers(0 if type.dtype is DType.U8 else -50, 50, type.dims).astype(type.dtype.numpy)
    return rng.standard_normal(type.dims).astype(type.dtype.numpy)


def feeds_of(body: Graph) -> dict[str, np.ndarray]:
    return {p.name: data(p.type, i) for i, p in enumerate(body.params)}


def kernel_of(body: Graph, target: str, rank: int = 0) -> tuple[Kernel, tuple[VectorProgram, ...]]:
    """The verified kernel of a group in its `rank`-th cheapest tiling. Raises NotFusable."""
    machine = target_of(target)
    names = {v.name: v.name for v in (*body.params, *body.results)}
    kernel, vectors = lower_group(check_group(body, machine), "k", body, names, ("node",), machine, rank).finish()
    verify_kernel(kernel, vectors)
    for vector in vectors:
        verify_vector(vector)
    assert kernel.units <= machine.cu
    return kernel, vectors


def run(
    body: Graph, kernel: Kernel, vectors: Sequence[VectorProgram], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Results of the kernel, as raw as it leaves them."""
    memory = {name: np.array(a).reshape(-1).view(np.uint8) for name, a in feeds.items()}
    memory |= {v.name: np.full(v.type.bytes, STALE, np.uint8) for v in body.results}
    run_kernel(kernel, {v.name: v for v in vectors}, memory)
    return [memory[v.name].view(v.type.dtype.numpy).reshape(v.type.dims) for v in body.results]


def check(body: Graph, target: str, terms: int = 0, roundings: int = 1, tilings: int = 4) -> Kernel:
    """Run the `tilings` cheapest tilings and compare each; returns the first kernel. `terms` is how many numbers an
    element sums (0: the kernel must agree to the bit), `roundings` how often the body rounds to its storage format."""
    feeds = feeds_of(body)
    expected = run_graph(body, feeds)
    sizes = run_graph(body, {name: np.abs(a) if a.dtype.kind != "b" else a for name, a in feeds.items()})
    first: Kernel | None = None
    for rank in range(tilings):
        try:
            kernel, vectors = kernel_of(body, target, rank)
        except NotFusable:
            if rank == 0:
                raise
            break
        first = first or kernel
        for value, got in zip(body.results, run(body, kernel, vectors, feeds), strict=True):
            _compare(value, got, expected[value.name], sizes[value.name], terms, roundings)
    assert first is not None
    return first


def _compare(value: Value, got: np.ndarray, want: np.ndarray, size: np.ndarray, terms: int, roundings: int) -> None:
    dtype = value.type.dtype
    if not dtype.is_float or not terms:
        np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
        return
    allowed = (2 * (terms + 2) * UNIT[DType.F32] + (roundings + 1) * UNIT[dtype]) * np.abs(size.astype(np.float64))
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    assert (error <= allowed).all(), (
        f"error of {error.max():.2e} where {allowed.flat[int(error.argmax())]:.2e} is allowed"
    )

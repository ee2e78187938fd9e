"""Kernels of data movement, run and held against the graph interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.interpret_kernel import run_kernel
from ppuc.ir.kernel import Kernel
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from ppuc.ir.verify import verify_kernel, verify_vector
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target

TARGETS = ("ppu-tiny", "zhenwu-m890")
DTYPES = (DType.F32, DType.BF16, DType.I64, DType.BOOL, DType.U8)
Build = Callable[[Builder, Sequence[Value]], Value]


@functools.cache
def target_of(name: str) -> Target:
    """A machine by name; "cramped" has an l1 that few tiles fit."""
    return override(load_target("ppu-tiny"), "l1.bytes=512") if name == "cramped" else load_target(name)


def data(dtype: DType, *shape: int, seed: int = 0) -> np.ndarray:
    """Distinct-looking values of `dtype`, every bit pattern of small ints and both bools."""
    values = np.random.default_rng(seed).integers(-100, 100, shape)
    return (values % 2 == 0) if dtype is DType.BOOL else values.astype(dtype.numpy)


def body_of(types: Sequence[TensorType], build: Build) -> Graph:
    params = tuple(Value(f"p{i}", t) for i, t in enumerate(types))
    builder = Builder([p.name for p in params])
    result = build(builder, params)
    return Graph("body", params, (result,), tuple(builder.ops))


def graph_of(arrays: Sequence[np.ndarray], build: Build) -> Graph:
    return body_of([TensorType(DType.of(a.dtype), a.shape) for a in arrays], build)


def names_of(body: Graph) -> dict[str, str]:
    return {v.name: v.name for v in (*body.params, *body.results)}


def expected_of(body: Graph, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (result,) = run_graph(body, {p.name: a for p, a in zip(body.params, arrays, strict=True)}).values()
    return result


def executed(
    builder: KernelBuilder, body: Graph, arrays: Sequence[np.ndarray], target: Target, start: np.ndarray | None = None
) -> np.ndarray:
    """Run a lowered kernel. The result's memory holds `start`, or a pattern that no test expects."""
    kernel, vectors = builder.finish()
    verify_kernel(kernel, vectors)
    for vector in vectors:
        verify_vector(vector)
    assert sum(-(-b.bytes // 32) * 32 * b.depth for b in kernel.buffers) <= target.l1.bytes
    assert kernel.units <= target.cu
    result = body.results[0]
    memory = {p.name: np.array(a).reshape(-1).view(np.uint8) for p, a in zip(body.params, arrays, strict=True)}
    before = np.full(result.type.bytes, 0xA5, np.uint8) if start is None else np.array(start).reshape(-1).view(np.uint8)
    memory[result.name] = before
    run_kernel(kernel, {v.name: v for v in vectors}, memory)
    return memory[result.name].view(result.type.dtype.numpy).reshape(result.type.dims)


Lower = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], KernelBuilder]


def check(lower: Lower, arrays: Sequence[np.ndarray], build: Build, target: str) -> Kernel:
    """Lower, run and compare to the bit; returns the kernel."""
    body, machine = graph_of(arrays, build), target_of(target)
    builder = lower("k", body, names_of(body), ("node",), machine)
    result, expected = executed(builder, body, arrays, machine), expected_of(body, arrays)
    np.testing.assert_array_equal(result.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))
    return builder.finish()[0]


def op(name: str, attrs: Attrs) -> Build:
    return lambda b, values: b(name, *values, attrs=attrs)


def slicing(starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> SliceAttrs:
    return SliceAttrs(tuple(starts), tuple(sizes), tuple(steps))

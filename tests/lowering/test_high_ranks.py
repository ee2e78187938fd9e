"""Tensors with more axes than a descriptor has dimensions: transposed, sliced, repeated, combined and reduced along
each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import ppuc
from ppuc.ir.kernel import MAX_VIEW_RANK
from ppuc.targets.description import load_target
from tests.support.onnx_text import model_of

TINY = load_target("ppu-tiny")
RANKS = (MAX_VIEW_RANK, MAX_VIEW_RANK + 1, 13)

Case = tuple[str, dict[str, np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""Nodes from x to y, constants, and what they compute of x."""


def ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


def shuffled(rank: int) -> list[int]:
    """A permutation that leaves no two axes together."""
    return [*range(1, rank, 2), *range(0, rank, 2)][::-1]


def turned(rank: int) -> Case:
    perm = shuffled(rank)
    return f"y = Transpose<perm = {perm}>(x)", {}, lambda x: x.transpose(perm)


def turned_and_added(rank: int) -> Case:
    perm = list(range(rank))[::-1]
    return f"t = Transpose<perm = {perm}>(x) y = Sub(x, t)", {}, lambda x: x - x.transpose(perm)


def cut(rank: int) -> Case:
    constants = {"s": ints([-1] * rank), "e": ints([-9] * rank), "a": ints(range(rank)), "t": ints([-2] * rank)}
    return "y = Slice(x, s, e, a, t)", constants, lambda x: x[(slice(None, None, -2),) * rank]


def repeated(rank: int) -> Case:
    ends, shape = [1 + i % 2 for i in range(rank)], [2] * rank
    constants = {"s": ints([0] * rank), "e": ints(ends), "a": ints(range(rank)), "shape": ints(shape)}
    part = tuple(slice(0, e) for e in ends)
    return "c = Slice(x, s, e, a) y = Expand(c, shape)", constants, lambda x: np.broadcast_to(x[part], shape)


def broadcast(rank: int) -> Case:
    ends, starts = [1 + i % 2 for i in range(rank)], [i % 2 for i in range(rank)]
    constants = {
        "s": ints([0] * rank),
        "e": ints(ends),
        "a": ints(range(rank)),
        "s2": ints(starts),
        "e2": ints([2] * rank),
    }
    first, second = tuple(slice(0, e) for e in ends), tuple(slice(s, 2) for s in starts)
    nodes = "c = Slice(x, s, e, a) d = Slice(x, s2, e2, a) y = Sub(c, d)"
    return nodes, constants, lambda x: x[first] - x[second]


def reduced(rank: int) -> Case:
    axes = tuple(range(0, rank, 2))
    return "y = ReduceMax<keepdims = 0>(x, axes)", {"axes": ints(axes)}, lambda x: x.max(axes)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("build", [turned, turned_and_added, cut, repeated, broadcast, reduced])
def test_every_axis_by_itself(build: Callable[[int], Case], rank: int) -> None:
    nodes, constants, compute = build(rank)
    size = 3 if build is cut and rank < 10 else 2
    x = np.random.default_rng(rank).standard_normal([size] * rank).astype(np.float32)
    dims = ", ".join([str(size)] * rank)
    model = model_of(f"g (float[{dims}] x) => (float[] y) {{ {nodes} }}", constants, opset=18)
    program = ppuc.compile(model, target=TINY)
    assert program.plan is None
    result = program.run({"x": x})
    np.testing.assert_array_equal(result.outputs["y"], compute(x))
    assert not result.profile.hazards
    kernels = [k for s in program.artifact.program.segments for k in s.kernels]
    assert max(len(p.view.shape) for k in kernels for p in k.params) <= MAX_VIEW_RANK

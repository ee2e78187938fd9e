"""The pass `lower-data-movement`: the ops that remain, and that values do not change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.passes.normalise.lower_data_movement import LowerDataMovement
from ppuc.compiler.passes.rules.pads import MOST_PARTS, runs
from ppuc.compiler.passes.rules.scans import block_size, longest_row
from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops.movement import (
    GatherElementsAttrs,
    GatherNdAttrs,
    PadAttrs,
    ScatterElementsAttrs,
    ScatterNdAttrs,
)
from ppuc.ir.ops.reduction import CumsumAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from ppuc.ir.verify import verify_graph
from ppuc.targets.description import load_target

TINY = load_target("ppu-tiny")
DIMS = st.integers(1, 5)


def graph_of(name: str, attrs: Attrs, arrays: Sequence[np.ndarray], constant: Sequence[int] = ()) -> Graph:
    """One op on parameters p0, p1, ...; those in `constant` are constants."""
    builder, params, operands = Builder([f"p{i}" for i in range(len(arrays))]), [], []
    for i, array in enumerate(arrays):
        if i in constant:
            operands.append(builder.const(array))
        else:
            params.append(Value(f"p{i}", TensorType(DType.of(array.dtype), array.shape)))
            operands.append(params[-1])
    result = builder(name, *operands, attrs=attrs)
    return Graph("g", tuple(params), (result,), tuple(builder.ops))


def moved(graph: Graph) -> Graph:
    module = Module("ppu-tiny", "", (), (), (("y", graph.results[0].name),), graph)
    after = LowerDataMovement().run(module, TINY)
    verify_graph(after.graph)
    assert after.outputs == (("y", after.graph.results[0].name),)
    assert LowerDataMovement().run(after, TINY) is after
    _check_forms(after.graph)
    return after.graph


def _check_forms(graph: Graph) -> None:
    for op in graph.ops:
        assert op.name not in ("gather_nd", "gather_elements", "scatter_elements")
        if op.name == "scatter_nd":
            data, indices, updates = (v.type for v in op.operands)
            assert (data.rank, indices.rank, indices.dims[1], updates.rank) == (2, 2, 1, 2)
        if op.name == "pad":
            attrs = op.attrs
            assert isinstance(attrs, PadAttrs)
            assert attrs.mode == "constant"
            assert not any(attrs.interior)
            assert min(attrs.low + attrs.high) >= 0
        if op.name == "cumsum":
            assert isinstance(op.attrs, CumsumAttrs)
            x = op.operands[0].type
            assert x.dims[op.attrs.axis] <= longest_row(x.dtype, TINY)


def results(graph: Graph, arrays: Sequence[np.ndarray]) -> np.ndarray:
    feeds = {p.name: arrays[int(p.name[1:])] for p in graph.params}
    (result,) = run_graph(graph, feeds).values()
    return np.ascontiguousarray(result)


def check(name: str, attrs: Attrs, *arrays: np.ndarray, constant: Sequence[int] = ()) -> Graph:
    """The graph after the pass, which must compute the same bits."""
    before = graph_of(name, attrs, arrays, constant)
    after = moved(before)
    np.testing.assert_array_equal(
        results(after, arrays).view(np.uint8), results(before, arrays).view(np.uint8), strict=True
    )
    return after


def data(*shape: int, dtype: DType = DType.F32) -> np.ndarray:
    return (np.arange(1, math.prod(shape) + 1) % 251).reshape(shape).astype(dtype.numpy)


def names(graph: Graph) -> set[str]:
    return {op.name for op in graph.ops}


# -- pads ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_constant_pads(source: st.DataObject) -> None:
    shape = tuple(source.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    interior = tuple(source.draw(st.integers(0, 2)) for _ in shape)
    low, high = [], []
    for n, i in zip(shape, interior, strict=True):
        extent = n + max(n - 1, 0) * i
        low.append(source.draw(st.integers(-extent, 3)))
        high.append(source.draw(st.integers(-extent - min(low[-1], 0) if low[-1] < 0 else -extent - low[-1], 3)))
    dtype = source.draw(st.sampled_from([DType.F32, DType.I64, DType.BOOL, DType.BF16]))
    check("pad", PadAttrs(tuple(low), tuple(high), interior, 1.0), data(*shape, dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mirrored_and_wrapped_pads(source: st.DataObject) -> None:
    shape = tuple(source.draw(st.lists(DIMS, min_size=1, max_size=3)))
    low, high = (tuple(source.draw(st.integers(0, 7)) for _ in shape) for _ in range(2))
    mode = source.draw(st.sampled_from(["edge", "reflect", "wrap"]))
    check("pad", PadAttrs(low, high, (0,) * len(shape), mode=mode), data(*shape))


def test_reflection_is_three_slices() -> None:
    after = check("pad", PadAttrs((0, 20), (0, 20), (0, 0), mode="reflect"), data(2, 400))
    assert [op.name for op in after.ops] == ["slice", "slice", "slice", "concat"]


def test_many_reflections_are_a_gather() -> None:
    assert "gather" in names(check("pad", PadAttrs((0,), (MOST_PARTS * 3,), (0,), mode="wrap"), data(3)))


@given(st.lists(st.integers(-4, 4), max_size=12))
def test_runs_spell_their_positions(positions: list[int]) -> None:
    found = runs(np.array(positions, np.int64))
    assert [start + i * step for start, size, step in found for i in range(size)] == positions
    assert all(abs(step) <= 1 for _, _, step in found)


def test_a_growing_pad_stays() -> None:
    graph = graph_of("pad", PadAttrs((1, 0), (0, 2), (0, 0), 3.0), [data(2, 3)])
    assert moved(graph) is graph


# -- gathers ---------------------------------------------------------------------------------------------------------


def drawn_indices(source: st.DataObject, sizes: Sequence[int], *shape: int) -> np.ndarray:
    """Indices [*shape, len(sizes)], component k of them in [-sizes[k], sizes[k])."""
    seed = source.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    parts = [rng.integers(-n, n, shape) if n else np.zeros(shape, np.int64) for n in sizes]
    dtype = source.draw(st.sampled_from([np.int64, np.int32]))
    return np.stack(parts, axis=-1).astype(dtype) if parts else np.zeros((*shape, 0), dtype)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_gather_nd(source: st.DataObject) -> None:
    batch = source.draw(st.lists(DIMS, max_size=2))
    sizes, rest = source.draw(st.lists(DIMS, max_size=3)), source.draw(st.lists(st.integers(0, 4), max_size=2))
    if not batch and not sizes and not rest:
        rest = [3]
    if len(batch) == len(batch + sizes + rest):
        rest = [2]
    lead = source.draw(st.lists(st.integers(0, 4), max_size=2))
    indices = drawn_indices(source, sizes, *batch, *lead)
    constant = source.draw(st.sampled_from([(), (1,)]))
    check("gather_nd", GatherNdAttrs(len(batch)), data(*batch, *sizes, *rest), indices, constant=constant)


def test_constant_indices_leave_no_arithmetic() -> None:
    indices = np.array([[0, 1], [-1, -2], [1, 0]])
    after = check("gather_nd", GatherNdAttrs(0), data(2, 3, 4), indices, constant=(1,))
    assert [op.name for op in after.ops if op.name != "const"] == ["reshape", "gather"]


def inside(source: st.DataObject) -> tuple[tuple[int, ...], int, np.ndarray]:
    """A shape, an axis, and indices along it that lie inside the shape elsewhere."""
    shape = tuple(source.draw(st.lists(DIMS, min_size=1, max_size=4)))
    axis = source.draw(st.integers(0, len(shape) - 1))
    lengths = [source.draw(st.integers(0, 6) if i == axis else st.integers(0, n)) for i, n in enumerate(shape)]
    return shape, axis, drawn_indices(source, [shape[axis]], *lengths)[..., 0]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_gather_elements(source: st.DataObject) -> None:
    shape, axis, indices = inside(source)
    check("gather_elements", GatherElementsAttrs(axis), data(*shape), indices)


# -- scatters --------------------------------------------------------------------------------------------------------

REDUCTIONS = st.sampled_from(["none", "add", "mul", "min", "max"])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_scatter_elements(source: st.DataObject) -> None:
    shape, axis, indices = inside(source)
    updates = data(*indices.shape) / np.float32(8)
    check("scatter_elements", ScatterElementsAttrs(axis, source.draw(REDUCTIONS)), data(*shape), indices, updates)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_scatter_nd(source: st.DataObject) -> None:
    sizes, rest = source.draw(st.lists(DIMS, max_size=3)), source.draw(st.lists(st.integers(0, 4), max_size=2))
    lead = source.draw(st.lists(st.integers(0, 4), max_size=2))
    indices = drawn_indices(source, sizes, *lead)
    updates = data(*lead, *rest) / np.float32(8)
    check("scatter_nd", ScatterNdAttrs(source.draw(REDUCTIONS)), data(*sizes, *rest), indices, updates)


def test_rows_stay() -> None:
    arrays = [data(4, 3), np.array([[1], [-1]]), data(2, 3)]
    graph = graph_of("scatter_nd", ScatterNdAttrs(), arrays)
    assert moved(graph) is graph


# -- scans -----------------------------------------------------------------------------------------------------------

LONGEST = longest_row(DType.F32, TINY)


@pytest.mark.parametrize("extent", [LONGEST, LONGEST + 1, 2 * LONGEST - 1, 5000])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_long_scans_of_integers(extent: int, exclusive: bool, reverse: bool) -> None:
    x = np.random.default_rng(0).integers(-1000, 1000, (2, extent, 3)).astype(np.int32)
    after = check("cumsum", CumsumAttrs(1, exclusive, reverse), x)
    assert (sum(op.name == "cumsum" for op in after.ops) > 1) == (extent > LONGEST)


def test_scans_longer_than_a_block_of_blocks() -> None:
    extent = LONGEST * LONGEST + 7
    assert block_size(extent, LONGEST) <= LONGEST
    check("cumsum", CumsumAttrs(0, False, False), np.ones(extent, np.int32))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
def test_long_scans_of_floats(dtype: DType) -> None:
    """Within one rounding of the narrow type, and, in f32, log(n)-many roundings of the sum of magnitudes."""
    x = np.random.default_rng(1).random((1, 3000)).astype(dtype.numpy)
    before = graph_of("cumsum", CumsumAttrs(1, False, False), [x])
    result = results(moved(before), [x]).astype(np.float64)
    exact = np.cumsum(x.astype(np.float64), axis=1)
    roundings = {DType.F32: 2 * block_size(3000, LONGEST) * 2.0**-24, DType.F16: 2.0**-10, DType.BF16: 2.0**-7}[dtype]
    assert (np.abs(result - exact) <= roundings * exact).all()

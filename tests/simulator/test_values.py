"""The value loop: random boxes against their definition in ppuc.ir.tile, and results that do not depend on how many
tiles are computed at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

import ppuc
from ppuc.ir.affine import Affine, affine, axis, var
from ppuc.ir.errors import InternalError
from ppuc.ir.kernel import Gather, Load, Param, Store, View
from ppuc.ir.numerics import bits_dtype
from ppuc.ir.program import Copy, Instr, KernelProgram, Program, Queue, Ring, Segment, StreamLoop
from ppuc.ir.types import DType, Space
from ppuc.targets.description import load_target
from ppuc.targets.simulator import value_tables, values
from ppuc.targets.simulator.decode import FlatSegment, flatten
from ppuc.targets.simulator.memory import ChipMemory
from ppuc.targets.simulator.run import simulate
from ppuc.targets.simulator.tables import COPY, LOAD, LOG_END, LOG_ENV, LOG_INSTR, LOG_STREAM, STORE
from tests.fuzz.models import model_of_seed
from tests.support.simulator_programs import copy_program, program, tensor, use

TINY = load_target("ppu-tiny")
DTYPES = (DType.F32, DType.BF16, DType.I8, DType.I64)
INDEX_DTYPES = (DType.I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.U16)
STEPS = 5
"""Iterations of the loop that moves a box."""


def random_view(rng: np.random.Generator) -> View:
    """A view with its dimensions in any order in memory, some of them backwards."""
    shape = tuple(int(n) for n in rng.integers(1, 8, rng.integers(1, 5)))
    order = rng.permutation(len(shape))
    inner = View.contiguous(tuple(shape[d] for d in order)).strides
    strides = [0] * len(shape)
    for at, d in enumerate(order):
        strides[d] = inner[at]
    offset = int(rng.integers(0, 3))
    for d in np.flatnonzero(rng.random(len(shape)) < 0.2):
        offset, strides[d] = offset + (shape[d] - 1) * strides[d], -strides[d]
    return View(shape, tuple(strides), offset)


def random_box(rng: np.random.Generator, view: View, gather: bool) -> tuple[tuple[int, ...], list[Affine], int]:
    """Sizes of a tile, the affines of its box, which may leave the view on any side, and the gathered axis."""
    tile = tuple(int(n) for n in rng.integers(1, 5, rng.integers(1, 6)))
    gathered = int(rng.integers(len(tile))) if gather else -1
    index = [affine(int(rng.integers(-4, n + 2))) + var("m") * int(rng.integers(-1, 2)) for n in view.shape]
    for a in range(len(tile)):
        d, factor = int(rng.integers(len(view.shape) + 1)), int(rng.choice([1, 1, 1, 2, 3, -1, -2]))
        if a != gathered and d < len(view.shape) and not (gather and d == 0):
            index[d] += axis(a) * factor
    return tile, index, gathered


def move_program(move: Load | Store, view: View, tile: tuple[int, ...], dtype: DType, index: DType) -> Program:
    """Five iterations, each of which loads a tile and stores it: one of them moves a box, the other all of a tensor."""
    count = int(np.prod(tile))
    reach = [(n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)]
    elements = view.offset + sum(max(0, r) for r in reach) + 1
    loads = isinstance(move, Load)
    x, y = (elements, STEPS * count) if loads else (STEPS * count, elements)
    gather = move.gather if isinstance(move, Load) else move.scatter
    at, indices = 64 * (-(-x * 8 // 64)), tile[gather.axis] if gather else 1
    tensors = [
        tensor("x", x, Space.L2, 0, "input", dtype),
        tensor("i", STEPS * indices, Space.L2, at, "input", index),
        tensor("y", y, Space.L2, at + 4096, "output", dtype),
    ]
    strides = View.contiguous(tile).strides
    flat = View((STEPS, *tile), (count, *strides))
    params = (
        Param("x", "x", dtype, view if loads else flat, Space.L2),
        Param("i", "i", index, View.contiguous((STEPS, indices)), Space.L2),
        Param("y", "y", dtype, flat if loads else view, Space.L2, True),
    )
    rings = [Ring("t", dtype, tile, Space.L1, 0, 64 * (-(-count * 8 // 64)), 2, Queue.LOAD, (Queue.STORE,))]
    other = (var("m"), *(axis(a) for a in range(len(tile))))
    load = move if isinstance(move, Load) else Load("t", "x", other)
    store = move if isinstance(move, Store) else Store("y", "t", other)
    load_uses, store_uses = [use("claim", "t", 1), use("push", "t", 1)], [use("wait", "t", 1), use("pop", "t", 1)]
    body = []
    if gather:
        readers = (Queue.LOAD,) if loads else (Queue.STORE,)
        rings.append(Ring("i", index, (indices,), Space.L1, rings[0].slot_bytes * 2, 64, 2, Queue.LOAD, readers))
        fetch = Load("i", "i", (var("m"), axis(0)))
        body.append(Instr("load.box", fetch, (use("claim", "i", 1), use("push", "i", 1))))
        (load_uses if loads else store_uses).extend([use("wait", "i", 1), use("pop", "i", 1)])
    body.append(Instr("load.gather" if gather and loads else "load.box", load, tuple(load_uses)))
    out = Instr("store.scatter" if gather and not loads else "store.box", store, tuple(store_uses))
    streams = (
        (Queue.LOAD, (StreamLoop("m", 0, STEPS, 1, "u", tuple(body)),)),
        (Queue.STORE, (StreamLoop("m", 0, STEPS, 1, "u", (out,)),)),
    )
    kernel = KernelProgram("move", (("u", 1),), params, tuple(rings), streams, ("Move_0",))
    return program("move", tensors, Segment("s0", (kernel,), (), ()))


def moved(made: Program, feeds: Mapping[str, np.ndarray], like: DType) -> np.ndarray:
    result = simulate(made, (), TINY, {}, feeds)
    assert result.profile.hazards == ()
    return result.outputs["y"].view(bits_dtype(like))


def feeds_of(made: Program, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random bytes, and indices from a little before the first to a little after the last."""
    feeds = {}
    for t in made.tensors:
        if t.name == "x":
            feeds["x"] = rng.integers(0, 256, t.bytes, np.uint8).view(t.dtype.numpy)
        elif t.name == "i":
            low = 0 if t.dtype.numpy.kind == "u" else -9
            feeds["i"] = rng.integers(low, 9, t.elements).astype(t.dtype.numpy)
    return feeds


def places(
    index: list[Affine], tile: tuple[int, ...], view: View, gather: Gather | None, positions: np.ndarray, m: int
) -> np.ndarray:
    """The element of the tensor for each element of a tile, -1 outside the view; by definition."""
    found = np.full(tile, -1, np.int64)
    for i in np.ndindex(*tile):
        at = view.offset
        for d, expression in enumerate(index):
            position = expression.const + sum(c * (m if n == "m" else i[int(n[1:])]) for n, c in expression.terms)
            if gather is not None and d == gather.dim:
                position = int(positions[i[gather.axis]])
                position += view.shape[d] if position < 0 else 0
            if not 0 <= position < view.shape[d]:
                break
            at += position * view.strides[d]
        else:
            found[i] = at
    return found


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_boxes_are_loaded_as_defined(seed: int, gather: bool) -> None:
    rng = np.random.default_rng(seed)
    view, dtype, of = random_view(rng), DTYPES[seed % 4], INDEX_DTYPES[seed % 6]
    tile, index, gathered = random_box(rng, view, gather)
    found = Gather(0, "i", gathered) if gather else None
    made = move_program(Load("t", "x", tuple(index), 3.0, found), view, tile, dtype, of)
    feeds = feeds_of(made, rng)
    lists = feeds["i"].reshape(STEPS, -1)
    at = np.stack([places(index, tile, view, found, lists[m], m) for m in range(STEPS)])
    pad = np.array(3, dtype.numpy).view(bits_dtype(dtype))
    expected = np.where(at < 0, pad, feeds["x"].view(bits_dtype(dtype))[np.maximum(at, 0)])
    assert np.array_equal(moved(made, feeds, dtype), expected.reshape(-1))


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_boxes_are_stored_as_defined(seed: int, scatter: bool) -> None:
    """Where elements meet, the last one stays: those of later tiles, and of later positions in an index list."""
    rng = np.random.default_rng(seed)
    view, dtype, of = random_view(rng), DTYPES[seed % 4], INDEX_DTYPES[seed % 6]
    tile, index, gathered = random_box(rng, view, scatter)
    found = Gather(0, "i", gathered) if scatter else None
    made = move_program(Store("y", "t", tuple(index), found), view, tile, dtype, of)
    feeds = feeds_of(made, rng)
    tiles, lists = feeds["x"].view(bits_dtype(dtype)).reshape(STEPS, *tile), feeds["i"].reshape(STEPS, -1)
    expected = np.full(made.tensors[-1].bytes, 0xFF, np.uint8).view(bits_dtype(dtype))
    for m in range(STEPS):
        at = places(index, tile, view, found, lists[m], m)
        for i in np.ndindex(*tile):
            if at[i] >= 0:
                expected[at[i]] = tiles[m][i]
    assert np.array_equal(moved(made, feeds, dtype), expected)


def test_a_view_that_leaves_its_tensor() -> None:
    made = copy_program(8, 12, 4)
    segment = made.segments[0]
    kernel = segment.kernels[0]
    params = (replace(kernel.params[0], view=View((8, 12), (13, 1))), kernel.params[1])
    segment = replace(segment, kernels=(replace(kernel, params=params),))
    with pytest.raises(InternalError, match="the view of %x covers elements 0 to 102 of a tensor of 96"):
        simulate(replace(made, segments=(segment,)), (), TINY, {}, {"x": np.zeros(96, np.float32)})


# Many tiles at once.


def outputs(compiled: ppuc.CompiledProgram, feeds: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in compiled.run(feeds).outputs.items()}


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_results_do_not_depend_on_how_many_tiles_are_computed_at_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = model_of_seed(seed, 6)
    target, precision = (("zhenwu-m890", "bf16"), ("ppu-tiny", "model"), ("zhenwu-810e", "fp8"))[seed // 4 % 3]
    compiled = ppuc.compile(sample.model, target=target, precision=precision, values=sample.feeds)
    expected = outputs(compiled, sample.feeds)
    for together, pending, lanes in ((1, 1, 1), (3, 5, 2), (7, 2048, 16)):
        monkeypatch.setattr(value_tables, "MOST_TOGETHER", together)
        monkeypatch.setattr(value_tables, "MOST_PENDING", pending)
        monkeypatch.setattr(value_tables, "LANES", lanes)
        monkeypatch.setattr(values, "LANES", lanes)
        assert outputs(compiled, sample.feeds) == expected


# Loads in flight.


def rows_of(flat: FlatSegment, *rows: tuple[int, int, int, int]) -> np.ndarray:
    """A log of (0: start or 1: completion, stream, instruction, loop value); all slots are number 0."""
    log = np.zeros((len(rows), LOG_ENV + flat.code.depth + 2), np.int64)
    for row, (what, stream, instr, m) in zip(log, rows, strict=True):
        row[[LOG_END, LOG_STREAM, LOG_INSTR, LOG_ENV]] = what, stream, instr, m
    return log


@pytest.mark.parametrize("writer", ["store", "copy"])
def test_a_load_reads_what_was_there_at_its_start(writer: str) -> None:
    """Its source is overwritten before it completes. Tile 1 of x lies where tile 0 of y does."""
    rows, cols, size = 2, 4, 16
    made = copy_program(rows, cols, 1, depth=1)
    x, y = (t for t in made.tensors if t.name in "xy")
    segment = made.segments[0]
    copies = (Copy(0, "x", "z", 0, rows * cols),)
    made = replace(
        made,
        tensors=(x, replace(y, address=size), tensor("z", rows * cols, Space.L2, 256, "input")),
        segments=(replace(segment, copies=copies),),
    )
    flat = flatten(made, made.segments[0], {}, TINY)
    data = np.arange(rows * cols, dtype=np.float32)
    feeds = {"x": data, "z": -1 - data}
    chip = ChipMemory(made, {}, feeds)
    found = values.SegmentValues(flat, {}, chip, TINY)
    kinds = [int(kind) for kind in flat.code.ins["kind"]]
    load, store, copy = (kinds.index(kind) for kind in (LOAD, STORE, COPY))
    first = [(0, 0, load, 0), (1, 0, load, 0), (0, 1, store, 0)]
    write = [(1, 1, store, 0)] if writer == "store" else [(0, 4 * TINY.cu, copy, 0), (1, 4 * TINY.cu, copy, 0)]
    last = [(0, 0, load, 1), *write, (1, 0, load, 1), (0, 1, store, 1), (1, 1, store, 1)]
    found.consume(rows_of(flat, *first))
    found.consume(rows_of(flat, *(last if writer == "store" else [*last[:4], (1, 1, store, 0), *last[4:]])))
    stored = chip.bytes_of("y").view(np.float32).reshape(rows, cols)
    assert np.array_equal(stored[1], data[cols:])
    assert np.array_equal(stored[0], data[:cols])

"""Attention kernels against the graph interpreter, run by the kernel interpreter."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ppuc.compiler.lowering.kernels.attention import AttentionLowering, check_attention
from ppuc.compiler.lowering.kernels.attention_tiles import Shape, bands_of
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.interpret_kernel import run_kernel
from ppuc.ir.kernel import Loop, Stmt
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs, TransposeAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, Space, TensorType
from ppuc.ir.verify import verify_kernel, verify_vector
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target

TARGETS = ("ppu-tiny", "zhenwu-m890")
UNIT = {DType.F32: 2.0**-24, DType.BF16: 2.0**-8, DType.F16: 2.0**-11, DType.F8E4M3: 2.0**-4, DType.F8E5M2: 2.0**-3}


@functools.cache
def target_of(name: str) -> Target:
    return load_target(name)


@dataclass(frozen=True)
class Case:
    """Sizes of one attention. `mask` is the shape of the mask operand; `perm` how k and v lie in memory: "heads"
    [B, G, S, D], "rows" [B, S, G, D] (as a projection writes them), "columns" [B, G, D, S]."""

    batch: int = 1
    heads: int = 2
    groups: int = 2
    m: int = 17
    s: int = 33
    d: int = 8
    e: int = 8
    causal: bool = False
    mask: tuple[int, ...] | None = None
    dtype: DType = DType.F32
    memory: str = "heads"
    merged: bool = False
    out: DType | None = None


def body_of(case: Case) -> Graph:
    """The attention of `case`, its operands read through the transposes that the memory needs; when `merged`, its heads
    are put side by side and a residual is added."""
    b = Builder({"q", "k", "v", "mask", "res"})
    params, operands = [], []
    shapes = {
        "q": (case.batch, case.heads, case.m, case.d),
        "k": (case.batch, case.groups, case.s, case.d),
        "v": (case.batch, case.groups, case.s, case.e),
    }
    perm = {"heads": (0, 1, 2, 3), "rows": (0, 2, 1, 3), "columns": (0, 1, 3, 2)}[case.memory]
    for name, shape in shapes.items():
        params.append(Value(name, TensorType(case.dtype, tuple(shape[p] for p in perm))))
        plain = case.memory == "heads"
        operands.append(params[-1] if plain else b("transpose", params[-1], attrs=TransposeAttrs(perm)))
    if case.mask is not None:
        params.append(Value("mask", TensorType(DType.F32, case.mask)))
        operands.append(params[-1])
    y = b("attention", *operands, attrs=AttentionAttrs(case.d**-0.5, case.causal, case.out))
    if case.merged:
        rows = b("transpose", y, attrs=TransposeAttrs((0, 2, 1, 3)))
        flat = b("reshape", rows, attrs=ReshapeAttrs((case.batch, case.m, case.heads * case.e)))
        params.append(Value("res", flat.type))
        y = b("add", flat, params[-1])
    return Graph("body", tuple(params), (y,), tuple(b.ops))


def feeds_of(body: Graph, hidden: float | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    feeds = {p.name: rng.standard_normal(p.type.dims).astype(p.type.dtype.numpy) for p in body.params}
    if hidden is not None:
        mask = feeds["mask"]
        mask[rng.random(mask.shape) < 0.4] = hidden
    return feeds


def lowering_of(body: Graph, target: Target) -> AttentionLowering:
    check_attention(body, target)
    names = {v.name: v.name for v in (*body.params, *body.results)}
    return AttentionLowering("k", body, names, ("node",), target)


def executed(
    body: Graph, feeds: dict[str, np.ndarray], target: Target, shape: Shape | None = None
) -> tuple[np.ndarray, AttentionLowering]:
    """(result, the lowering), with the given tiles instead of the chosen ones."""
    lowering = lowering_of(body, target)
    if shape is not None:
        lowering.choose = lambda: shape  # type: ignore[method-assign]
    kernel, vectors = lowering.lower().finish()
    verify_kernel(kernel, vectors)
    for vector in vectors:
        verify_vector(vector)
    for space, size in ((Space.L1, target.l1.bytes), (Space.ACC, target.acc.bytes)):
        assert sum(-(-b.bytes // 32) * 32 * b.depth for b in kernel.buffers if b.space is space) <= size
    assert kernel.units <= target.cu
    result = body.results[0]
    memory = {name: np.array(a).reshape(-1).view(np.uint8) for name, a in feeds.items()}
    memory[result.name] = np.full(result.type.bytes, 0xA5, np.uint8)
    run_kernel(kernel, {v.name: v for v in vectors}, memory)
    return memory[result.name].view(result.type.dtype.numpy).reshape(result.type.dims), lowering


def loops_of(body: Sequence[Stmt]) -> Iterator[Loop]:
    """Every loop, outer ones first."""
    for stmt in body:
        if isinstance(stmt, Loop):
            yield stmt
            yield from loops_of(stmt.body)


def check(case: Case, target: str, hidden: float | None = None, shape: Shape | None = None) -> AttentionLowering:
    """Scores are sums of d products and the result one of s; an error of the scores changes weights by as much
    relatively, and weights and result are rounded once each to the operands' type, here and in the reference."""
    body = body_of(case)
    feeds = feeds_of(body, hidden)
    got, lowering = executed(body, feeds, target_of(target), shape)
    (expected,) = run_graph(body, feeds).values()
    e = expected.astype(np.float64)
    scores = 8 * math.sqrt(case.d) * UNIT[DType.F32] * 4
    relative = scores + 4 * math.sqrt(case.s) * UNIT[DType.F32]
    relative += 4 * UNIT[case.dtype] if case.dtype is not DType.F32 else 0
    assert np.isfinite(e).any()
    scale = float(np.abs(e[np.isfinite(e)]).max())
    np.testing.assert_allclose(got.astype(np.float64), e, rtol=0, atol=relative * scale, equal_nan=True)
    return lowering


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(target: str, dtype: DType, causal: bool) -> None:
    check(Case(batch=2, heads=3, groups=3, m=37, s=70, d=16, e=24, dtype=dtype, causal=causal), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [DType.F8E4M3, DType.F8E5M2], ids=str)
@pytest.mark.parametrize("keys", [16, 70])
def test_attention_on_8_bit_floats(target: str, dtype: DType, keys: int) -> None:
    """Sums in f32 of weights that are rounded in the middle of the format's range, in one tile of keys and in several:
    the smallest weights, 2^-9 of the largest, are not lost. Both round weights once, at different multiples."""
    case = Case(batch=2, heads=3, groups=3, m=37, s=70, d=16, e=24, dtype=dtype, out=DType.F32)
    check(case, target, shape=Shape(1, 8, 1, keys, 16, 24, 2, 1))
    check(Case(heads=6, groups=2, m=5, s=70, mask=(5, 70), dtype=dtype, causal=True, out=DType.F32), target, hidden=-9)
    check(replace(case, out=None), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("parts", [1, 2])
def test_ragged_tiles(target: str, size: int, parts: int) -> None:
    """Tiles of 8 or 16 on the rows, 16 on the keys, with and without alternating parts."""
    shape = Shape(1, 8, parts, 16, 8, 8, 2, 1)
    case = Case(m=size, s=size + 1, causal=True, mask=(1, 1, size, size + 1))
    check(case, target, hidden=-1e4, shape=shape)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("parts", [3, 4])
@pytest.mark.parametrize("m", [25, 32, 40])
def test_more_parts_and_single_slots(target: str, parts: int, m: int) -> None:
    """Parts of 8 rows; the last one may lie partly or wholly outside."""
    check(Case(m=m, s=49, causal=True), target, shape=Shape(1, 8, parts, 16, 8, 8, 2, 1, 1))
    check(Case(m=m, s=49), target, shape=Shape(1, 8, parts, 16, 8, 8, 2, 2, 2))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "s"), [(17, 33), (17, 32), (17, 31), (1, 40), (40, 40), (2, 64), (5, 36)])
@pytest.mark.parametrize("depth", [8, 16])
def test_keys_that_every_row_sees_are_not_masked(target: str, m: int, s: int, depth: int) -> None:
    """Tiles of 16 keys: masked ones begin with the first key that the first row does not see."""
    case = Case(m=m, s=s, d=16, e=8, causal=True, mask=(1, 1, m, s))
    lowering = check(case, target, hidden=-7.0, shape=Shape(1, 8, 2 if m > 8 else 1, 16, depth, 8, 2, 1))
    kernel, vectors = lowering.kernel.finish()
    rows = {loop.var: loop for loop in loops_of(kernel.body)}.get("m")
    wave = m if rows is None else rows.stop
    bands = bands_of(m, wave) if m > 1 else [(0, m)]
    unmasked = [(start + s - m + 1) // 16 if m > 1 else 0 for start, _ in bands]
    assert ("k.visible" in {v.name for v in vectors}) == any(unmasked)
    compared = {v.name for v in vectors if any(step.op == "le" for step in v.steps)}
    assert compared == ({"k.softmax"} if m > 1 else set())
    keys = [loop for loop in loops_of(kernel.body) if loop.var[0] in "st"]
    walks = [(16 * n, stop + s - m - 16 * n) for n, (_, stop) in zip(unmasked, bands, strict=True)]
    assert [loop.stop for loop in keys] == [n for walk in walks for n in walk if n]


@pytest.mark.parametrize("target", TARGETS)
def test_cut_depth_and_value_columns(target: str) -> None:
    """Heads too wide for l1: q . k in pieces, and the softmax again for each part of the value columns."""
    check(Case(m=10, s=40, d=40, e=24), target, shape=Shape(1, 4, 2, 16, 16, 16, 2, 1))
    check(Case(m=10, s=12, d=40, e=24), target, shape=Shape(1, 4, 1, 12, 16, 16, 2, 1))
    check(Case(heads=1, groups=1, m=9, s=50, d=512, e=300), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("memory", ["rows", "columns"])
@pytest.mark.parametrize("merged", [False, True])
def test_operands_and_result_in_any_order_of_memory(target: str, memory: str, merged: bool) -> None:
    check(Case(batch=2, m=19, s=45, d=16, e=16, memory=memory, merged=merged), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 3, 40])
@pytest.mark.parametrize("merged", [False, True])
def test_grouped_heads(target: str, m: int, merged: bool) -> None:
    case = Case(batch=2, heads=6, groups=2, m=m, s=90, d=16, e=16, causal=True, merged=merged, mask=(2, 1, 1, 90))
    check(case, target, hidden=-math.inf)
    check(Case(heads=6, groups=2, m=m, s=90, mask=(6, m, 90)), target, hidden=-1e9)


def test_heads_of_a_group_share_loaded_keys() -> None:
    """One query a head: the rows of a tile are the heads of a group."""
    case = Case(batch=8, heads=32, groups=8, m=1, s=256, d=64, e=64, dtype=DType.BF16)
    lowering = check(case, "zhenwu-m890")
    assert lowering.shape.heads == 4


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mask", [(33,), (17, 1), (1, 1, 17, 33), (2, 1, 33), (2, 1, 1, 33), (2, 2, 17, 33)], ids=str)
def test_masks_broadcast(target: str, mask: tuple[int, ...]) -> None:
    check(Case(batch=2, mask=mask), target, hidden=-10.0)
    check(Case(batch=2, mask=mask), target, hidden=-10.0, shape=Shape(1, 8, 2, 16, 8, 8, 1, 1))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("hidden", [-math.inf, float(np.finfo(np.float32).min), -1e30])
@pytest.mark.parametrize("streamed", [False, True])
def test_rows_that_see_nothing(target: str, hidden: float, streamed: bool) -> None:
    """NaN when all keys are masked with -inf, their mean when all are masked with the same finite value; and a first
    tile of keys that is wholly hidden leaves no trace."""
    case = Case(m=6, s=24, mask=(1, 1, 6, 24))
    body = body_of(case)
    feeds = feeds_of(body, None)
    feeds["mask"][..., 0, :] = hidden
    feeds["mask"][..., 1, :8] = hidden
    feeds["mask"][..., 2, 8:] = hidden
    shape = Shape(1, 2, 2, 8, 8, 8, 2, 1) if streamed else Shape(1, 2, 1, 24, 8, 8, 1, 1)
    got, _ = executed(body, feeds, target_of(target), shape)
    (expected,) = run_graph(body, feeds).values()
    assert np.isnan(expected[..., 0, :]).all() == math.isinf(hidden)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_large_scores_do_not_overflow() -> None:
    case = Case(m=5, s=64, d=8, e=8)
    body = body_of(case)
    feeds = feeds_of(body, None)
    feeds["q"] *= 1e4
    feeds["k"] *= 1e4
    got, _ = executed(body, feeds, target_of("ppu-tiny"), Shape(1, 5, 1, 16, 8, 8, 2, 1))
    (expected,) = run_graph(body, feeds).values()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_all_keys_in_one_tile_carry_no_state() -> None:
    lowering = check(Case(m=17, s=33, d=16, e=16), "zhenwu-m890")
    kernel, vectors = lowering.kernel.finish()
    assert lowering.shape.keys == 33
    assert not any(isinstance(stmt, Loop) and stmt.var == "s" for stmt in kernel.body)
    assert {v.name for v in vectors} == {"k.softmax", "k"}


def test_long_attention_keeps_every_unit_busy() -> None:
    case = Case(heads=8, groups=8, m=2048, s=2048, d=64, e=64, dtype=DType.BF16)
    kernel, _ = lowering_of(body_of(case), target_of("zhenwu-m890")).lower().finish()
    assert kernel.units == 64


def test_reasons() -> None:
    case = Case(dtype=DType.F32)
    body = body_of(case)
    b = Builder({"q", "k", "v"})
    params = body.params
    y = b("attention", *params, attrs=AttentionAttrs(1.0))
    total = b("reduce", y, attrs=ReduceAttrs("sum", (2,), True))
    with pytest.raises(NotFusable, match="a reduction"):
        check_attention(Graph("body", params, (total,), tuple(b.ops)), target_of("ppu-tiny"))
    b = Builder({"q", "k", "v"})
    q = b("relu", params[0])
    y = b("attention", q, *params[1:], attrs=AttentionAttrs(1.0))
    with pytest.raises(NotFusable, match="not a strided view of memory"):
        check_attention(Graph("body", params, (y,), tuple(b.ops)), target_of("ppu-tiny"))

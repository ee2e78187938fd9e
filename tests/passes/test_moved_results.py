"""Chains of data movement are one kernel, or none: results stored in parts equal results that are moved."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppuc.ir.graph import Value
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.joined_kernels import checked, join_always, kinds
from tests.support.moved_values import focused, from_windows, moved, moves, rolled, to_windows, wrapped
from tests.support.pass_graphs import Sketch

TINY, EDGE = load_target("ppu-tiny"), load_target("ppu-edge")
LARGE, OTHER = load_target("zhenwu-m890"), load_target("zhenwu-810e")
ALL = (TINY, EDGE, LARGE, OTHER)
PRECISIONS = ("model", "bf16")


def linear(s: Sketch, x: Value, outputs: int) -> Value:
    k = x.type.dims[-1]
    return s.op("add", s.matmul(x, s.weight(k, outputs, scale=1 / math.sqrt(k))), s.weight(outputs))


def shifted(s: Sketch, x: Value, by: int) -> Value:
    return rolled(s, rolled(s, x, 1, by), 2, by)


def swin_block(s: Sketch, x: Value, side: int, shift: int) -> Value:
    """A block of shifted windows on [n, h, w, c], a product instead of attention."""
    n, h, w, c = x.type.dims
    windows = to_windows(s, shifted(s, s.layer_norm(x), -shift), side)
    mixed = linear(s, s.op("relu", linear(s, windows, 2 * c)), c)
    return s.op("add", x, shifted(s, from_windows(s, mixed, n, h, w), shift))


@pytest.mark.parametrize("target", ALL, ids=lambda t: t.name)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("size", "side", "shift"), [((8, 12), 4, 2), ((14, 14), 7, 3), ((6, 6), 3, 1)])
def test_shifted_windows(size: tuple[int, int], side: int, shift: int, precision: str, target: Target) -> None:
    s = Sketch(1)
    y = swin_block(s, s.param(2, *size, 16), side, shift)
    checked(s, target, linear(s, s.layer_norm(y), 16), precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_kernel_only_moves_in_a_shifted_block(precision: str) -> None:
    s = Sketch(2)
    y = swin_block(s, linear(s, s.param(1, 28, 28, 32), 32), 7, 3)
    done = checked(s, LARGE, linear(s, s.layer_norm(y), 32), precision=precision)
    assert not {"copy", "concat"} & {*kinds(done)}


def test_a_chain_that_nothing_computes_is_one_kernel() -> None:
    s = Sketch(3)
    done = checked(s, LARGE, to_windows(s, shifted(s, s.param(1, 28, 28, 32), -3), 7))
    assert kinds(done) == ["concat"]


@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rolled_results_of_every_kind(axis: int, target: Target) -> None:
    """A product, an elementwise op, a reduction, a pool, a convolution: each stores its result in parts."""
    s = Sketch(4)
    x = s.param(1, 8, 12, 10)
    flat = s.param(6, 10, 16)
    image = s.transpose(s.op("relu", s.conv(x, 8, 3)), 0, 2, 3, 1)
    pooled = s.transpose(s.pool("max", s.param(1, 8, 12, 10), 2, 1), 0, 2, 3, 1)
    checked(
        s,
        target,
        rolled(s, linear(s, flat, 24), axis, 3),
        rolled(s, s.op("relu", s.param(7, 9, 33)), axis, -2),
        rolled(s, s.softmax(s.param(5, 6, 40)), axis, 1),
        rolled(s, image, axis + 1, 5),
        rolled(s, pooled, axis + 1, 2),
    )


@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
def test_other_readers_get_the_result_before_it_is_moved(target: Target) -> None:
    s = Sketch(5)
    y = linear(s, s.param(24, 32), 32)
    checked(s, target, s.op("relu", rolled(s, y, 0, 5)), s.op("neg", y))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
def test_elements_that_are_stored_twice_or_not_at_all(target: Target) -> None:
    s = Sketch(6)
    wide = wrapped(s, wrapped(s, s.op("relu", s.param(2, 9, 11, 8)), 1), 2)
    half = s.slice(linear(s, s.param(24, 32), 32), (4, 0), (9, 32))
    checked(s, target, wide, half, focused(s, linear(s, s.param(24, 32), 16), 0, 1))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are joined wherever a kernel exists."""
    join_always(monkeypatch)


PRODUCERS = ("relu", "linear", "mlp", "norm", "input")


def produced(s: Sketch, name: str, shape: tuple[int, ...]) -> Value:
    x = s.param(*shape)
    if name == "input":
        return x
    if name == "mlp":
        return linear(s, s.op("relu", linear(s, x, 24)), shape[-1])
    return {
        "relu": lambda: s.op("relu", x),
        "linear": lambda: linear(s, x, shape[-1]),
        "norm": lambda: s.layer_norm(x),
    }[name]()


@pytest.mark.usefixtures("always")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    producer=st.sampled_from(PRODUCERS),
    shape=st.sampled_from([(12, 16), (1, 36, 8), (2, 6, 8, 12), (4, 7, 9)]),
    steps=moves(),
    target=st.sampled_from([TINY, LARGE]),
    precision=st.sampled_from(PRECISIONS),
    read=st.booleans(),
)
def test_any_chain(
    producer: str,
    shape: tuple[int, ...],
    steps: list[tuple[str, int, int, int]],
    target: Target,
    precision: str,
    read: bool,
) -> None:
    s = Sketch(7)
    y = moved(s, produced(s, producer, shape), steps)
    checked(s, target, linear(s, y, 16) if read and y.type.rank > 1 else y, precision=precision)


@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
def test_results_along_more_axes_than_a_descriptor_has(target: Target) -> None:
    """The rows of a result that is turned, its columns and its sum may be more axes than a kernel walks."""
    s = Sketch()
    y = s.matmul(s.param(4, 12, 12, 12, 16), s.weight(16, 16))
    checked(s, target, s.transpose(s.reshape(y, 2, 2, 4, 3, 2, 6, 12, 16), 1, 0, 3, 2, 5, 4, 7, 6))

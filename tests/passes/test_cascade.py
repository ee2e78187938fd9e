"""Cascades: a window and the product that reads it in one kernel, chosen by cost, equal to the two kernels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import networks
from ppuc.compiler.driver import compile_model
from ppuc.compiler.lowering.kinds import joined_kinds, lower_group
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.grouping import cascade
from ppuc.compiler.report.fusion import fusion_record
from ppuc.ir.graph import Value
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from tests.support.joined_kernels import checked, join_always, kinds
from tests.support.pass_graphs import Sketch

TINY, LARGE = load_target("ppu-tiny"), load_target("zhenwu-m890")


def separable(s: Sketch, x: Value, outputs: int, stride: int = 1, residual: bool = False) -> Value:
    """Depthwise convolution with bias and relu6, pointwise convolution with bias, perhaps x added."""
    c, ones = x.type.dims[1], (1,) * (x.type.rank - 2)
    h = s.op("relu", s.op("add", s.conv(x, c, 3, stride, groups=c), s.weight(c, *ones)))
    y = s.op("add", s.conv(s.op("min", h, s.number(6.0)), outputs, 1), s.weight(outputs, *ones))
    return s.op("add", y, x) if residual else y


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cascade that has a kernel is taken."""
    join_always(monkeypatch)
    monkeypatch.setattr(cascade, "joined_kinds", lambda groups: [k for k in joined_kinds(groups) if not k.shares])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize(("size", "stride"), [(6, 1), (7, 1), (15, 2), (16, 2), (17, 1)])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_separable_convolutions(target: Target, size: int, stride: int, precision: str) -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(2, 3, size, size + 2), 48, 3))
    y = separable(s, x, 24, stride)
    module = checked(s, target, s.op("neg", y), precision=precision)
    assert "cascade" in kinds(module)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
def test_residuals_pools_and_one_dimension(target: Target) -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(1, 3, 9, 9), 32, 3))
    x = separable(s, x, 32, residual=True)
    x = s.conv(s.pool("max", x, 3, 2), 16, 1)
    line = s.op("relu", s.conv(s.param(2, 16, 33), 32, 3))
    module = checked(s, target, x, separable(s, line, 8))
    assert kinds(module).count("cascade") == 3


@pytest.mark.usefixtures("always")
def test_what_others_read_is_written() -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(1, 3, 9, 9), 32, 3))
    d = s.op("relu", s.conv(x, 32, 3, groups=32))
    module = checked(s, LARGE, s.conv(d, 8, 1), s.conv(d, 16, 3))
    assert "cascade" not in kinds(module)


def test_chosen_by_cost() -> None:
    """A depthwise layer whose product is small hides it; where the vector engine is the bottleneck of neither, the
    product of many channels is better off with tiles of its own."""

    def block(channels: int, outputs: int, size: int) -> list[str]:
        s = Sketch()
        x = s.op("relu", s.conv(s.param(8, 3, size, size), channels, 3))
        last = s.transpose(s.op("neg", separable(s, x, outputs)), 0, 2, 3, 1)
        return kinds(checked(s, LARGE, last, precision="bf16"))

    assert "cascade" in block(96, 24, 28)
    assert "cascade" not in block(64, 512, 7)


@pytest.mark.usefixtures("always")
def test_without_room_there_is_no_cascade() -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(1, 3, 6, 6), 32, 3))
    module = checked(s, override(TINY, "acc.bytes=1024"), separable(s, x, 200))
    assert "cascade" not in kinds(module)


def test_the_fusion_report_says_what_was_chosen_between(tmp_path: Path) -> None:
    made = compile_model(networks.mobilenet_v2(tmp_path, 2), CompileOptions(LARGE, "bf16"))
    record = fusion_record(made.remarks)
    assert len(record["cascades"]) >= 17
    taken = [c for c in record["cascades"] if not c["why_not"]]
    assert 0 < len(taken) < len(record["cascades"])
    edges = {(e["from"], e["to"]): e for e in record["edges"]}
    fused = {ends for ends, e in edges.items() if e["fused"]}
    checked = 0
    for c in record["cascades"]:
        between = [e for (a, b), e in edges.items() if a in c["first"] and b in c["second"] and e["to_op"] == "matmul"]
        if len(between) != 1:
            continue
        checked, edge = checked + 1, between[0]
        assert edge["fused"] == (c in taken)
        assert edge["fused"] or "slower than two" in edge["why"] or c["joined_clk"] is None
    assert checked >= 17
    assert len(fused) == record["fused"]


@pytest.mark.usefixtures("always")
def test_results_that_are_reshaped_or_turned_first_are_written() -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(2, 3, 8, 8), 32, 3))
    pooled = s.reshape(s.pool("max", x, 8, 8), 2, 32)
    square = s.transpose(s.op("relu", s.conv(x, 32, 3, groups=32)), 0, 3, 2, 1)
    module = checked(s, LARGE, s.matmul(pooled, s.weight(32, 5)), s.matmul(square, s.weight(32, 6)))
    assert "cascade" not in kinds(module)


def test_a_body_that_is_no_cascade_is_refused() -> None:
    s = Sketch()
    x = s.param(1, 8, 8, 16)
    graph = s.graph(s.matmul(x, s.param(16, 4)))
    names = {v.name: v.name for v in (*graph.params, *graph.results)}
    with pytest.raises(NotFusable, match="does not read the window's results"):
        lower_group("cascade", "k", graph, names, (), LARGE)
    s = Sketch()
    graph = s.graph(s.matmul(s.op("relu", s.param(1, 8, 8, 16)), s.param(16, 4)))
    with pytest.raises(NotFusable, match="has one conv or pool"):
        lower_group("cascade", "k", graph, {v.name: v.name for v in (*graph.params, *graph.results)}, (), LARGE)


@pytest.mark.usefixtures("always")
def test_windows_whose_flattened_results_are_multiplied_stay_apart() -> None:
    """The product of a classifier has no spatial axes."""
    s = Sketch()
    x = s.pool("max", s.op("relu", s.conv(s.param(1, 3, 9, 9), 32, 3)), 3, 2)
    flat = s.reshape(x, 1, math.prod(x.type.dims))
    module = checked(s, LARGE, s.matmul(flat, s.weight(math.prod(x.type.dims), 40)))
    assert "cascade" not in kinds(module)


@pytest.mark.usefixtures("always")
def test_a_product_over_another_axis_than_channels_is_none() -> None:
    """The product reads the window's results transposed: each of its points needs all columns of a row."""
    s = Sketch()
    x = s.pool("max", s.param(2, 7, 6, 5), 2, 1)
    module = checked(s, LARGE, s.op("tanh", s.matmul(x, s.weight(4, 16))))
    assert "cascade" not in kinds(module)


@pytest.mark.usefixtures("always")
def test_a_sum_of_taps_begins_with_its_bias() -> None:
    """It costs no step of its own, and its loads run as far ahead as those of the window."""
    s = Sketch()
    x = s.op("relu", s.conv(s.param(1, 3, 12, 12), 48, 3))
    module = checked(s, LARGE, separable(s, x, 24))
    (program,) = (v for v in module.vectors if v.name.endswith(".window"))
    kernel = next(k for k in module.kernels if k.name == program.name.removesuffix(".window"))
    assert [step.op for step in program.steps].count("mac") == 9
    assert not {"add", "mul"} & {step.op for step in program.steps}
    depths = {b.name.partition(".")[0]: b.depth for b in reversed(kernel.buffers)}
    assert depths["t"] == depths["w"] == depths["x"]


@pytest.mark.usefixtures("always")
def test_a_sum_that_others_read_is_kept() -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(1, 3, 9, 9), 32, 3))
    total = s.conv(x, 32, 3, groups=32)
    y = s.conv(s.op("mul", total, s.op("add", total, s.weight(32, 1, 1))), 16, 1)
    module = checked(s, LARGE, y)
    assert "cascade" in kinds(module)

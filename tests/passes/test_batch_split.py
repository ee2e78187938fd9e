"""Stages on parts of the batch: which there are, and that programs compute the same with less traffic of device
memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.passes.grouping import batch_split
from ppuc.compiler.passes.grouping.batch_axis import batched_operands
from ppuc.compiler.passes.grouping.batch_split import MOST, BatchSplit, Staging
from ppuc.compiler.passes.grouping.fuse import Fuse
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Value
from ppuc.ir.module import Module
from ppuc.ir.types import Space
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from ppuc.targets.simulator.result import Profile
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled, simulated

SMALL = override(override(load_target("ppu-tiny"), "l2.bytes=131072"), "hbm.gbs=1")
"""A machine whose l2 holds one tensor of some 100 kB, and whose device memory is slow."""


def checked(graph: Graph, target: Target = SMALL, split: bool = True, **options: str) -> tuple[Module, Profile]:
    """The compiled module, re-executed after every pass, and its profile."""
    inputs = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    passes = tuple(p for p in PIPELINE if split or not isinstance(p, BatchSplit))
    module = replace(module_of(graph, **options), target=target.name, target_hash=target.hash)
    done = compiled(module, target, inputs, passes)
    return done, simulated(done, target, inputs).profile


def grouped(graph: Graph) -> Module:
    """The module after fusion alone."""
    module = replace(module_of(graph), target=SMALL.name, target_hash=SMALL.hash)
    return Run(SMALL, (Fuse(),)).run(module)


def parts(module: Module) -> int:
    """Groups that read or make a part of the batch."""
    return sum(
        any(inner.name == "insert" and inner.attrs.starts[0] > 0 for inner in op.body.ops)  # type: ignore[attr-defined]
        for op in module.graph.ops
        if op.body is not None
    )


def traffic(profile: Profile) -> int:
    """Bytes of device memory that a run moves."""
    return profile.read_bytes.get(Space.HBM, 0) + profile.write_bytes.get(Space.HBM, 0)


def convolutions(s: Sketch, batch: int = 12) -> Value:
    """Three convolutions with a residual sum; every tensor between them takes 16 kB an image."""
    x = s.op("relu", s.conv(s.param(batch, 4, 16, 16), 16, 3))
    y = s.op("relu", s.conv(x, 16, 3))
    y = s.op("relu", s.op("add", s.conv(y, 16, 3), x))
    return s.conv(y, 4, 3, stride=2)


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_tensors_between_kernels_stay_in_l2(precision: str) -> None:
    s = Sketch()
    graph = s.graph(convolutions(s, 12 if precision == "model" else 24))
    module, profile = checked(graph, precision=precision)
    _, before = checked(graph, split=False, precision=precision)
    assert parts(module)
    assert traffic(profile) < 0.7 * traffic(before)
    assert profile.cycles < before.cycles


def test_a_sum_may_overwrite_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum and its two operands take 48 kB an image, 32 kB if it takes the memory of one: fewer parts fit."""
    s = Sketch()
    graph = s.graph(convolutions(s))
    module, profile = checked(graph)
    monkeypatch.setattr(batch_split, "overwritten", lambda graph: {})
    apart, _ = checked(graph)
    assert 0 < parts(module) < parts(apart)
    assert traffic(profile) < 0.7 * traffic(checked(graph, split=False)[1])


def test_reads_and_writes_share_device_memory() -> None:
    """A product that reads and writes device memory takes the time of both at the rate of an even mix."""
    s = Sketch()
    x = s.op("relu", s.matmul(s.param(12, 32, 64), s.weight(64, 64)))
    module = grouped(s.graph(s.matmul(x, s.weight(64, 64))))
    staging = Staging(module.graph, override(SMALL, "hbm.turnaround=0.5"))
    (run,) = staging._runs()
    moved = 2 * x.type.bytes / hbm_bytes_per_clk(SMALL)
    assert staging._price(run, 1, 1, 0, 2) == pytest.approx(2 * moved)


def test_a_stage_whose_tensors_other_stages_read() -> None:
    s = Sketch()
    y = convolutions(s)
    z = s.op("tanh", s.reduce("sum", y, 0))  # needs the whole batch
    module, _ = checked(s.graph(s.op("mul", y, z), z))
    assert parts(module)


def test_a_batch_that_fits_stays_whole() -> None:
    s = Sketch()
    module, _ = checked(s.graph(convolutions(s, batch=2)))
    assert not parts(module)


def test_a_prime_batch_runs_one_by_one() -> None:
    s = Sketch()
    graph = s.graph(convolutions(s, batch=11))
    module, profile = checked(graph)
    assert parts(module)
    assert profile.cycles < checked(graph, split=False)[1].cycles


def test_few_parts_of_many_rows() -> None:
    """Rows are a batch too: their number says nothing of how many parts are worth it."""
    s = Sketch()
    hidden = s.op("exp", s.matmul(s.param(8192, 16), s.weight(16, 64, scale=0.1)))
    split = BatchSplit().run(grouped(s.graph(s.matmul(hidden, s.weight(64, 16, scale=0.1)))), SMALL)
    assert 2 <= sum(op.name == "group" for op in split.graph.ops) <= 2 * MOST


class TestBatchedOperands:
    def positions(self, s: Sketch, *results: Value) -> frozenset[int] | None:
        """Those of the one group that the results are fused into."""
        graph = s.graph(*results)
        (group,) = [op for op in grouped(graph).graph.ops if op.name == "group"]
        return batched_operands(group)

    def test_rows_and_weights(self) -> None:
        s = Sketch()
        x, w, bias = s.param(4, 8, 16), s.param(16, 32), s.param(1, 1, 32)
        assert self.positions(s, s.op("add", s.matmul(x, w), bias)) == {0}

    def test_batched_products(self) -> None:
        s = Sketch()
        assert self.positions(s, s.matmul(s.param(4, 8, 16), s.param(4, 16, 32))) == {0, 1}

    def test_softmax_of_the_batch_mixes_it(self) -> None:
        s = Sketch()
        x = s.param(4, 64)
        assert self.positions(s, s.op("sub", x, s.reduce("max", x, 0))) is None
        s = Sketch()
        x = s.param(4, 64)
        assert self.positions(s, s.op("sub", x, s.reduce("max", x, 1))) == {0}

    def test_transposes_that_move_the_batch(self) -> None:
        s = Sketch()
        assert self.positions(s, s.op("neg", s.transpose(s.param(4, 8, 16), 1, 0, 2))) is None
        s = Sketch()
        assert self.positions(s, s.op("neg", s.transpose(s.param(4, 8, 16), 0, 2, 1))) == {0}

    def test_a_part_of_the_batch_is_another_batch(self) -> None:
        s = Sketch()
        x = s.param(8, 16)
        assert self.positions(s, s.op("neg", s.slice(x, (2, 0), (4, 16)))) is None


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_random_stages_compute_the_same(draw: st.DataObject) -> None:
    """Chains of ops that keep the batch, or mix it, with tensors of 32 to 64 kB in an l2 of 128 kB."""
    s = Sketch()
    batch = draw.draw(st.sampled_from([3, 4, 6]))
    x = s.param(batch, 64, 32)
    known = [x]
    for _ in range(draw.draw(st.integers(3, 7))):
        kind = draw.draw(st.sampled_from(["product", "exp", "add", "softmax", "transpose", "reshape", "mix", "slice"]))
        if kind == "product":
            y = s.matmul(x, s.weight(x.type.dims[-1], 32, scale=0.2))
        elif kind == "exp":
            y = s.op("tanh", x)
        elif kind == "add":
            same = [v for v in known if v.type == x.type]
            y = s.op("add", x, draw.draw(st.sampled_from(same)))
        elif kind == "softmax":
            y = s.softmax(x)
        elif kind == "transpose":
            y = s.transpose(x, 0, 2, 1)
        elif kind == "reshape":
            y = s.reshape(x, x.type.dims[0], x.type.dims[1] * x.type.dims[2] // 32, 32)
        elif kind == "mix":
            y = s.op("sub", x, s.reduce("max", x, 0))
        else:
            y = s.slice(x, (0, 0, 0), (batch, x.type.dims[1], max(x.type.dims[2] // 2, 16)))
        known.append(y)
        x = y
    checked(s.graph(s.op("neg", x)))

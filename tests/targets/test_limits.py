"""Limits of a machine: rings, counters, queues, units and memories. Groups are formed within them, and a program that
exceeds one is refused by name, number and limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.lowering.kinds import check_group, lower_group
from ppuc.compiler.lowering.limits import may_lack_rings
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.errors import CapacityError, Entity, EntityKind, ModelError
from ppuc.ir.graph import Op
from ppuc.ir.program import KernelProgram, Program
from ppuc.targets.artifact import Artifact
from ppuc.targets.description import Target, load_target, override
from ppuc.targets.limits import check_limits
from ppuc.targets.simulator.run import simulate
from tests.fuzz.models import model_of_seed
from tests.support.onnx_text import model_of
from tests.support.simulator_programs import RELU, chain_program

TINY, LARGE = load_target("ppu-tiny"), load_target("zhenwu-m890")


def many_inputs(op: str, count: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One op of `count` inputs [3, 20], and values for them."""
    names = [f"x{i}" for i in range(count)]
    attribute = "<axis = 1>" if op == "Concat" else ""
    declared = ", ".join(f"float[3, 20] {n}" for n in names)
    model = model_of(f"wide ({declared}) => (float[N, M] y) {{ y = {op}{attribute}({', '.join(names)}) }}", {})
    rng = np.random.default_rng(count)
    return model, {n: rng.standard_normal((3, 20), np.float32) for n in names}


def rings_of(artifact: Artifact) -> list[int]:
    return [len(kernel.rings) for segment in artifact.program.segments for kernel in segment.kernels]


def with_rings(count: int, target: Target = TINY) -> Target:
    return override(target, f"sync.rings_per_cu={count}")


# Rings.


@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize("count", [62, 63, 64, 80, 200])
def test_a_sum_of_many_inputs_becomes_several_kernels(count: int, target: Target) -> None:
    model, feeds = many_inputs("Sum", count)
    program = ppuc.compile(model, target=target)
    rings = rings_of(program.artifact)
    assert max(rings) <= 64
    assert len(rings) == -(-(count - 1) // 62)  # each adds up to 62 to what the one before stored
    total = np.zeros((3, 20), np.float32)
    for array in feeds.values():
        total = total + array
    np.testing.assert_array_equal(program.run(feeds).outputs["y"], total)


@pytest.mark.parametrize("rings", [4, 7, 64])
def test_a_concatenation_takes_what_rings_there_are(rings: int) -> None:
    model, feeds = many_inputs("Concat", 40)
    program = ppuc.compile(model, target=with_rings(rings))
    assert max(rings_of(program.artifact)) <= rings
    np.testing.assert_array_equal(program.run(feeds).outputs["y"], np.concatenate(list(feeds.values()), 1))


def test_an_epilogue_ends_where_rings_do() -> None:
    """A product, whose sum is cut in parts, and what is added to it afterwards."""
    count = 70
    rng = np.random.default_rng(2)
    feeds = {f"x{i}": rng.standard_normal((16, 32), np.float32) for i in range(count)}
    feeds["a"] = rng.standard_normal((16, 4096), np.float32)
    steps = " ".join(f"s{i + 1} = Add(s{i}, x{i})" for i in range(count - 1))
    declared = ", ".join(f"float[{', '.join(map(str, a.shape))}] {n}" for n, a in feeds.items())
    text = f"g ({declared}) => (float[16, 32] y) {{ s0 = MatMul(a, w) {steps} y = Add(s{count - 1}, x{count - 1}) }}"
    weight = rng.standard_normal((4096, 32), np.float32) / 64
    program = ppuc.compile(model_of(text, {"w": weight}), target=LARGE)
    rings = rings_of(program.artifact)
    assert max(rings) <= 64
    assert len(rings) > 2
    expected = feeds["a"].astype(np.float64) @ weight + sum(feeds[f"x{i}"].astype(np.float64) for i in range(count))
    np.testing.assert_allclose(program.run(feeds).outputs["y"], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("seed", [*range(10), 11, 12])
def test_random_models_on_a_unit_with_few_rings(seed: int) -> None:
    """They agree with ONNX Runtime, or are refused because of rings."""
    sample = model_of_seed(seed, 6)
    refused = ""
    try:
        program = ppuc.compile(sample.model, target=with_rings(7), values=sample.feeds)
    except CapacityError as error:
        refused = str(error)
    if refused:
        assert "rings, a unit has 7 (sync.rings_per_cu)" in refused
        return
    assert max(rings_of(program.artifact), default=0) <= 7
    assert ppuc.verify(program, sample.feeds).ok


@pytest.mark.parametrize("seed", range(40, 52))
def test_what_is_known_of_rings_before_a_kernel_is_built(seed: int) -> None:
    """Groups that are said to fit do, at the tightest limit at which they are said to."""
    sample = model_of_seed(seed, 6)
    for group in groups_of(sample.model, TINY):
        assert group.body is not None
        names = {v.name: v.name for v in (*group.body.params, *group.body.results)}
        kind = check_group(group.body, TINY)
        buffers = len(lower_group(kind, "k", group.body, names, (), TINY).buffers)
        certain = next(n for n in range(1, 1000) if not may_lack_rings(group.body, with_rings(n)))
        assert buffers <= certain or kind in ("copy", "concat")
        check_group(group.body, with_rings(max(buffers, 1)))


def groups_of(model: onnx.ModelProto, target: Target) -> list[Op]:
    """The groups of a model, just before they become kernels."""
    passes = PIPELINE[: next(i for i, step in enumerate(PIPELINE) if isinstance(step, Tile))]
    try:
        module = Run(target, passes).run(initial_module(load_model(model), CompileOptions(target)))
    except ModelError:
        return []  # a part of it runs on the host
    return [op for op in module.graph.ops if op.name == "group"]


def test_a_kernel_that_cannot_do_with_the_rings() -> None:
    model = model_of("p (float[16, 16] x) => (float[16, 16] y) { y = MatMul(x, w) }", {"w": np.eye(16, dtype="f4")})
    with pytest.raises(CapacityError) as caught:
        ppuc.compile(model, target=with_rings(3))
    (found,) = caught.value.diagnostics
    assert found.what == "no tiling fits ppu-tiny"
    assert found.got == "the kernel needs 4 rings, a unit has 3 (sync.rings_per_cu)"
    assert found.expected == "tiles within l1 of 16,384 and acc of 8,192 bytes, in 3 rings"


# Counters.


def chain_of(count: int) -> onnx.ModelProto:
    """Products one after another, which nothing can join."""
    rng = np.random.default_rng(0)
    steps = " ".join(f"x{i + 1} = MatMul(x{i}, w{i})" for i in range(count))
    weights = {f"w{i}": rng.standard_normal((64, 64), np.float32) / 8 for i in range(count)}
    return model_of(f"chain (float[64, 64] x0) => (float[64, 64] x{count}) {{ {steps} }}", weights)


def counters_of(program: Program) -> int:
    return max(s.counters_used for s in program.segments)


def test_tensors_share_the_counters_there_are() -> None:
    usual = ppuc.compile(chain_of(6), target=TINY)
    fewer = counters_of(usual.artifact.program) - 10
    program = ppuc.compile(chain_of(6), target=override(TINY, f"sync.counters_per_chip={fewer}"))
    assert counters_of(program.artifact.program) <= fewer
    feeds = usual.random_inputs()
    for name, expected in usual.run(feeds).outputs.items():
        np.testing.assert_array_equal(program.run(feeds).outputs[name], expected)


def test_a_program_that_needs_more_counters_is_refused() -> None:
    with pytest.raises(CapacityError) as caught:
        ppuc.compile(chain_of(6), target=override(TINY, "sync.counters_per_chip=1"))
    (found,) = caught.value.diagnostics
    needed = int(str(found.got).split()[0])
    assert (found.where, found.what) == ("segment @chain", "needs more counters than the chip has")
    assert found.got == f"{needed} counters"
    assert found.expected == "at most 1 (sync.counters_per_chip of ppu-tiny)"
    assert str(found.hint).endswith(f"--set sync.counters_per_chip={needed}")
    assert needed < 6
    ppuc.compile(chain_of(6), target=override(TINY, f"sync.counters_per_chip={needed}"))


# Programs, whoever wrote them.


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "sync.rings_per_cu=3",
            "kernel @g1: needs more rings than a unit has\n  got: 4 rings\n"
            "  expected: at most 3 (sync.rings_per_cu of ppu-tiny)",
        ),
        (
            "sync.counters_per_chip=6",
            "segment @s0: needs more counters than the chip has\n  got: 7 counters\n"
            "  expected: at most 6 (sync.counters_per_chip of ppu-tiny)",
        ),
        (
            "cu=1 cu_per_ce=1",
            "kernel @g1: runs on more units than there are\n  got: 2 units\n  expected: at most 1 (cu of ppu-tiny)",
        ),
        (
            "l1.bytes=1024",
            "kernel @g1: its rings do not fit l1\n  got: 4,096 bytes\n  expected: at most 1,024 (l1.bytes of ppu-tiny)",
        ),
        (
            "acc.bytes=2047",
            "kernel @g1: its rings do not fit acc\n  got: 2,048 bytes\n"
            "  expected: at most 2,047 (acc.bytes of ppu-tiny)",
        ),
        (
            "l2.bytes=18000",
            "tensor %y: lies beyond l2\n  got: 18,944 bytes\n  expected: at most 18,000 (l2.bytes of ppu-tiny)",
        ),
        (
            "hbm.bytes=1000",
            "tensor %w0: lies beyond hbm\n  got: 3,072 bytes\n  expected: at most 1,000 (hbm.bytes of ppu-tiny)",
        ),
    ],
)
def test_a_program_within_the_limits_of_another_machine(assignment: str, message: str) -> None:
    program = chain_program()
    check_limits(program, TINY)
    target = override(TINY, *assignment.split())
    with pytest.raises(CapacityError) as caught:
        check_limits(program, target)
    assert str(caught.value.diagnostics[0]).partition("\n  hint")[0] == message
    about = caught.value.diagnostics[0].entities
    kind, name = message.partition(":")[0].split()
    if kind == "segment":
        assert about == Entity.each(EntityKind.KERNEL, [k.name for k in program.segments[0].kernels])
    else:
        assert Entity(EntityKind(kind), name[1:]) in about
    with pytest.raises(CapacityError):
        simulate(program, (RELU,), target, {}, None)


def test_copies_on_queues_that_do_not_exist() -> None:
    program = chain_program()
    (segment,) = program.segments
    copies = tuple(replace(c, queue=2) for c in segment.copies)
    with pytest.raises(CapacityError) as caught:
        check_limits(replace(program, segments=(replace(segment, copies=copies),)), TINY)
    assert caught.value.diagnostics[0].entities == Entity.each(EntityKind.TENSOR, {c.dst: None for c in copies})
    assert str(caught.value) == (
        "segment @s0: copies on more queues than there are\n  got: 3 queues\n"
        "  expected: at most 2 (stage.queues of ppu-tiny)"
    )


def test_a_compiled_program_on_a_smaller_machine() -> None:
    model = model_of("p (float[64, 64] x) => (float[64, 64] y) { y = MatMul(x, w) }", {"w": np.eye(64, dtype="f4")})
    program = ppuc.compile(model, target=TINY)
    program = replace(program, options=replace(program.options, target=with_rings(2)))
    with pytest.raises(CapacityError, match="needs more rings than a unit has"):
        program.time()


def test_a_kernel_that_begins_at_a_unit_that_does_not_exist() -> None:
    program = chain_program()
    (segment,) = program.segments
    check_limits(replace(program, segments=(replace(segment, kernels=_from_unit(segment.kernels, 1)),)), TINY)
    with pytest.raises(CapacityError) as caught:
        check_limits(replace(program, segments=(replace(segment, kernels=_from_unit(segment.kernels, 2)),)), TINY)
    assert str(caught.value.diagnostics[0]) == (
        "kernel @g1: begins at a unit that does not exist\n  got: unit 2\n  expected: 0 to 1 (cu of ppu-tiny)"
    )


def _from_unit(kernels: Sequence[KernelProgram], first: int) -> tuple[KernelProgram, ...]:
    return tuple(replace(kernel, first=first) for kernel in kernels)

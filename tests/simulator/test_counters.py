"""Counters that serve several groups: the wait that orders their bumps is needed, and the hazard checker says so."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest

import ppuc
from ppuc.ir.program import CounterGroup, Program, StreamLoop, StreamNode
from ppuc.ir.resource import Resource
from ppuc.ir.verify import VerificationError, verify_program
from ppuc.targets.description import load_target, override
from ppuc.targets.simulator.counters import counter_arrays
from ppuc.targets.simulator.run import RawResult, simulate
from tests.support.small_models import chain_of_permutations

TINY = load_target("ppu-tiny")


def shared(kernels: int, counters: int) -> tuple[ppuc.CompiledProgram, np.ndarray, np.ndarray]:
    """A chain of products compiled for `counters` counters, an input and its exact result."""
    model, x, y = chain_of_permutations(kernels)
    return ppuc.compile(model, target=override(TINY, f"sync.counters_per_chip={counters}")), x, y


def run(compiled: ppuc.CompiledProgram, program: Program, x: np.ndarray) -> RawResult:
    """Run `program` in place of the compiled one, unverified."""
    constants = {n: c if isinstance(c, Resource) else Resource.of(c, n) for n, c in compiled.artifact.constants.items()}
    return simulate(program, compiled.artifact.vectors, compiled.target, constants, {"x0": x.reshape(-1)})


def without_waits_for(program: Program, group: str) -> Program:
    """The program without waits for all of `group`."""

    def changed(body: tuple[StreamNode, ...]) -> tuple[StreamNode, ...]:
        return tuple(
            replace(node, body=changed(node.body))
            if isinstance(node, StreamLoop)
            else replace(node, waits=tuple(w for w in node.waits if w.group != group or w.touched))
            for node in body
        )

    (segment,) = program.segments
    kernels = tuple(
        replace(k, streams=tuple((queue, changed(body)) for queue, body in k.streams)) for k in segment.kernels
    )
    return replace(program, segments=(replace(segment, kernels=kernels),))


@pytest.mark.parametrize("counters", [3, 4, 8, 16, 32])
def test_values_do_not_depend_on_the_number_of_counters(counters: int) -> None:
    compiled, x, y = shared(20, counters)
    (segment,) = compiled.artifact.program.segments
    assert segment.counters_used <= counters < sum(len(group.expect) for group in segment.counters)
    result = compiled.run({"x0": x})
    np.testing.assert_array_equal(result.outputs["x20"], y)
    assert result.profile.hazards == ()
    assert compiled.run({"x0": -x}).outputs["x20"].tobytes() == (-y).tobytes()
    assert compiled.time().profile.cycles == result.profile.cycles


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [2200, 6000])
def test_a_chain_with_more_tensors_than_counters(kernels: int) -> None:
    """On a machine as it is."""
    model, x, y = chain_of_permutations(kernels)
    compiled = ppuc.compile(model, target=TINY)
    (segment,) = compiled.artifact.program.segments
    assert segment.counters_used <= TINY.sync.counters_per_chip < len(segment.counters)
    result = compiled.run({"x0": x})
    np.testing.assert_array_equal(result.outputs[f"x{kernels}"], y)
    assert result.profile.hazards == ()


def test_a_group_counts_on_from_where_earlier_ones_ended() -> None:
    """Two groups have the same counter: the value that the second waits for is the sum of both."""
    groups = (
        CounterGroup("a", "t", "full", 0, 8, (2, 0, 5)),
        CounterGroup("b", "t", "full", 1, 8, (3, 4)),
        CounterGroup("c", "t", "done", 1, 8, (1,)),
    )
    found = counter_arrays(groups)
    assert found["base"].tolist() == [0, 0, 0, 0, 5, 3]
    assert found["before"].tolist() == [-1, -1, -1, -1, 2, 3]
    assert found["place"].tolist() == [0, 1, 2, 1, 2, 1]


def test_a_wrong_allocation_is_refused_and_found() -> None:
    """A program whose counters suffice, changed such that the copies of all weights count in the same place: the
    verifier refuses it, and the hazard checker sees bumps that nothing orders."""
    model, x, _ = chain_of_permutations(4)
    compiled = ppuc.compile(model, target=TINY)
    program = compiled.artifact.program
    assert run(compiled, program, x).profile.hazards == ()
    (segment,) = program.segments
    staged = list(dict.fromkeys(copy.dst for copy in segment.copies if copy.dst.startswith("w")))
    groups = [g for g in segment.counters if g.tensor in staged and g.kind == "full"]
    assert len(groups) == len(staged) > 1
    wrong = tuple(replace(g, first=groups[0].first) if g in groups else g for g in segment.counters)
    broken = replace(program, segments=(replace(segment, counters=wrong),))
    one, other = staged[1:3]  # on different queues
    with pytest.raises(VerificationError) as caught:
        verify_program(broken, compiled.artifact.vectors)
    message = f"bumps %{other}.full without waiting for all of %{one}.full, whose counters that takes over"
    assert f"P12 @chain copy to %{other}: {message}" in str(caught.value)
    found = [str(hazard) for hazard in run(compiled, broken, x).profile.hazards if hazard.space == "counters"]
    what = f"on a counter of %{one}.full, now of %{other}.full: stage 0: copy {one} <- {one[:2]}[0:4096] and stage 1: "
    assert found[0].startswith(f"bump after bump hazard in counters {what}")


def test_a_take_over_without_its_wait_is_refused_and_found() -> None:
    """Most take-overs of a chain are ordered by the data as well: each product reads all of the one before."""
    compiled, x, _ = shared(20, 4)
    program = compiled.artifact.program
    (segment,) = program.segments
    refused = []
    for group in segment.counters:
        broken = without_waits_for(program, group.name)
        if broken != program:
            with contextlib.suppress(VerificationError):
                verify_program(broken, compiled.artifact.vectors)
                continue
            refused.append(broken)
    assert len(refused) > 10
    results = [run(compiled, broken, x) for broken in refused]
    assert any(hazard.space == "counters" for result in results for hazard in result.profile.hazards)

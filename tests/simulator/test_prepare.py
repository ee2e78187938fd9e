"""A program's arrays are kept for its next run, and only for that."""

from __future__ import annotations

from dataclasses import replace

from ppuc.targets.description import load_target, override
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.machine import machine_of
from ppuc.targets.simulator.prepare import prepare
from ppuc.targets.simulator.run import simulate
from ppuc.targets.simulator.steady_state.once import once_a_segment
from tests.support.simulator_programs import RELU, Gemm, gemm_program

TARGET = load_target("ppu-tiny")


def test_the_next_run_of_a_program_uses_the_same_arrays() -> None:
    program, vectors = gemm_program(Gemm(32, 32, 32)), (RELU,)
    first = prepare(program, vectors, TARGET)
    assert prepare(program, vectors, load_target("ppu-tiny")) is first
    assert prepare(replace(program), vectors, TARGET) is not first  # an equal program is not looked for


def test_another_program_or_machine_has_its_own() -> None:
    program, vectors, slower = (
        gemm_program(Gemm(32, 32, 32)),
        (RELU,),
        override(TARGET, "hbm.gbs=1.5", "l2.bytes_per_clk_per_cu=2"),
    )
    other = gemm_program(Gemm(64, 32, 32))

    def cycles(program: object, target: object) -> float:
        return simulate(program, vectors, target, {}, None).profile.cycles  # type: ignore[arg-type]

    alone = [cycles(p, t) for p, t in ((program, TARGET), (program, slower), (other, TARGET))]
    assert len(set(alone)) == 3
    assert [cycles(p, t) for p, t in ((other, TARGET), (program, slower), (program, TARGET))] == alone[::-1]


def test_a_run_leaves_the_arrays_as_they_are() -> None:
    program, vectors = gemm_program(Gemm(48, 32, 64)), (RELU,)
    (launch,) = prepare(program, vectors, TARGET)
    before = [array.copy() for array in (*launch.flat.code, *launch.flat.machine)]
    first, second = (simulate(program, vectors, TARGET, {}, None).profile for _ in range(2))
    assert first == second
    for old, new in zip(before, (*launch.flat.code, *launch.flat.machine), strict=True):
        assert old.tobytes() == new.tobytes()


def test_variants_of_a_machine_share_what_follows_from_the_code() -> None:
    program, calls = gemm_program(Gemm(32, 32, 32)), list[FlatSegment]()
    (launch,) = prepare(program, (RELU,), TARGET)

    @once_a_segment
    def kernels(flat: FlatSegment) -> int:
        calls.append(flat)
        return len(flat.segment.kernels)

    machine = machine_of(override(TARGET, "hbm.gbs=1.5"))
    assert [kernels(flat) for flat in (launch.flat, launch.flat, replace(launch.flat, machine=machine))] == [1, 1, 1]
    assert len(calls) == 1
    (other,) = prepare(gemm_program(Gemm(32, 32, 64)), (RELU,), TARGET)
    assert kernels(other.flat) == 1
    assert len(calls) == 2

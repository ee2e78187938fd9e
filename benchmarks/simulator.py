"""CPU seconds of the simulator on large hand-shaped programs: `python benchmarks/simulator.py`.

Timing-only runs of a ResNet-50-like chain of kernels (55 kernels, 64 units, four queues) and of one square GEMM; a
warm-up run compiles the event loop. Values are measured on a smaller GEMM.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from ppuc.ir.program import KernelProgram, Program, Segment
from ppuc.ir.types import DType, Space
from ppuc.targets.description import load_target
from ppuc.targets.simulator.run import simulate
from tests.simulator_programs import RELU, Gemm, gemm_program, program, tensor


def resnet_like(kernels: int = 55, tiles: int = 3) -> Program:
    """A chain of GEMMs whose units each run about 2,300 instructions per kernel queue group."""
    g = Gemm(
        64 * 8 * tiles, 64 * 8, 64 * 9, 64, 64, 64, depth=2, grid=(8, 8), a="x", b="w", y="x", b_space=Space.HBM,
        dtype=DType.F32,
    )  # fmt: skip
    made: list[KernelProgram] = []
    for i in range(kernels):
        after = tuple(r.name for r in made[-1].rings) if made else ()
        made.append(replace(g, name=f"k{i}", after=after).kernel())
    tensors = [
        tensor("x", g.m * max(g.k, g.n), Space.L2, 0, "input"),
        tensor("w", g.k * g.n, Space.HBM, 0, "input"),
    ]
    return program("resnet-like", tensors, Segment("s0", tuple(made), (), ()))


def timed(name: str, run_program: Program, feeds: dict[str, np.ndarray] | None = None, **options: bool) -> None:
    """Print CPU seconds of one run."""
    target = load_target("zhenwu-m890")
    begin = time.process_time()
    result = simulate(run_program, (RELU,), target, {}, feeds, **options)
    spent = time.process_time() - begin
    p = result.profile
    rate = f"{p.instructions / max(spent, 1e-9) / 1e6:5.2f} M/s"
    print(f"{name:40s} {spent:7.2f} CPU-s  {p.instructions:8d} instructions  {rate}  {p.cycles:12.0f} cycles")


def main() -> None:
    """Warm up, then measure."""
    small = Gemm(64, 64, 64)
    ones = {n: np.ones(64 * 64, np.float32) for n in ("a", "b")}
    simulate(gemm_program(small), (RELU,), load_target("zhenwu-m890"), {}, ones)
    timed("resnet-like, timing only", resnet_like())
    big = Gemm(4096, 4096, 4096, 128, 128, 64, depth=2, grid=(8, 8), b_space=Space.HBM)
    timed("gemm 4096^3, timing only", gemm_program(big))
    g = Gemm(2048, 1024, 2048, 64, 64, 64, depth=2, grid=(8, 8))
    rng = np.random.default_rng(0)
    feeds = {
        "a": rng.standard_normal(g.m * g.k).astype(np.float32),
        "b": rng.standard_normal(g.k * g.n).astype(np.float32),
    }
    timed("gemm 2048x1024x2048, values", gemm_program(g), feeds, check_hazards=False)
    timed("gemm 2048x1024x2048, values and hazards", gemm_program(g), feeds)


if __name__ == "__main__":
    main()

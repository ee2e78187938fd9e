"""Taking a module through the whole pipeline, checked at every step.

Each pass is followed by the verifiers and by re-execution; at the end the program's outputs must equal the kernels' to
the bit and the hazard checker must find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.execute import program_constants, run_module
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.pipeline.recheck import Recheck
from ppuc.ir.module import Module
from ppuc.targets.schema import Target
from ppuc.targets.simulator.run import RawResult, simulate

APART = tuple(p for p in PIPELINE if p.name != "cascade")
"""The pipeline without the pass that joins kernels: what the others decide stays visible."""


def simulated(module: Module, target: Target, inputs: Mapping[str, np.ndarray]) -> RawResult:
    """Run the program of a compiled module on the simulator, with values and hazards."""
    program = module.program
    assert program is not None
    feeds = {tensor: inputs[name] for name, tensor in program.inputs}
    return simulate(program, module.vectors, target, program_constants(module), feeds)


def compiled(
    module: Module, target: Target, inputs: Mapping[str, np.ndarray], passes: Sequence[Pass] = PIPELINE
) -> Module:
    """The module after every pass. Raises DivergenceError, VerificationError, whatever a pass raises, or AssertionError
    when the program differs from its kernels or has a hazard."""
    module = replace(module, target=target.name, target_hash=target.hash)
    run = Run(target, passes)
    run.recheck = Recheck(module, inputs, module.option("precision", "model"))
    done = run.run(module)
    check_program(done, target, inputs)
    return done


def check_program(module: Module, target: Target, inputs: Mapping[str, np.ndarray]) -> None:
    """Simulate the program of `module`. Raises AssertionError when it differs from its kernels or has a hazard."""
    raw = simulated(module, target, inputs)
    if raw.profile.hazards:
        raise AssertionError(f"{len(raw.profile.hazards)} hazards, first: {raw.profile.hazards[0]}")
    kernels = run_module(replace(module, program=None), target, inputs)
    assert module.program is not None
    for name, tensor in module.program.outputs:
        want, got = np.ascontiguousarray(kernels[name]), raw.outputs[tensor]
        if got.tobytes() != want.tobytes():
            raise AssertionError(f"output {name} of the program differs from what its kernels compute")

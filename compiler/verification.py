"""`verify`: compile, simulate, and compare every output (or every tensor that survives) with ONNX Runtime.

Invariant: the compared values are computed by the simulator from the emitted program, on the same inputs as the
oracle's; tolerances follow from the imported graph, the precision and the inputs, never from the program's results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.comparing.layers import compared_layers, run_with_layers
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.expected import Allowed, allowed_errors
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import UsageError
from ppuc.targets.simulator.result import Profile

if TYPE_CHECKING:
    from ppuc.compiler.host.deferred import DeferredRun
    from ppuc.targets.simulator.run import Progress


@dataclass(frozen=True, slots=True)
class Verification:
    """`outputs` in the model's order; `layers` in execution order (empty unless asked for), named by ONNX node;
    `hazards` as text; `deferred` is what was compiled while the program ran, `host_measured_seconds` the wall time of
    what the host computed (None: nothing). `ok` when all outputs and layers agree and there are no hazards."""

    outputs: tuple[Comparison, ...]
    layers: tuple[Comparison, ...]
    hazards: tuple[str, ...]
    profile: Profile
    deferred: tuple[DeferredRun, ...] = ()
    host_measured_seconds: float | None = None

    @property
    def ok(self) -> bool:
        return not self.hazards and all(c.ok for c in (*self.outputs, *self.layers))

    @property
    def first_offender(self) -> str:
        """The first node whose tensor is out of tolerance, else the first output; "" when all agree."""
        return next((c.name for c in (*self.layers, *self.outputs) if not c.ok), "")

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "ok": self.ok,
            "outputs": [c.record() for c in self.outputs],
            "layers": [c.record() for c in self.layers],
            "first_offender": self.first_offender or None,
            "hazards": list(self.hazards),
            "cycles": self.profile.cycles,
            "seconds": self.profile.seconds,
            "host_measured_seconds": self.host_measured_seconds,
        }


def verify_program(
    program: CompiledProgram,
    inputs: Mapping[str, np.ndarray] | None = None,
    layers: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Run `program` on the simulator and its source model on ONNX Runtime with the same `inputs` (seeded random ones
    when None) and compare. Raises UsageError when the program was loaded from a .ppu and its model is not at hand."""
    program = program.variant_for(inputs) if inputs is not None else program
    if program.source is None:
        raise UsageError.of(
            program.name, "cannot be verified without the ONNX model it came from", hint="compile it here"
        )
    fixed = program.fixed
    arrays = {**program.defaults, **fixed, **(inputs if inputs is not None else program.random_inputs())}
    if program.plan is not None:
        from ppuc.compiler.host.verify import verify_hosted

        result = program.run(arrays, progress=progress)
        outputs, inner = verify_hosted(program, program.plan, arrays, result, layers)
        hazards, seconds = tuple(map(str, result.profile.hazards)), result.host_measured_seconds
        return Verification(outputs, inner, hazards, result.profile, result.deferred, seconds)
    shapes = {s.name: s.type.dims for s in program.inputs} | _shapes(fixed)
    imported = load_model(program.source, shapes=shapes, values=fixed)
    precision = program.options.precision
    feeds = {value.name: arrays[name] for name, value in imported.inputs}
    allowed: dict[str, Allowed] = {}
    if program.quantized is not None:
        named = {name: value.name for name, value in imported.outputs}
        allowed = allowed_errors(imported.graph, named, program.quantized.simulated, feeds)
    judge = Judge(imported.graph, precision, feeds, imported.transforms)
    result = program.run(arrays, progress=progress)
    want = Oracle(program.source).run(arrays)
    outputs = tuple(judge.compare(n, v.name, result.outputs[n], want[n], allowed.get(n)) for n, v in imported.outputs)
    inner = compared_layers(run_with_layers(program, arrays, progress), imported, judge) if layers else ()
    return Verification(outputs, inner, tuple(map(str, result.profile.hazards)), result.profile)


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}

"""`verify`: compile, simulate, and compare every output (or every tensor that survives) with ONNX Runtime.

Invariant: the compared values are computed by the simulator from the emitted program, on the same inputs as the
oracle's; tolerances follow from the imported graph, the precision and the inputs, never from the program's results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ppuc.compiler.comparing.choices import given_choices
from ppuc.compiler.comparing.doubts import doubted, proven_elsewhere
from ppuc.compiler.comparing.layers import run_with_layers
from ppuc.compiler.comparing.parts import proven_in_parts
from ppuc.compiler.comparing.reference import Reference, doubtful
from ppuc.compiler.frontend.expose import nodes_with_inner
from ppuc.compiler.frontend.offload.hosting import ALWAYS, PREFIX
from ppuc.compiler.inputs import given_arrays
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import Comparison, sqnr_text
from ppuc.ir.errors import UsageError
from ppuc.ir.html import html_table
from ppuc.targets.simulator.result import Profile

if TYPE_CHECKING:
    from ppuc.compiler.host.deferred import DeferredRun
    from ppuc.targets.simulator.run import Progress


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """`outputs` in the model's order; `layers` in execution order (empty unless asked for), named by ONNX node, after
    the name of the body if they are those of a body that was compiled while the program ran; `uncompared` are nodes
    whose inner layers are not among them; `hazards` as text; `deferred` is what was compiled while the program ran,
    `host_measured_seconds` the wall time of what the host computed (None: nothing). `ok` when all outputs and layers
    agree and there are no hazards."""

    outputs: tuple[Comparison, ...]
    layers: tuple[Comparison, ...]
    hazards: tuple[str, ...]
    profile: Profile
    deferred: tuple[DeferredRun, ...] = ()
    host_measured_seconds: float | None = None
    uncompared: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = f"{len(self.outputs)} outputs" + (f", {len(self.layers)} layers" if self.layers else "")
        offender = f", first offender {self.first_offender}" if self.first_offender else ""
        hazards = f", {len(self.hazards)} hazards" if self.hazards else ""
        return f"Verification({self.verdict}: {counts}{offender}{hazards}; {self.profile!r})"

    def _repr_html_(self) -> str:
        """For notebooks: every tensor that was compared."""
        rows = (
            (c.name, c.verdict, f"{c.max_abs:.3g}", f"{c.cosine:.8f}", sqnr_text(c.sqnr_db))
            for c in (*self.outputs, *self.layers)
        )
        return html_table(repr(self), ("tensor", "verdict", "max abs", "cosine", "SQNR dB"), rows, text=(0, 1))

    @property
    def ok(self) -> bool:
        return not self.hazards and all(c.ok for c in (*self.outputs, *self.layers))

    @property
    def unproven(self) -> tuple[str, ...]:
        """Outputs, then layers, whose agreement proves little; `unproven` of their comparisons gives the reason."""
        return tuple(c.name for c in (*self.outputs, *self.layers) if c.verdict == "unproven")

    @property
    def verdict(self) -> str:
        """`ok`, `unproven` (everything agrees, which proves little for some output or layer) or `wrong`."""
        return "wrong" if not self.ok else "unproven" if self.unproven else "ok"

    @property
    def first_offender(self) -> str:
        """The first node whose tensor is out of tolerance, else the first output; "" when all agree."""
        return next((c.name for c in (*self.layers, *self.outputs) if not c.ok), "")

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "unproven": list(self.unproven),
            "outputs": [c.record() for c in self.outputs],
            "layers": [c.record() for c in self.layers],
            "uncompared": list(self.uncompared),
            "first_offender": self.first_offender or None,
            "hazards": list(self.hazards),
            "cycles": self.profile.cycles,
            "seconds": self.profile.seconds,
            "host_measured_seconds": self.host_measured_seconds,
        }


@np.errstate(all="ignore")
def verify_program(
    program: CompiledProgram,
    inputs: Mapping[str, np.ndarray] | None = None,
    layers: bool = False,
    progress: Progress | None = None,
    expected: Mapping[str, np.ndarray] | None = None,
) -> Verification:
    """Run `program` on the simulator and its source model on ONNX Runtime with the same `inputs` (seeded random ones
    when None) and compare. Outputs and layers whose agreement says nothing are checked again in parts, outputs also on
    other inputs, and stay unproven where that says nothing either. Raises UsageError when the program was loaded from a
    .ppu and its model is not at hand. With `expected` outputs by name, those are compared in place of ONNX Runtime's,
    and nothing is checked again; raises InputError if they do not fit the model's, UsageError if part of it runs on the
    host. Overflow and NaN are results, as in ONNX Runtime, not warnings of numpy."""
    if inputs is not None:
        inputs = given_arrays(program.inputs, inputs, program.name)
        program = program.variant_for(inputs)
    if program.source is None:
        raise UsageError.of(
            program.name, "cannot be verified without the ONNX model it came from", hint="compile it here"
        )
    arrays = {**program.defaults, **program.fixed, **(inputs if inputs is not None else program.random_inputs())}
    checks = Checks(program, arrays, progress, expected)
    if expected is not None:
        if program.plan is not None:
            raise UsageError.of(
                program.name, "has parts on the host, which ONNX Runtime's answers judge", got="outputs"
            )
        return checks.verified()
    return better_checked(checks, checks.verified(layers))


@dataclass(frozen=True, slots=True)
class Checks:
    """What `program` does on `arrays`, its inputs by name, beside the oracle, or beside `expected` outputs by name."""

    program: CompiledProgram
    arrays: Mapping[str, Any]
    progress: Progress | None = None
    expected: Mapping[str, np.ndarray] | None = None

    def verified(self, layers: bool = False) -> Verification:
        """The outputs, and with `layers` inner tensors, as the oracle's answers to these inputs judge them."""
        program, arrays = self.program, self.arrays
        result = program.run(arrays, progress=self.progress)
        hazards = tuple(map(str, result.profile.hazards))
        if program.plan is not None:
            from ppuc.compiler.host.verify import verify_hosted

            outputs, inner = verify_hosted(program, program.plan, arrays, result, layers)
            seconds = result.host_measured_seconds
            found = Verification(outputs, inner, hazards, result.profile, result.deferred, seconds)
            return self._with_bodies(found) if layers else found
        outputs, inner = self._compared(result.outputs, layers)
        found = Verification(outputs, inner, hazards, result.profile)
        return self._with_bodies(found) if layers else found

    def _with_bodies(self, found: Verification) -> Verification:
        """`found` with the layers of what was compiled while the program ran: of bodies of loops and of branches, each
        on the inputs that it was given last, whose results are layers as well."""
        program, layers, unnamed = self.program, [*found.layers], list[str]()
        assert program.source is not None
        for run in found.deferred:
            if run.program is not None:
                own = Checks(cast(CompiledProgram, run.program), run.feeds, self.progress).verified(layers=True)
                inside = [c for c in (*own.layers, *own.outputs) if c.name != ALWAYS]
                layers += [replace(c, name=f"{run.name}: {c.name.removeprefix(PREFIX)}") for c in inside]
                unnamed += [f"{run.name}: {node}" for node in own.uncompared]
        plan = program.plan
        apart = {node.node for node in (*plan.nodes, *plan.deferred)} if plan is not None else set()
        inlined = tuple(node for node in nodes_with_inner(program.source) if node not in apart)
        return replace(found, layers=tuple(layers), uncompared=(*inlined, *unnamed))

    def _compared(
        self, got: Mapping[str, np.ndarray], layers: bool
    ) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
        program, arrays = self.program, self.arrays
        assert program.source is not None
        model = Reference.of(program, program.source, arrays)
        allowed = model.allowed(program)
        kept = run_with_layers(program, arrays, self.progress) if layers else None
        if self.expected is not None:
            return model.outputs(got, allowed, self.expected), ()
        outputs, inner = model.outputs(got, allowed), model.layers(kept) if kept is not None else ()
        if not doubtful((*outputs, *inner)):
            return outputs, inner
        given = given_choices(program, arrays, model.tolerances, self.progress)
        if given is None:
            return outputs, inner
        model = Reference.of(program, given.source, given.arrays)
        outputs = given.better(outputs, model.outputs(got, allowed), {})
        return outputs, given.better(inner, model.layers(kept), kept.tensors) if kept is not None else ()


def better_checked(checks: Checks, found: Verification) -> Verification:
    """`found` with doubts about outputs that the inputs do not move, and with those doubts and others settled where a
    better check does. Layers may well be unmoved (a mask of ones): what matters is whether they move an output."""
    program = checks.program
    assert program.source is not None
    outputs, layers = doubted(program.source, checks.arrays, program.fixed, found.outputs), found.layers
    if program.plan is None:
        outputs, layers = proven_in_parts(program, checks.arrays, outputs, layers, checks.progress)
    if not all(c.ok for c in outputs):
        return replace(found, outputs=outputs, layers=layers)
    if any(c.unproven for c in outputs):

        def again(arrays: Mapping[str, Any]) -> tuple[Comparison, ...]:
            return Checks(program, arrays, checks.progress).verified().outputs

        outputs = proven_elsewhere(program.source, checks.arrays, program.fixed, outputs, again)
    return replace(found, outputs=outputs, layers=layers)

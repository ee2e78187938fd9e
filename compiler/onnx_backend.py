"""ppuc as an ONNX backend: `onnx.backend.test.BackendTest(ppuc.onnx_backend)` runs the official suite on it.

Shapes, and values of inputs that sizes and axes depend on, are fixed at compile time, but a backend learns both only at
run time. So a prepared model compiles at its first run, and again when they change.

Invariant: every number that a prepared model returns was computed by the simulator or by the host worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.entry import compile_program
from ppuc.compiler.frontend.backend_base import Backend, BackendRep, model_of_node, names_of
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.targets.description import resolve_target

if TYPE_CHECKING:
    import onnx


class PpucRep(BackendRep):
    """A model ready to run. `program` is the one of the last run; None before."""

    def __init__(self, model: onnx.ModelProto, options: CompileOptions) -> None:
        self.model, self.options = model, options
        self.program: CompiledProgram | None = None
        self._inputs, self._outputs = names_of(model)
        self._key: object = None

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """Outputs in the model's order. `inputs` are arrays (or sequences of them) in the model's order, or by name."""
        feeds = self._feeds(inputs)
        program = self._compiled(feeds)
        outputs = program.run({n: a for n, a in feeds.items() if a is not None or n in self._host_inputs(program)})
        return tuple(outputs.outputs[name] for name in self._outputs)

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        given: Sequence[Any] = inputs if isinstance(inputs, list | tuple) else [inputs]
        arrays = [np.asarray(x) if isinstance(x, np.generic) else x for x in given]
        return dict(zip(self._inputs, arrays, strict=False))

    @staticmethod
    def _host_inputs(program: CompiledProgram) -> set[str]:
        return {name for name, _ in program.plan.host_inputs} if program.plan is not None else set()

    def _compiled(self, feeds: Mapping[str, Any]) -> CompiledProgram:
        """The program for these shapes and for the values that it fixed."""
        dense = {n: a for n, a in feeds.items() if isinstance(a, np.ndarray) and a.dtype != object}
        key = tuple((n, a.shape, a.dtype.str) for n, a in sorted(dense.items()))
        if self.program is not None and key == self._key:
            fixed = self.program.fixed
            if all(np.array_equal(dense[n], v, equal_nan=v.dtype.kind == "f") for n, v in fixed.items()):
                return self.program
        shapes = {n: a.shape for n, a in dense.items()}
        self.program = compile_program(self.model, replace(self.options, shapes=shapes, values=dense))
        self._key = key
        return self.program


class PpucBackend(Backend):
    """The backend `ppuc`. Devices are CPU (the name that the suite uses) and PPU; both are the simulated chip."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> bool:
        return cls.supports_device(device)

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", *, target: str = "", precision: str = "model", **_: Any
    ) -> PpucRep:
        """A model ready to run on `target`. Raises ModelError for one that is malformed when it is run."""
        return PpucRep(model, CompileOptions(resolve_target(target), precision))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **options: Any) -> tuple[Any, ...]:
        """Prepare and run."""
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **options: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays."""
        arrays = inputs if isinstance(inputs, list | tuple) else [inputs]
        return cls.run_model(model_of_node(node, arrays, outputs_info), list(arrays), device, **options)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `device` is supported."""
        return device.partition(":")[0] in ("CPU", "PPU")


is_compatible = PpucBackend.is_compatible
prepare = PpucBackend.prepare
run_model = PpucBackend.run_model
run_node = PpucBackend.run_node
supports_device = PpucBackend.supports_device

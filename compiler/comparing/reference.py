"""The model that a program is compared with: the oracle's answer to it, and what its arithmetic allows.

Invariant: what is compared with is the oracle's, of the model's own nodes; what is allowed follows from the imported
graph, the precision and the inputs, never from the program's results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ppuc.compiler.comparing.indices import judged_by_value
from ppuc.compiler.comparing.layers import Layers, compared_layers
from ppuc.compiler.comparing.undefined import defined, undefined_elements, with_undefined_note
from ppuc.compiler.frontend.load import ImportedModel, load_model
from ppuc.compiler.inputs import as_declared
from ppuc.compiler.pipeline.layers import node_values
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.expected import Allowed, allowed_errors
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.ir.errors import InputError
from ppuc.ir.types import DType

if TYPE_CHECKING:
    import onnx

Model: TypeAlias = "str | Path | onnx.ModelProto"


@dataclass(frozen=True, slots=True)
class Reference:
    """The model `source` on `arrays`, all of its inputs by name; `imported` is the same with all of its float
    arithmetic, for the sizes and values that the program was compiled for."""

    source: Model
    arrays: Mapping[str, Any]
    imported: ImportedModel
    judge: Judge

    @classmethod
    def of(cls, program: CompiledProgram, source: Model, arrays: Mapping[str, Any]) -> Reference:
        """What `program` is compared with on `arrays`. Raises ModelError."""
        shapes = {name: np.shape(array) for name, array in arrays.items()}
        imported = load_model(source, shapes=shapes, values=program.fixed, traced=True)
        feeds = {value.name: arrays[name] for name, value in imported.inputs}
        judge = Judge(imported.graph, program.options.precision, feeds, imported.transforms)
        return cls(source, arrays, imported, judge)

    def tolerances(self, node: str) -> list[Tolerance]:
        """What the output of an ONNX node may be off, the strictest first."""
        return self.judge.tolerances_of(node_values(self.imported.graph).get(node, ""))

    def allowed(self, program: CompiledProgram) -> dict[str, Allowed]:
        """What the outputs of a quantized program may be off, by name; nothing for others."""
        if program.quantized is None:
            return {}
        named = {name: value.name for name, value in self.imported.outputs}
        feeds = {value.name: self.arrays[name] for name, value in self.imported.inputs}
        return allowed_errors(self.imported.graph, named, program.quantized.simulated, feeds)

    def outputs(
        self,
        got: Mapping[str, np.ndarray],
        allowed: Mapping[str, Allowed],
        expected: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Comparison, ...]:
        """The program's outputs `got`, of which those `allowed` errors were measured for are held to them; only those
        that are `expected`, if any are. Raises InputError for an expected output of another type."""
        if expected is not None:
            got = {name: got[name] for name in got if name in expected}
            expected = {name: _as_output(name, expected[name], array) for name, array in got.items()}
        want = expected if expected is not None else Oracle(self.source).run(self.arrays)
        undefined = undefined_elements(self.source, self.arrays, want)
        found = {}
        for name, value in self.imported.outputs:
            if name in got:
                places = undefined.get(name)
                a, b = defined(got[name], places), defined(want[name], places)
                compared = self.judge.compare(name, value.name, a, b, allowed.get(name))
                found[name] = with_undefined_note(compared, places)
        return judged_by_value(self.source, self.arrays, found, got, want, self.tolerances)

    def layers(self, kept: Layers) -> tuple[Comparison, ...]:
        """The program's inner tensors `kept`."""
        return compared_layers(replace(kept, source=self.source, arrays=self.arrays), self.imported, self.judge)


def _as_output(name: str, array: np.ndarray, got: np.ndarray) -> np.ndarray:
    """An expected output, of the type that the program gives; floats may be of another format."""
    array = as_declared(array, DType.of(got.dtype))
    number = all(DType.of(a.dtype).is_float for a in (array, got) if a.dtype != array.dtype or a.dtype != got.dtype)
    if array.shape != got.shape or not number:
        shapes = [f"{a.dtype}{list(a.shape)}" for a in (array, got)]
        raise InputError.of("reference", f"output '{name}' has the wrong type", got=shapes[0], expected=shapes[1])
    return array


def doubtful(tensors: Sequence[Comparison]) -> bool:
    """Whether a tensor is off, or is right only by what the model itself makes of rounding."""
    return any(not c.ok or c.sensitivity is not None for c in tensors)

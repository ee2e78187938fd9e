"""Re-executes the IR after every pass and compares it with the imported graph.

Invariants: the reference values are computed once, from the imported graph before any pass. The pass blamed is the
first after which a graph output is out of tolerance. The tensor named is the first one out of tolerance in execution
order, among tensors that kept their name and type. Where a 16-bit value of the model overflows, a program that keeps it
in f32 inside a kernel is as correct as one that stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from ppuc.compiler.inputs import feeds_of
from ppuc.compiler.pipeline.execute import run_module
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.overflow import nearest, overflows, run_wide
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, PpucError
from ppuc.ir.graph import Graph, Op
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.types import TensorType
from ppuc.targets.description import Target


class DivergenceError(PpucError):
    """A pass changed what the model computes. `comparison` is of the tensor named in the error."""

    exit_code = 1

    def __init__(self, diagnostic: Diagnostic, comparison: Comparison) -> None:
        super().__init__(diagnostic)
        self.comparison = comparison


@dataclass(frozen=True, slots=True)
class CheckedPass:
    """The outcome of re-execution after one pass: a comparison of each output, and the number of inner tensors
    compared."""

    outputs: tuple[Comparison, ...]
    tensors: int

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "outputs": {c.name: {"max_abs": c.max_abs, "sqnr_db": c.sqnr_db} for c in self.outputs},
            "tensors_compared": self.tensors,
        }


class Recheck:
    """Holds every value of the imported graph for one set of inputs (by ONNX name)."""

    def __init__(self, module: Module, inputs: Mapping[str, np.ndarray], precision: str) -> None:
        """Raises OutOfRangeError for inputs that index beyond a tensor."""
        self._inputs = inputs
        self._names = _value_types(module.graph)
        self._want: dict[str, np.ndarray] = {}
        self._overflows = False
        feeds = feeds_of(module, inputs)
        results = run_graph(module.graph, feeds, self._keep)
        self._outputs = {name: results[value] for name, value in module.outputs}
        self._output_values = dict(module.outputs)
        self._judge = Judge(module.graph, precision, feeds)
        self._graph, self._feeds = module.graph, feeds

    def _keep(self, op: Op, results: Sequence[np.ndarray]) -> None:
        for value, array in zip(op.results, results, strict=True):
            self._want[value.name] = array
            self._overflows = self._overflows or overflows(value.type.dtype, array)

    def check(self, pass_name: str, module: Module, target: Target) -> CheckedPass:
        """Run `module` and compare. Raises DivergenceError naming `pass_name` and the first tensor out of tolerance."""
        survivors = {n for n, t in _value_types(module.graph).items() if self._names.get(n) == t}
        self._names = {name: self._names[name] for name in survivors}
        wrong: list[Comparison] = []
        compared = 0
        stored = cache(partial(self._stored, module))

        def on_tensor(name: str, array: np.ndarray) -> None:
            nonlocal compared
            if name in survivors and name in self._want:
                compared += 1
                result = self._compared(f"%{name}", name, array, self._want[name], stored)
                if not result.ok:
                    wrong.append(result)

        got = run_module(module, target, self._inputs, on_tensor)
        outputs = tuple(
            self._compared(n, self._output_values[n], got[n], want, stored) for n, want in self._outputs.items()
        )
        failed = [c for c in outputs if not c.ok]
        if failed:
            raise _divergence(pass_name, (wrong or failed)[0], failed)
        return CheckedPass(outputs, compared)

    def _compared(
        self, label: str, name: str, got: np.ndarray, want: np.ndarray, stored: Callable[[], Mapping[str, np.ndarray]]
    ) -> Comparison:
        """Compare `got` with `want` and, where the model overflows, with the values if only `stored` ones overflow."""
        result = self._judge.compare(label, name, got, want)
        if result.ok or not self._overflows or name not in stored():
            return result
        again = self._judge.compare(label, name, got, nearest(got, want, stored()[name]))
        return again if again.ok else result

    def _stored(self, module: Module) -> dict[str, np.ndarray]:
        """The imported graph's values if only those that `module` stores overflow."""
        found: dict[str, np.ndarray] = {}

        def keep(op: Op, results: Sequence[np.ndarray]) -> None:
            found.update((value.name, array) for value, array in zip(op.results, results, strict=True))

        run_wide(self._graph, self._feeds, keep, stored={v.name for op in module.graph.ops for v in op.results})
        return found


def _value_types(graph: Graph) -> dict[str, TensorType]:
    """Types of all non-constant values, by name."""
    types = {p.name: p.type for p in graph.params}
    for op in graph.ops:
        if op.name != "const":
            types.update((r.name, r.type) for r in op.results)
    return types


def _divergence(pass_name: str, first: Comparison, failed: list[Comparison]) -> DivergenceError:
    outputs = ", ".join(f"'{c.name}' ({c.reason})" for c in failed)
    diagnostic = Diagnostic(
        f"pass {pass_name}",
        f"changes the value of {first.name}: {first.type}",
        got=first.reason,
        expected=f"the imported model's value within {first.tolerance:.2e}",
        hint=f"outputs out of tolerance: {outputs}; dump with --dump and compare the texts before and after this pass",
        entities=(Entity(EntityKind.TENSOR, first.name),),
    )
    return DivergenceError(diagnostic, first)

"""Evaluates graphs fast enough for searches: in ONNX Runtime if every op has an ONNX form, else in numpy.

ONNX Runtime's graph optimisations stay off: they move and merge the casts of quantization.

Invariant: an emulation of a quantized graph computes the products of the stored numbers and rounds where the program
rounds to 8 bits; everything between is f32, so it differs from the program by the order of sums and by bf16 storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ppuc.compiler.frontend.onnx_export import carried, to_onnx
from ppuc.compiler.validation.oracle import Session
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph
from ppuc.ir.interpret import run_graph


class Emulator:
    """Runs `graph` on arrays by parameter name and returns the values named `outputs` (default: its results)."""

    def __init__(self, graph: Graph, outputs: Sequence[str] | None = None) -> None:
        self.graph = graph
        self.outputs = tuple(dict.fromkeys(outputs if outputs is not None else (v.name for v in graph.results)))
        self._types = {p.name: p.type.dtype for p in graph.params}
        self._session: Session | None = None
        try:
            self._session = Session(to_onnx(graph, self.outputs), graph.name)
        except (ModelError, ValueError):  # an op without a form, a type that ONNX Runtime lacks, more than 2 GB
            self._session = None

    @property
    def in_onnxruntime(self) -> bool:
        """Whether ONNX Runtime evaluates it (else numpy, much slower)."""
        return self._session is not None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by value name, floats as f32."""
        if self._session is not None:
            known = {n: a.astype(carried(self._types[n]).numpy, copy=False) for n, a in feeds.items()}
            return dict(zip(self.outputs, self._session.run(known), strict=True))
        wanted = set(self.outputs)
        found = {n: a for n, a in feeds.items() if n in wanted}
        found |= run_graph(
            self.graph,
            feeds,
            lambda op, arrays: found.update(
                (v.name, a) for v, a in zip(op.results, arrays, strict=True) if v.name in wanted
            ),
        )
        return {n: _widened(found[n]) for n in self.outputs}


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind in "fV" else array

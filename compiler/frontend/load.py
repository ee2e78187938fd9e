"""Loads an ONNX model as a level-1 graph.

Invariant: all shapes of the graph are static, every op's loc names an ONNX node, and no op of the graph is dead. Shapes
of intermediate and output tensors come from shape inference of the op records, not from the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from ppuc.compiler.frontend.enter import (
    EnteredModel,
    Overridden,
    Sizes,
    enter,
    fixing_values,
    graph_name,
    model_digest,
    model_name,
    unreported,
    with_overrides,
)
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.inlining import Tensor
from ppuc.compiler.frontend.policy import Strict
from ppuc.compiler.frontend.source import ModelSource
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.rewrite import without_dead_ops


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model as a graph. `inputs` and `outputs` pair ONNX names with values of the graph, in the model's order; `dims`
    are the sizes that its symbols were given; `fixed` are inputs that became constants, `defaults` the file's values of
    inputs that are also initializers; `opset` is that of the standard domain after conversion; `transforms` names the
    nodes that are discrete Fourier transforms."""

    graph: Graph
    name: str
    opset: int
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[tuple[str, Value], ...]
    producer: str
    dims: Mapping[str, int]
    path: Path | None = None
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)
    transforms: frozenset[str] = frozenset()
    _proto: onnx.ModelProto | None = field(default=None, repr=False, compare=False)

    def digest(self) -> str:
        """sha256 (hex) of the model file, read now; weights in other files are identified by their resources' keys."""
        return model_digest(self.path, self._proto)


class ValuesNeededError(ModelError):
    """The model cannot be imported without the values of some of its inputs: `inputs` by name."""

    def __init__(self, error: ModelError, inputs: Sequence[str]) -> None:
        super().__init__(error.diagnostics)
        self.inputs = tuple(inputs)


def load_model(
    source: ModelSource,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    traced: bool = False,
) -> ImportedModel:
    """Import a model. `dims` binds symbols (`N`) or single axes (`input:axis`), `shapes` whole inputs by name, `values`
    are those of inputs that may be fixed: those that sizes, axes and the like depend on become constants. An
    initializer that is also an input is an input if `shapes` or `values` name it, else a constant. With `traced` the
    graph computes floats that constants determine, instead of holding them. Raises ModelError if the model is invalid
    or unsupported, UsageError if `dims` or `shapes` do not fit it."""
    given = with_overrides(source, Sizes(dims or {}, shapes or {}), values or {})
    read, sizes = given.source, given.sizes
    while True:
        builder, policy = FoldingBuilder(traced=traced), Strict(read.where)
        entered = enter(read, builder, policy, sizes)
        try:
            policy.finish()
        except ModelError as error:
            more = fixing_values(entered.wanted, values or {}, sizes.fixed)
            if not more:
                raise ValuesNeededError(error, entered.wanted) if entered.wanted else error from error.__cause__
            sizes = replace(sizes, fixed={**sizes.fixed, **more})
            continue
        if entered.unbound is not None:
            raise entered.unbound
        return _imported(given, builder, entered, sizes.fixed)


def _imported(
    given: Overridden, builder: FoldingBuilder, entered: EnteredModel, fixed: Mapping[str, np.ndarray]
) -> ImportedModel:
    source, model, name = given.source, given.source.model, model_name(given.source)
    inputs = tuple((n, v) for n, v in entered.inputs.items() if n not in fixed and isinstance(v, Value))
    results = tuple(_known(v) for v in entered.results)
    graph = Graph(graph_name(name), tuple(v for _, v in inputs), results, tuple(builder.ops))
    return ImportedModel(
        graph=without_dead_ops(graph),
        name=name,
        opset=source.opsets.get("", 0),
        inputs=inputs,
        outputs=tuple(zip((o.name for o in model.graph.output), results, strict=True)),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        dims=entered.dims,
        path=source.path,
        fixed=dict(fixed),
        defaults={n: a for n, a in given.defaults.items() if n not in fixed},
        transforms=entered.transforms,
        _proto=None if source.path is not None else model,
    )


def _known(value: Tensor) -> Value:
    """An output of the model as a Value, after all errors have been raised."""
    if isinstance(value, Value):
        return value
    raise unreported(value)

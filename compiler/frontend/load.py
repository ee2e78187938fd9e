"""ONNX in, level-1 graph out.

Invariant: all shapes of the graph are static, every op's loc names an ONNX node, and no op of the graph is dead. The
model's own claims about intermediate and output shapes are not used: what the op records infer counts.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from ppuc.compiler.frontend.bind import bind_inputs, declared_inputs
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.source import Source, read_source
from ppuc.compiler.frontend.walk import Scope, Unknown, Walk
from ppuc.ir.errors import InternalError, ModelError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.rewrite import without_dead_ops

FAMILIES = (
    "activation",
    "attention",
    "cached_attention",
    "contraction",
    "contrib",
    "convolution",
    "einsum",
    "elementwise",
    "movement",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "resize",
    "sampling",
    "shape",
    "sorting",
    "spectral",
    "unpooling",
)
"""Modules of this package that hold importers."""


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model as a graph. `inputs` and `outputs` pair ONNX names with values of the graph, in the model's order; `dims`
    are the sizes that its symbols were given; `opset` is that of the standard domain, after conversion."""

    graph: Graph
    name: str
    opset: int
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[tuple[str, Value], ...]
    producer: str
    dims: Mapping[str, int]
    path: Path | None = None
    _proto: onnx.ModelProto | None = field(default=None, repr=False, compare=False)

    def digest(self) -> str:
        """sha256 (hex) of the model file, read now; weights in other files are known by their resources' keys."""
        if self.path is not None:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        if self._proto is None:
            raise InternalError("an imported model has neither a path nor a proto")
        return hashlib.sha256(self._proto.SerializeToString(deterministic=True)).hexdigest()


def load_model(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> ImportedModel:
    """Import a model. `dims` binds symbols (`N`) or single axes (`input:axis`), `shapes` whole inputs by name. Raises
    ModelError when the model is wrong or asks for something unsupported, UsageError when `dims` or `shapes` do not suit
    it."""
    register_importers()
    read = read_source(source)
    builder = FoldingBuilder()
    walk = Walk(read, builder)
    scope = Scope(read.opsets)
    constants = {t.name for t in read.model.graph.initializer}
    declarations = declared_inputs([i for i in read.model.graph.input if i.name not in constants], read.where)
    params: list[Value] = []
    symbols: dict[str, int] = {}
    unbound: ModelError | None = None
    try:
        types, symbols = bind_inputs(declarations, dims or {}, shapes or {}, read.where)
        params = [Value(builder.fresh(d.name), t) for d, t in zip(declarations, types, strict=True)]
        known = (p if p.type.elements else builder.empty(p.type, p.name) for p in params)
        scope.values.update((d.name, v) for d, v in zip(declarations, known, strict=True))
    except ModelError as error:
        # Ops that are not supported at all are worth knowing before any size is chosen: the walk finds them regardless.
        unbound = error
        scope.values.update((d.name, Unknown(error)) for d in declarations)
    results = walk.graph(read.model.graph, scope)
    walk.finish()
    if unbound is not None:
        raise unbound
    return _imported(read, builder, params, [_known(v) for v in results], symbols)


def _known(value: Value | Unknown | None) -> Value:
    """An output of the model, after all errors have been raised."""
    if isinstance(value, Value):
        return value
    if isinstance(value, Unknown) and value.error is not None:
        raise value.error
    raise InternalError("an output is unknown, but no error was reported")


def _imported(
    source: Source, builder: FoldingBuilder, params: Sequence[Value], results: Sequence[Value], symbols: dict[str, int]
) -> ImportedModel:
    model = source.model
    name = model.graph.name or (source.path.stem if source.path is not None else "model")
    graph = Graph(re.sub(r"[^A-Za-z0-9_.]", "_", name), tuple(params), tuple(results), tuple(builder.ops))
    constants = {t.name for t in model.graph.initializer}
    input_names = [i.name for i in model.graph.input if i.name not in constants]
    return ImportedModel(
        graph=without_dead_ops(graph),
        name=name,
        opset=source.opsets.get("", 0),
        inputs=tuple(zip(input_names, params, strict=True)),
        outputs=tuple(zip((o.name for o in model.graph.output), results, strict=True)),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        dims=symbols,
        path=source.path,
        _proto=None if source.path is not None else model,
    )


def register_importers() -> None:
    """Import the op families, which register their importers; again costs nothing."""
    for family in FAMILIES:
        importlib.import_module(f"ppuc.compiler.frontend.{family}")

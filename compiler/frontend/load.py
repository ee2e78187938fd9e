"""ONNX in, level-1 graph out.

Invariant: all shapes of the graph are static, every op's loc names an ONNX node, and no op of the graph is dead. The
model's own claims about intermediate and output shapes are not used: what the op records infer counts.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from ppuc.compiler.frontend.bind import bind_inputs, declared_inputs
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.scope import Scope, Tensor, Unknown
from ppuc.compiler.frontend.source import Source, read_source
from ppuc.compiler.frontend.walk import Walk
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
    are the sizes that its symbols were given; `fixed` are inputs that became constants; `opset` is that of the standard
    domain, after conversion; `transforms` names the nodes that are discrete Fourier transforms."""

    graph: Graph
    name: str
    opset: int
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[tuple[str, Value], ...]
    producer: str
    dims: Mapping[str, int]
    path: Path | None = None
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    transforms: frozenset[str] = frozenset()
    _proto: onnx.ModelProto | None = field(default=None, repr=False, compare=False)

    def digest(self) -> str:
        """sha256 (hex) of the model file, read now; weights in other files are known by their resources' keys."""
        return model_digest(self.path, self._proto)


def model_digest(path: Path | None, proto: onnx.ModelProto | None) -> str:
    """sha256 (hex) of a model in a file or in memory."""
    if path is not None:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if proto is None:
        raise InternalError("an imported model has neither a path nor a proto")
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


class ValuesNeededError(ModelError):
    """The model cannot be imported without the values of some of its inputs: `inputs` by name."""

    def __init__(self, error: ModelError, inputs: Sequence[str]) -> None:
        super().__init__(error.diagnostics)
        self.inputs = tuple(inputs)


LARGEST_FIXED, LARGEST_FIXED_FLOATS = 4096, 16
"""Elements of an input whose value is worth a program of its own."""


def load_model(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> ImportedModel:
    """Import a model. `dims` binds symbols (`N`) or single axes (`input:axis`), `shapes` whole inputs by name, `values`
    are those of inputs that may be fixed: the ones that sizes, axes and the like depend on become constants. Raises
    ModelError when the model is wrong or asks for something unsupported, UsageError when `dims` or `shapes` do not suit
    it."""
    fixed: dict[str, np.ndarray] = {}
    while True:
        try:
            return _load(source, dims or {}, shapes or {}, fixed)
        except ValuesNeededError as error:
            fixable(error.inputs, values or {}, fixed, error)


def fixable(
    wanted: Sequence[str], values: Mapping[str, np.ndarray], fixed: dict[str, np.ndarray], error: ModelError
) -> None:
    """Add those of `wanted` that have a value to `fixed`. Raises `error` when there are none."""
    found = fixing_values(wanted, values, fixed)
    if not found:
        raise error
    fixed.update(found)


def fixing_values(
    wanted: Sequence[str], values: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The values of `wanted` inputs that are not fixed yet and may be: sizes, axes, flags and factors, not data."""
    return {n: values[n] for n in wanted if n not in fixed and _parameter(values.get(n))}


def _parameter(value: object) -> bool:
    """Whether a value looks like what steers a computation, rather than like what it is about."""
    if not isinstance(value, np.ndarray):
        return False
    return value.size <= (LARGEST_FIXED if value.dtype.kind in "iub" else LARGEST_FIXED_FLOATS)


def _load(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    fixed: Mapping[str, np.ndarray],
) -> ImportedModel:
    register_importers()
    read = read_source(source)
    builder = FoldingBuilder()
    walk = Walk(read, builder)
    scope = Scope(read.opsets)
    constants = {t.name for t in read.model.graph.initializer}
    declarations = declared_inputs([i for i in read.model.graph.input if i.name not in constants], read.where)
    params: dict[str, Value] = {}
    symbols: dict[str, int] = {}
    unbound: ModelError | None = None
    try:
        types, symbols = bind_inputs(declarations, dims, shapes, read.where)
        for d, type in zip(declarations, types, strict=True):
            params[d.name] = Value(builder.fresh(d.name), type)
            scope.values[d.name] = entering(builder, params[d.name], fixed.get(d.name))
    except ModelError as error:
        # Ops that are not supported at all are worth knowing before any size is chosen: the walk finds them regardless.
        unbound = error
        scope.values.update((d.name, Unknown(error)) for d in declarations)
    results = walk.graph(read.model.graph, scope)
    try:
        walk.finish()
    except ModelError as error:
        wanted = [name for name, value in params.items() if value.name in walk.wanted]
        raise ValuesNeededError(error, wanted) if wanted else error from error.__cause__
    if unbound is not None:
        raise unbound
    made = _imported(read, builder, params, [_known(v) for v in results], symbols, fixed)
    return replace(made, transforms=frozenset(walk.transforms))


def entering(builder: FoldingBuilder, param: Value, value: np.ndarray | None) -> Value:
    """What an input's name stands for in the graph: a constant when it is fixed or has no elements."""
    if value is not None:
        return builder.const(np.ascontiguousarray(value, param.type.dtype.numpy).reshape(param.type.dims), param.name)
    return param if param.type.elements else builder.empty(param.type, param.name)


def _known(value: Tensor) -> Value:
    """An output of the model, after all errors have been raised."""
    if isinstance(value, Value):
        return value
    if isinstance(value, Unknown) and value.error is not None:
        raise value.error
    raise InternalError("an output is unknown, but no error was reported")


def _imported(
    source: Source,
    builder: FoldingBuilder,
    params: Mapping[str, Value],
    results: Sequence[Value],
    symbols: dict[str, int],
    fixed: Mapping[str, np.ndarray],
) -> ImportedModel:
    model = source.model
    inputs = {name: value for name, value in params.items() if name not in fixed}
    name = model_name(source)
    graph = Graph(graph_name(name), tuple(inputs.values()), tuple(results), tuple(builder.ops))
    return ImportedModel(
        graph=without_dead_ops(graph),
        name=name,
        opset=source.opsets.get("", 0),
        inputs=tuple(inputs.items()),
        outputs=tuple(zip((o.name for o in model.graph.output), results, strict=True)),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        dims=symbols,
        path=source.path,
        fixed=dict(fixed),
        _proto=None if source.path is not None else model,
    )


def model_name(source: Source) -> str:
    """What a model is called: by itself, else by its file."""
    return source.model.graph.name or (source.path.stem if source.path is not None else "model")


def graph_name(name: str) -> str:
    """A model's name as the text form of graphs has it."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def register_importers() -> None:
    """Import the op families, which register their importers; again costs nothing."""
    for family in FAMILIES:
        importlib.import_module(f"ppuc.compiler.frontend.{family}")

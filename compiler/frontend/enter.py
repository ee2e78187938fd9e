"""Where a model enters the compiler: `read_source` parses it, `enter` binds its inputs and imports its nodes under the
caller's policy. `load_model` and `load_hosted` are the callers, and make a graph of the result.

A caller that gets `wanted` inputs and has values for them enters the model again with these inputs fixed.

Invariant: the policy collects what is wrong with the nodes of a model; `enter` raises nothing for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from ppuc.compiler.frontend.bind import bind_inputs, declared_inputs
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.importer import ModelImporter
from ppuc.compiler.frontend.inlining import Elsewhere, Tensor, Unknown
from ppuc.compiler.frontend.policy import Policy
from ppuc.compiler.frontend.registry import register_importers
from ppuc.compiler.frontend.source import ModelSource, Source, read_source
from ppuc.compiler.frontend.tensors import foreign, read_tensor
from ppuc.ir.errors import InternalError, ModelError
from ppuc.ir.graph import Value

LARGEST_FIXED, LARGEST_FIXED_FLOATS = 4096, 16
"""Elements of an input whose value is worth a program of its own."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of a model's inputs: `dims` binds symbols (`N`) or single axes (`input:axis`), `shapes` whole
    inputs, `fixed` are inputs that become constants."""

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnteredModel:
    """`inputs` are those of the model, in its order, and the parameters of the graph that stand for them; `results`
    what its outputs stand for; `dims` the sizes of its symbols. `unbound` is what is wrong with the sizes of the
    inputs: then there are no `inputs`. `wanted` are inputs whose values some node cannot be imported without,
    `transforms` nodes that are discrete Fourier transforms."""

    inputs: Mapping[str, Value | Elsewhere]
    results: Sequence[Tensor]
    dims: Mapping[str, int]
    wanted: tuple[str, ...]
    transforms: frozenset[str]
    unbound: ModelError | None = None


@dataclass(frozen=True, slots=True)
class Overridden:
    """A model some of whose initializers are inputs, because they are given: what it is entered with. `defaults` are
    the values that the file has for them, for runs that give none; strings and the like have none."""

    source: Source
    sizes: Sizes
    defaults: Mapping[str, np.ndarray]


def enter(source: Source, builder: FoldingBuilder, policy: Policy, sizes: Sizes) -> EnteredModel:
    """Import a model into `builder`. Raises UsageError for sizes that do not suit the model, ModelError for one that is
    malformed, or what `policy` raises."""
    register_importers()
    importer = ModelImporter(source, builder, policy)
    scope = importer.scope()
    elsewhere = {i.name: held for i in source.inputs if (held := policy.input(i)) is not None}
    declarations = declared_inputs([i for i in source.inputs if i.name not in elsewhere], source.where)
    inputs: dict[str, Value | Elsewhere] = {}
    symbols: dict[str, int] = {}
    unbound: ModelError | None = None
    shapes = {name: shape for name, shape in sizes.shapes.items() if name not in elsewhere}
    try:
        types, symbols = bind_inputs(declarations, sizes.dims, shapes, source.where)
    except ModelError as error:
        unbound = error
        scope.values.update((d.name, Unknown(error)) for d in declarations)
    else:
        params = {d.name: Value(builder.fresh(d.name), t) for d, t in zip(declarations, types, strict=True)}
        inputs = {i.name: elsewhere.get(i.name) or params[i.name] for i in source.inputs}
        scope.values.update((n, _entering(builder, held, sizes.fixed.get(n))) for n, held in inputs.items())
    policy.bound(symbols, unbound)
    results = importer.graph(source.model.graph, scope)
    wanted = tuple(n for n, v in inputs.items() if isinstance(v, Value) and v.name in importer.wanted)
    return EnteredModel(inputs, results, symbols, wanted, frozenset(importer.transforms), unbound)


def _entering(builder: FoldingBuilder, held: Value | Elsewhere, value: np.ndarray | None) -> Tensor:
    """What an input's name stands for while importing: a constant when it is fixed or has no elements."""
    if not isinstance(held, Value):
        return held
    if value is not None:
        return builder.const(np.ascontiguousarray(value, held.type.dtype.numpy).reshape(held.type.dims), held.name)
    return held if held.type.elements else builder.empty(held.type, held.name)


def with_overrides(source: ModelSource, sizes: Sizes, values: Mapping[str, np.ndarray]) -> Overridden:
    """`source`, read, with the overridable initializers that `sizes` or `values` name as inputs."""
    read = read_source(source)
    named = {n: t for n, t in read.overridable.items() if n in sizes.shapes or n in values}
    shapes = {n: np.shape(values[n]) for n in named if n in values}
    dense = {n: t for n, t in named.items() if not foreign(t.data_type)}
    defaults = {n: read_tensor(t, read, of_model=True).array() for n, t in dense.items()}
    return Overridden(read.overridden(named), replace(sizes, shapes={**shapes, **sizes.shapes}), defaults)


def fixing_values(
    wanted: Sequence[str], values: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The values of `wanted` inputs that are not fixed yet and may be: sizes, axes, flags and factors, not data."""
    return {n: values[n] for n in wanted if n not in fixed and _controls(values.get(n))}


def _controls(value: object) -> bool:
    """Whether a value looks like one that controls a computation (a shape, an axis, a factor), not like its data."""
    if not isinstance(value, np.ndarray):
        return False
    return value.size <= (LARGEST_FIXED if value.dtype.kind in "iub" else LARGEST_FIXED_FLOATS)


def unreported(value: Tensor) -> Exception:
    """What to raise for an output of the model that is no tensor, after the policy has raised what it collected."""
    if isinstance(value, Unknown) and value.error is not None:
        return value.error
    return InternalError("an output is unknown, but no error was reported")


def model_name(source: Source) -> str:
    """What a model is called: by itself, else by its file."""
    return source.model.graph.name or (source.path.stem if source.path is not None else "model")


def graph_name(name: str) -> str:
    """A model's name as the text form of graphs has it."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def model_digest(path: Path | None, proto: onnx.ModelProto | None) -> str:
    """sha256 (hex) of a model in a file or in memory."""
    if path is not None:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if proto is None:
        raise InternalError("an imported model has neither a path nor a proto")
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


__all__ = [
    "EnteredModel",
    "Overridden",
    "Sizes",
    "enter",
    "fixing_values",
    "graph_name",
    "model_digest",
    "model_name",
    "unreported",
    "with_overrides",
]

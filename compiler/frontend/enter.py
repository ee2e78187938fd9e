"""The entry of a model into the compiler: `read_source` parses it, `enter` binds its inputs and imports its nodes under
the caller's policy. The callers, `load_model` and `load_hosted`, make a graph of the result.

A caller with values for the `wanted` inputs enters the model again with these inputs fixed.

Invariant: the policy collects errors about nodes; `enter` does not raise them.
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
"""Maximum elements of an input that may be fixed to its value."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Known sizes of a model's inputs: `dims` binds symbols (`N`) or single axes (`input:axis`), `shapes` whole inputs;
    `fixed` are inputs that become constants."""

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnteredModel:
    """`inputs` pairs the model's inputs, in order, with graph parameters; `results` are the tensors of its outputs;
    `dims` the sizes of its symbols. `unbound` is the error about unbound dimensions; `inputs` is empty then. `wanted`
    are inputs whose values some importer needs; `transforms` are nodes that are discrete Fourier transforms."""

    inputs: Mapping[str, Value | Elsewhere]
    results: Sequence[Tensor]
    dims: Mapping[str, int]
    wanted: tuple[str, ...]
    transforms: frozenset[str]
    unbound: ModelError | None = None


@dataclass(frozen=True, slots=True)
class Overridden:
    """A model with some overridable initializers turned into inputs, because values are given for them. `defaults` are
    their values in the file, for runs without them; types such as strings have none."""

    source: Source
    sizes: Sizes
    defaults: Mapping[str, np.ndarray]


def enter(source: Source, builder: FoldingBuilder, policy: Policy, sizes: Sizes) -> EnteredModel:
    """Import a model into `builder`. Raises UsageError for sizes that do not fit the model, ModelError for a malformed
    model, and the errors of `policy`."""
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
    """The value of an input's name while importing: a constant if it is fixed or empty."""
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
    """The values of `wanted` inputs that can still be fixed: sizes, axes, flags and factors, not data."""
    return {n: values[n] for n in wanted if n not in fixed and _controls(values.get(n))}


def _controls(value: object) -> bool:
    """Whether the value controls the computation (a shape, an axis, a factor), judging by its type and size."""
    if not isinstance(value, np.ndarray):
        return False
    return value.size <= (LARGEST_FIXED if value.dtype.kind in "iub" else LARGEST_FIXED_FLOATS)


def unreported(value: Tensor) -> Exception:
    """The error for an unknown output after the policy has raised its collected errors."""
    if isinstance(value, Unknown) and value.error is not None:
        return value.error
    return InternalError("an output is unknown, but no error was reported")


def model_name(source: Source) -> str:
    """The model's own name, else its file's."""
    return source.model.graph.name or (source.path.stem if source.path is not None else "model")


def graph_name(name: str) -> str:
    """A model's name in the text form of graphs."""
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

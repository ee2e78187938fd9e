"""Reads a path or a ModelProto into a parsed model of a supported opset, without reading its weights.

Invariant: a Source's model has opset 7 or newer (or no op of the standard domain), and every initializer's bytes are in
the model, in the file itself (`ranges`) or in external files under `folder`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx.version_converter
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs on PyPI's protobuf

from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.wire import WireError, split
from ppuc.ir.errors import ModelError

OLDEST_OPSET = 7
"""Older opsets are converted to this one; importers handle all newer ones."""
OVERRIDING_IR = 4
"""From this IR version on, an initializer that is also an input is a default value."""
NEWEST_OPSET = onnx.defs.onnx_opset_version()


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed model. `where` names it in messages; `path` and `folder` are None for a model in memory; `ranges` gives
    offset and length in `path` of initializers that were not read. Weight files that are missing are an error, unless
    there is a set `absent` to collect their names; their weights then read as zeros."""

    model: onnx.ModelProto
    where: str
    path: Path | None = None
    folder: Path | None = None
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    absent: set[str] | None = None

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Declarations of the inputs that are not initializers."""
        constants = {t.name for t in self.model.graph.initializer}
        return [i for i in self.model.graph.input if i.name not in constants]

    @property
    def overridable(self) -> dict[str, onnx.TensorProto]:
        """Overridable initializers by name: those that are also inputs, as default values."""
        return overridable_initializers(self.model)

    def overridden(self, names: Collection[str]) -> Source:
        """The model with the overridable initializers among `names` as inputs without defaults."""
        given = self.overridable.keys() & set(names)
        if not given:
            return self
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        kept = [t for t in self.model.graph.initializer if t.name not in given]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        return replace(self, model=model)

    @property
    def opsets(self) -> dict[str, int]:
        """Domain -> version; the standard domain is ""."""
        return opset_versions(self.model.opset_import)


def overridable_initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers of `model` that are also inputs, by name. Before IR version 4, every initializer had to be an input,
    so all of them count as constants."""
    if model.ir_version < OVERRIDING_IR:
        return {}
    inputs = {i.name for i in model.graph.input}
    return {t.name: t for t in model.graph.initializer if t.name in inputs}


def opset_versions(imports: object) -> dict[str, int]:
    """Domain -> version of a list of OperatorSetIdProto."""
    return {normal_domain(entry.domain): entry.version for entry in imports}  # type: ignore[attr-defined]


def normal_domain(domain: str) -> str:
    """The domain, with "" for both spellings of the standard domain."""
    return "" if domain == "ai.onnx" else domain


ModelSource = str | Path | onnx.ModelProto | Source
"""The accepted forms of a model: a file, a model in memory, or a Source."""


def read_source(source: ModelSource) -> Source:
    """Parse a file or wrap a model in memory; a Source is returned unchanged. Raises ModelError if it is missing, not a
    model, damaged, or of an unknown opset."""
    if isinstance(source, Source):
        return source
    if isinstance(source, onnx.ModelProto):
        return _of_known_opset(Source(source, source.graph.name or "model"))
    path = Path(source)
    if not os.path.exists(path):
        raise ModelError.of(str(path), "there is no such file")
    if path.is_dir():
        raise ModelError.of(str(path), "this is a folder", expected="an .onnx file")
    try:
        model, ranges = _parsed(path)
    except OSError as error:
        raise ModelError.of(str(path), "cannot be read", got=error.strerror) from None
    if not model.HasField("graph") or not all(isinstance(text, str) for text in _texts(model)):
        raise _damaged(path, False)
    return _of_known_opset(Source(model, str(path), path, path.parent, ranges))


def _parsed(path: Path) -> tuple[onnx.ModelProto, dict[str, tuple[int, int]]]:
    """A file without its large weights, and their ranges in the file. Raises ModelError and OSError."""
    if path.stat().st_size == 0:
        raise ModelError.of(str(path), "the file is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            skeleton, ranges = split(view)
            return onnx.ModelProto.FromString(skeleton), ranges
        except WireError as error:
            raise _damaged(path, error.truncated) from None
        except DecodeError:
            raise _damaged(path, False) from None
        finally:
            view.release()


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Every name that the importer uses; the parser returns bytes for text that is not UTF-8."""
    yield from (model.producer_name, model.producer_version, *(o.domain for o in model.opset_import))
    yield from _graph_texts(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, function.overload, *function.input, *function.output)
        yield from (*function.attribute, *(o.domain for o in function.opset_import))
        yield from _node_texts(function.node)


def _graph_texts(graph: onnx.GraphProto) -> Iterator[object]:
    yield from (graph.name, *(t.name for t in graph.initializer), *(o.name for o in graph.output))
    for tensor in graph.initializer:
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))
    for info in graph.input:
        yield from (info.name, *(d.dim_param for d in info.type.tensor_type.shape.dim))
    yield from _node_texts(graph.node)


def _node_texts(nodes: Iterable[onnx.NodeProto]) -> Iterator[object]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name, attribute.t.name)
            if attribute.HasField("g"):
                yield from _graph_texts(attribute.g)


def _damaged(path: Path, truncated: bool) -> Exception:
    if truncated:
        size = path.stat().st_size
        return ModelError.of(str(path), "the file ends early", got=f"{size} bytes", hint="copy or download it again")
    return ModelError.of(str(path), "this is not an ONNX model", expected="a protobuf file as written by onnx.save")


def _of_known_opset(source: Source) -> Source:
    version = source.opsets.get("")
    if version is None and not any(normal_domain(n.domain) == "" for n in source.model.graph.node):
        return source
    if version is None:
        raise ModelError.of(source.where, "the model does not say which opset it uses")
    if version > NEWEST_OPSET:
        raise ModelError.of(
            source.where,
            "the opset is newer than this version knows",
            got=version,
            expected=f"at most {NEWEST_OPSET}",
            hint="update the onnx package, or export the model with an older opset",
        )
    return source if version >= OLDEST_OPSET else _converted(source, version)


def _converted(source: Source, version: int) -> Source:
    """Convert `source` to OLDEST_OPSET. The converter reads weights and inner shapes, so it gets the whole file and
    inferred shapes."""
    whole = source.model if source.path is None else onnx.load(source.path, load_external_data=False)
    try:
        inferred = _with_slopes_per_channel(infer_shapes(whole))
        model = onnx.version_converter.convert_version(inferred, OLDEST_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own ConvertError, from C++
        raise ModelError.of(
            source.where,
            f"opset {version} cannot be converted to opset {OLDEST_OPSET}",
            got=str(error).strip().splitlines()[0].rpartition("failed: ")[2],
            hint=f"export the model with opset {OLDEST_OPSET} or newer",
        ) from error
    return Source(model, source.where, source.path, source.folder)


def _with_slopes_per_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before opset 7, a vector of PRelu slopes is per channel; since then it broadcasts, which the converter does not
    handle. Vectors become [C, 1, ...]."""
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in (*model.graph.input, *model.graph.value_info)}
    slopes = {n.input[1]: ranks.get(n.input[0], 0) for n in model.graph.node if n.op_type == "PRelu"}
    for tensor in model.graph.initializer:
        if tensor.name in slopes and len(tensor.dims) == 1 and slopes[tensor.name] > 2:
            tensor.dims.extend([1] * (slopes[tensor.name] - 2))
    for info in model.graph.input:
        dim = info.type.tensor_type.shape.dim
        if info.name in slopes and len(dim) == 1 and slopes[info.name] > 2:
            for _ in range(slopes[info.name] - 2):
                dim.add(dim_value=1)
    return model

"""Converts an ONNX model to an editable graph and back.

Invariant: inputs and outputs keep their names, types and order; opset and metadata are preserved; the model's functions
are inlined. An initializer that is also an input stays both: it is a default value, not a constant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from ppuc.compiler.frontend.bind import bind_inputs, declared_inputs
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.source import normal_domain, opset_versions, overridable_initializers, read_source
from ppuc.compiler.simplify.model import Constant, ModelGraph, Node
from ppuc.compiler.simplify.symbolic_sizes import Poly, symbol
from ppuc.ir.errors import ModelError, UsageError
from ppuc.ir.files import write_file

LARGEST_MESSAGE = 1_900_000_000
"""Bytes of weights above which they are written to a separate file: a protobuf message is limited to 2 GB."""
_SHAPE_DATA = 1024
"""Maximum elements of the initializers that are passed to shape inference."""

Static = dict[str, tuple[int, list[int | None] | None]]


def read_model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The whole model, weights included, functions inlined. Raises ModelError."""
    read = read_source(source)
    model = onnx.ModelProto()
    if read.path is not None:
        try:
            model = onnx.load(read.path)
        except (onnx.checker.ValidationError, OSError) as error:
            raise ModelError.of(read.where, "its external weights cannot be read", got=str(error)) from error
        if read.opsets.get("") != opset_versions(model.opset_import).get(""):
            model = read.model  # converted from an old opset
    else:
        model.CopyFrom(read.model)
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def bind(model: onnx.ModelProto, dims: Mapping[str, int], where: str) -> None:
    """Write the sizes in `dims` (keys `N` or `input:axis`) into the declarations. Raises UsageError for unknown
    keys."""
    inputs = inputs_of(model)
    if not dims:
        return
    declarations = declared_inputs(inputs, where)
    open_keys = {
        d if isinstance(d, str) else f"{i.name}:{axis}"
        for i in declarations
        for axis, d in enumerate(i.shape or ())
        if not isinstance(d, int)
    }
    rest = {k: 1 for k in open_keys if k not in dims}  # any size: only the keys are checked here
    bind_inputs(declarations, {**rest, **dims}, {}, where)
    for info in inputs:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            size = dims.get(dim.dim_param or "", dims.get(f"{info.name}:{axis}"))
            if size is not None:
                dim.dim_value = size
    for info in model.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Declarations of all inputs, including those with a default, that are not constants."""
    constants = {t.name for t in model.graph.initializer} - overridable_initializers(model).keys()
    return [i for i in model.graph.input if i.name not in constants]


def fix_defaults(model: onnx.ModelProto) -> None:
    """Turn initializers that are also inputs into constants."""
    defaults = overridable_initializers(model)
    kept = [i for i in model.graph.input if i.name not in defaults]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def to_graph(model: onnx.ModelProto, where: str) -> ModelGraph:
    """The editable graph; only the types of its inputs are filled in."""
    inputs = inputs_of(model)
    names = {i.name for i in inputs}
    constants = {t.name: Constant(t) for t in model.graph.initializer if t.name not in names}
    outputs = [o.name for o in model.graph.output]
    nodes = []
    for label, proto in ordered(model.graph.node, names | constants.keys(), outputs, where):
        constant = constant_of(proto)
        if constant is not None and proto.output[0] not in outputs:
            constants[proto.output[0]] = constant
            continue
        nodes.append(parsed_node(proto, label))
    opset = opset_versions(model.opset_import)[""]
    g = ModelGraph(opset, list(model.opset_import), inputs, list(model.graph.output), nodes, constants)
    g.index()
    for info in inputs:
        shape = None
        if info.type.tensor_type.HasField("shape"):
            shape = tuple(_declared(info.name, i, d) for i, d in enumerate(info.type.tensor_type.shape.dim))
        g.types[info.name] = (info.type.tensor_type.elem_type, shape)
    return g


def parsed_node(proto: onnx.NodeProto, name: str) -> Node:
    """A node under the name `name`."""
    node = Node(proto.op_type, proto.input, proto.output, name, normal_domain(proto.domain))
    node.attributes = {a.name: a for a in proto.attribute}
    return node


def _declared(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> int | Poly:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    usable = dim.dim_param and dim.dim_param not in ("?", "-1", "None")
    return symbol(dim.dim_param if usable else f"{name}:{axis}")


def constant_of(proto: onnx.NodeProto) -> Constant | None:
    """The constant that a Constant node defines; None for other nodes, strings and sparse tensors."""
    if proto.op_type != "Constant" or normal_domain(proto.domain):
        return None
    attribute = proto.attribute[0]
    if attribute.name == "value":
        return Constant(attribute.t)
    if attribute.name == "sparse_value" or attribute.name.startswith("value_string"):
        return None
    value = onnx.helper.get_attribute_value(attribute)
    return Constant(np.array(value, np.float32 if "float" in attribute.name else np.int64))


def static_types(g: ModelGraph) -> Static:
    """Element types and numeric sizes from ONNX's shape inference, given the inputs' declarations and small
    constants."""
    found: Static = {}
    try:
        inferred = infer_shapes(_without_weights(g), data_prop=True)
    except Exception:  # a C++ error of onnx: only the shapes that the rules derive are known
        return found
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = info.type.tensor_type
        if info.type.WhichOneof("value") != "tensor_type":
            continue
        shape = [int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim]
        found[info.name] = (tensor.elem_type, shape if tensor.HasField("shape") else None)
    return found


def _without_weights(g: ModelGraph) -> onnx.ModelProto:
    """The model with large constants turned into inputs, and without declared shapes of results."""
    light = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    light.opset_import.extend(g.imports)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(n.to_proto() for n in g.nodes)
    graph.input.extend(g.inputs)
    for o in g.outputs:
        info = graph.output.add(name=o.name)
        info.type.tensor_type.elem_type = o.type.tensor_type.elem_type
    for name, c in g.constants.items():
        if c.elements <= _SHAPE_DATA:
            graph.initializer.append(c.proto(name))
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(name, c.dtype, c.shape))
    return light


def to_model(g: ModelGraph, original: onnx.ModelProto) -> onnx.ModelProto:
    """`g` as an ONNX model with the metadata of `original`."""
    model = onnx.ModelProto()
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if original.HasField(field):
            setattr(model, field, getattr(original, field))
    model.ir_version = max(model.ir_version, 4)  # from IR version 4, initializers need not be inputs
    model.metadata_props.extend(original.metadata_props)
    used = {n.domain for n in g.nodes} | {""}
    model.opset_import.extend(o for o in g.imports if normal_domain(o.domain) in used or _has_graphs(g))
    graph = model.graph
    graph.name = original.graph.name or "model"
    graph.doc_string = original.graph.doc_string
    graph.node.extend(n.to_proto() for n in g.nodes)
    graph.initializer.extend(overridable_initializers(original).values())
    graph.initializer.extend(c.proto(n) for n, c in g.constants.items())
    graph.input.extend(g.inputs)
    for o in g.outputs:
        graph.output.append(_with_sizes(o, g))
    return model


def _has_graphs(g: ModelGraph) -> bool:
    return any(n.has_graph for n in g.nodes)


def _with_sizes(info: onnx.ValueInfoProto, g: ModelGraph) -> onnx.ValueInfoProto:
    """The declaration of an output, with known sizes in place of symbols."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    shape, dims = g.shape(info.name), copy.type.tensor_type.shape.dim
    if shape is not None and len(shape) == len(dims):
        for dim, size in zip(dims, shape, strict=True):
            if isinstance(size, int) and not dim.HasField("dim_value"):
                dim.dim_value = size
    return copy


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, with weights in a separate file if one message cannot hold them; a failed write leaves no files.
    Raises UsageError."""
    if sum(len(t.raw_data) for t in model.graph.initializer) <= LARGEST_MESSAGE:
        write_file(path, model.SerializeToString())
        return
    data = path.with_name(path.name + ".data")
    try:
        with tempfile.TemporaryDirectory(prefix=".ppuc.", dir=path.parent, ignore_cleanup_errors=True) as folder:
            onnx.save(model, Path(folder, path.name), save_as_external_data=True, location=data.name)
            Path(folder, data.name).replace(data)
            Path(folder, path.name).replace(path)
    except OSError as error:
        raise UsageError.of(str(path), "cannot be written", got=error.strerror) from error

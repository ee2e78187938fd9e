"""Models that break one rule of ONNX: correct models of one node, changed in one place.

Each mutation takes a correct model and yields broken copies with the name of what was done. Not every copy is broken
(an attribute may be optional, a size may fit by chance): `refused_by_others` asks ONNX's checker, its strict shape
inference and ONNX Runtime. `benchmarks/malformed.py` puts many of them through the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

Mutant = tuple[str, onnx.ModelProto]
Mutation = Callable[[onnx.ModelProto], Iterator[Mutant]]

FAR = (-(1 << 31), -7, -1, 0, 1, 9, 1 << 20, 1 << 40)
"""Integers that an attribute may be set to."""
SMALL = 64
"""Maximum elements of a constant that is changed."""


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


def _attributes(model: onnx.ModelProto) -> Iterator[tuple[int, int, AttributeProto]]:
    for i, node in enumerate(model.graph.node):
        for j, attribute in enumerate(node.attribute):
            yield i, j, attribute


def without_attributes(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Each attribute left out."""
    for i, j, attribute in _attributes(model):
        made = _copy(model)
        del made.graph.node[i].attribute[j]
        yield f"without {attribute.name}", made


def other_kinds(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Each attribute as a value of another kind."""
    for i, j, attribute in _attributes(model):
        for value in (1, 1.5, "text", [1, 2], [1.5], ["a"]):
            other = helper.make_attribute(attribute.name, value)
            if other.type != attribute.type:
                made = _copy(model)
                made.graph.node[i].attribute[j].CopyFrom(other)
                yield f"{attribute.name} = {value!r}", made


def other_values(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Each attribute with values at and beyond the ends of its range, and lists of other lengths."""
    for i, j, attribute in _attributes(model):
        for value in _values(attribute):
            made = _copy(model)
            made.graph.node[i].attribute[j].CopyFrom(
                helper.make_attribute(attribute.name, value, attr_type=attribute.type)
            )
            yield f"{attribute.name} = {str(value)[:40]}", made


def _values(attribute: AttributeProto) -> Iterator[object]:
    kinds = AttributeProto
    if attribute.type == kinds.INT:
        yield from FAR
    elif attribute.type == kinds.FLOAT:
        yield from (float("nan"), -1e30, -1.0, 0.0)
    elif attribute.type == kinds.STRING:
        yield from ("", "NO_SUCH_MODE", attribute.s.decode().upper() + "\0")
    elif attribute.type == kinds.INTS:
        have = list(attribute.ints)
        yield from (have[:-1], [*have, 1])
        for at in {0, len(have) - 1} if have else ():
            for value in FAR:
                yield [*have[:at], value, *have[at + 1 :]]


def unknown_attributes(model: onnx.ModelProto) -> Iterator[Mutant]:
    """An attribute that the op does not have, and one given twice."""
    for i, node in enumerate(model.graph.node):
        made = _copy(model)
        made.graph.node[i].attribute.append(helper.make_attribute("no_such_attribute", 1))
        yield "unknown attribute", made
        if node.attribute:
            made = _copy(model)
            made.graph.node[i].attribute.append(node.attribute[0])
            yield f"{node.attribute[0].name} twice", made
        made = _copy(model)
        made.graph.node[i].attribute.append(AttributeProto(name="axis", type=AttributeProto.INT, ref_attr_name="outer"))
        yield "reference outside a function", made


def operands(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Operands left out, doubled, emptied; too many outputs."""
    for i, node in enumerate(model.graph.node):
        for k in range(len(node.input)):
            made = _copy(model)
            made.graph.node[i].input[k] = ""
            yield f"operand {k} empty", made
        if node.input:
            made = _copy(model)
            del made.graph.node[i].input[-1]
            yield "one operand less", made
            made = _copy(model)
            made.graph.node[i].input.extend([node.input[0]] * 3)
            yield "three operands more", made
        made = _copy(model)
        made.graph.node[i].output.extend([f"more{k}" for k in range(9)])
        yield "nine outputs more", made
        made = _copy(model)
        made.graph.node[i].output[:] = [""] * len(node.output)
        yield "outputs without names", made


def declarations(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Declared types of inputs and outputs that are not those of the node."""
    types = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL, TensorProto.DOUBLE)
    for field in ("input", "output"):
        for k, info in enumerate(getattr(model.graph, field)):
            tensor = info.type.tensor_type
            if info.type.WhichOneof("value") != "tensor_type":
                continue
            for elem in types:
                if elem != tensor.elem_type:
                    made = _copy(model)
                    getattr(made.graph, field)[k].type.tensor_type.elem_type = elem
                    yield f"{field} {k} of type {elem}", made
            for change, dims in _shapes([d.dim_value for d in tensor.shape.dim]):
                made = _copy(model)
                new = helper.make_tensor_type_proto(tensor.elem_type, dims)
                getattr(made.graph, field)[k].type.CopyFrom(new)
                yield f"{field} {k} {change}", made


def _shapes(dims: list[int]) -> Iterator[tuple[str, list[int]]]:
    yield "of a higher rank", [*dims, 3]
    if dims:
        yield "of a lower rank", dims[:-1]
        yield "with another first size", [dims[0] + 5, *dims[1:]]
        yield "with another last size", [*dims[:-1], dims[-1] + 3]


def headers(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Versions from the future, from before, absent or given twice."""
    for name, change in (
        ("no IR version", lambda m: m.ClearField("ir_version")),
        ("IR version of the future", lambda m: setattr(m, "ir_version", 9999)),
        ("IR version 0", lambda m: setattr(m, "ir_version", 0)),
        ("negative IR version", lambda m: setattr(m, "ir_version", -1)),
        ("no opset", lambda m: m.ClearField("opset_import")),
        ("opset of the future", lambda m: setattr(m.opset_import[0], "version", 9999)),
        ("opset 0", lambda m: setattr(m.opset_import[0], "version", 0)),
        ("opset without version", lambda m: m.opset_import[0].ClearField("version")),
        ("opset twice", lambda m: m.opset_import.append(helper.make_opsetid("", 3))),
        ("opset twice, alike", lambda m: m.opset_import.append(m.opset_import[0])),
        ("unknown domain", lambda m: setattr(m.graph.node[0], "domain", "nobody.knows")),
        ("graph without name", lambda m: m.graph.ClearField("name")),
        ("op without name", lambda m: setattr(m.graph.node[0], "op_type", "")),
        ("output twice", lambda m: m.graph.output.append(m.graph.output[0])),
        ("input twice", lambda m: m.graph.input.extend(m.graph.input[:1])),
        ("input without type", lambda m: m.graph.input and m.graph.input[0].ClearField("type")),
        ("output without type", lambda m: m.graph.output[0].ClearField("type")),
    ):
        made = _copy(model)
        change(made)  # type: ignore[no-untyped-call]
        yield name, made


def structure(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Attributes without a type; inputs with an initializer of another type or shape, or with values in two fields."""
    for i, j, attribute in _attributes(model):
        made = _copy(model)
        made.graph.node[i].attribute[j].ClearField("type")
        yield f"{attribute.name} without a type", made
    for info in model.graph.input:
        tensor = info.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type != TensorProto.FLOAT or not all(dims):
            continue
        ones = np.ones(dims, np.float32)
        for what, array in (
            ("f64", ones.astype(np.float64)),
            ("i64", ones.astype(np.int64)),
            ("other shape", ones[None]),
        ):
            made = _copy(model)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
            yield f"initializer of {what}", made
        made = _copy(model)
        made.graph.initializer.append(onnx.numpy_helper.from_array(ones, info.name))
        made.graph.initializer[-1].float_data.extend(ones.reshape(-1).tolist())
        yield "initializer with values twice", made


def baked(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """`model` with its small operands of integers, and its scalars, in the file: shapes, axes, indices, counts."""
    made = _copy(model)
    for info in model.graph.input:
        array = feeds.get(info.name)
        most = {"i": SMALL, "f": 1}.get(array.dtype.kind, -1) if array is not None else -1
        if array is not None and array.size <= most:
            made.graph.input.remove(info)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    return made


def constants(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Each small constant with values at and beyond the ends of its range, repeated values, and in other shapes."""
    for k, tensor in enumerate(model.graph.initializer):
        have = onnx.numpy_helper.to_array(tensor)
        if have.dtype.kind not in "if" or not 0 < have.size <= SMALL:
            continue
        flat = have.reshape(-1)
        changed = [have[None], np.zeros(0, have.dtype), np.concatenate([flat, flat[:1]]), flat[:-1]]
        changed += [np.full_like(have, flat[0])] if flat.size > 1 else []
        values = FAR if have.dtype.kind == "i" else (float("nan"), float("inf"), -1.0, 0.0)
        for at in {0, flat.size - 1}:
            for value in values:
                if have.dtype.kind == "f" or np.iinfo(have.dtype).min <= value <= np.iinfo(have.dtype).max:
                    other = flat.copy()
                    other[at] = value
                    changed.append(other.reshape(have.shape))
        for array in changed:
            made = _copy(model)
            made.graph.initializer[k].CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            yield f"{tensor.name} = {str(array.tolist())[:40]}", made


def stored_values(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Each constant with too few or too many bytes, in the list of another type, or of a type that is not known."""
    for k, tensor in enumerate(model.graph.initializer):
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        for what, change in (
            ("a byte less", lambda t, d=data: setattr(t, "raw_data", d[:-1])),
            ("a byte more", lambda t, d=data: setattr(t, "raw_data", d + b"\0")),
            ("no data", lambda t: t.ClearField("raw_data")),
            ("strings", lambda t: (t.ClearField("raw_data"), t.string_data.append(b"a"))),
            ("a negative size", lambda t: t.dims.append(-1)),
            ("a size of 2^62", lambda t: t.dims.append(1 << 62)),
            ("type 99", lambda t: setattr(t, "data_type", 99)),
            ("no name", lambda t: t.ClearField("name")),
        ):
            made = _copy(model)
            made.graph.initializer[k].CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
            )
            change(made.graph.initializer[k])
            yield f"{tensor.name} with {what}", made
        made = _copy(model)
        made.graph.initializer.append(tensor)
        yield f"{tensor.name} twice", made


def scopes(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Names that are defined twice, in one graph or in a graph inside it, cycles, and names that nothing defines."""
    for i, node in enumerate(model.graph.node):
        if not node.output or not node.output[0] or not node.input or not node.input[0]:
            continue
        made = _copy(model)
        made.graph.node.append(node)
        yield "node twice", made
        made = _copy(model)
        made.graph.node[i].input[0] = node.output[0]
        yield "reads itself", made
        made = _copy(model)
        made.graph.node[i].input[0] = "nothing_defines_this"
        yield "undefined name", made
        for name, inner in (("outer name", node.input[0]), ("own name twice", "inner")):
            made = _copy(model)
            bodies = []
            for branch in ("then_branch", "else_branch"):
                ops = [helper.make_node("Identity", [node.input[0]], [inner])] * (1 + (name == "own name twice"))
                bodies.append(
                    (branch, helper.make_graph(ops, branch, [], [helper.make_empty_tensor_value_info(inner)]))
                )
            condition = onnx.numpy_helper.from_array(np.array(True), "condition")
            made.graph.initializer.append(condition)
            made.graph.node.insert(i, helper.make_node("If", ["condition"], ["unread"], **dict(bodies)))
            yield f"{name} in a branch", made


MUTATIONS: Mapping[str, Mutation] = {
    "missing attribute": without_attributes,
    "kind of attribute": other_kinds,
    "value of attribute": other_values,
    "unknown attribute": unknown_attributes,
    "operands": operands,
    "declarations": declarations,
    "headers": headers,
    "structure": structure,
    "constants": constants,
    "stored values": stored_values,
    "scopes": scopes,
}


def refused_by_others(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray] | None = None) -> str:
    """Who refuses a model, and why; "" when nobody does. With `feeds`, ONNX Runtime has to run it too."""
    import onnxruntime

    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return f"onnx: {_line(error)}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        if feeds is not None:
            session.run(None, dict(feeds))
    except Exception as error:
        unknown = any(t in str(error) for t in ("NOT_IMPLEMENTED", "is not a registered", "are not supported"))
        values = any(t in str(error) for t in ("out of data bounds", "gather_elements.cc"))  # of the inputs
        return "" if unknown or values else f"onnxruntime: {_line(error)}"
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

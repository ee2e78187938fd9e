"""The model as the oracle needs it: the same nodes, with chosen inner tensors among the outputs.

Invariant: only the list of graph outputs changes, and external data are still found in the model's own folder.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from ppuc.ir.errors import ModelError


def node_outputs(source: str | Path | onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Node name (`OpType_<index>` for an unnamed one) -> names of the tensors it defines, in the model's order."""
    nodes = _model(source).graph.node
    return {n.name or f"{n.op_type}_{i}": tuple(o for o in n.output if o) for i, n in enumerate(nodes)}


def with_outputs(source: str | Path | onnx.ModelProto, names: tuple[str, ...]) -> bytes:
    """The serialised model with tensors `names` appended to its outputs. Raises ModelError for a model too large for
    one message (2 GB of embedded weights)."""
    model = _model(source)
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        return bytes(model.SerializeToString())
    except ValueError as error:
        raise ModelError.of(
            str(source) if isinstance(source, str | Path) else model.graph.name,
            "is too large to compare layer by layer",
            got=str(error),
            expected="less than 2 GB of weights inside the file",
            hint="save the model with external data",
        ) from error


def _model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed; external data stay where they are."""
    if isinstance(source, str | Path):
        return onnx.load(source, load_external_data=False)
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    return copy


def whole_bytes(source: str | Path | onnx.ModelProto) -> bytes:
    """The model with all its weights in one message."""
    if isinstance(source, str | Path):
        return bytes(onnx.load(source).SerializeToString())
    return serialised(source)


def serialised(model: onnx.ModelProto) -> bytes:
    """A model in memory as the bytes of a file."""
    return bytes(model.SerializeToString())

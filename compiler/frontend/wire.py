"""Reads the wire format of an ONNX file without its weights.

A protobuf parser copies every byte of a model. `split` walks the wire format instead (model -> graph -> initializers)
and returns the model without the bytes of its large initializers, and their ranges in the file.

Invariant: the skeleton parses to the same ModelProto as the file does, except for `raw_data` of the tensors in
`ranges`.
Wire format: https://protobuf.dev/programming-guides/encoding/; field numbers: onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GRAPH = 7  # ModelProto.graph
INITIALIZER = 5  # GraphProto.initializer
NAME, RAW_DATA = 8, 9  # TensorProto.name, TensorProto.raw_data
MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
LARGE_BYTES = 4096
"""Initializers below this size stay in the skeleton."""


class WireError(ValueError):
    """The bytes are not a model. `truncated` if they are a prefix of one."""

    def __init__(self, truncated: bool) -> None:
        super().__init__("truncated" if truncated else "not a model")
        self.truncated = truncated


@dataclass(frozen=True, slots=True)
class Field:
    """A field at `[begin, stop)`, its payload at `[start, stop)`."""

    number: int
    wire_type: int
    begin: int
    start: int
    stop: int


def split(data: memoryview) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The model without large initializers, and the `(offset, length)` in `data` of their raw bytes, by name. Raises
    WireError."""
    ranges: dict[str, tuple[int, int]] = {}
    out = bytearray()
    for field in _fields(data, 0, len(data)):
        if field.number not in MODEL_FIELDS:
            raise WireError(truncated=False)
        if field.number == GRAPH and field.wire_type == 2:
            _append(out, GRAPH, _graph_skeleton(data, field, ranges))
        else:
            out += data[field.begin : field.stop]
    return bytes(out), ranges


def _graph_skeleton(data: memoryview, graph: Field, ranges: dict[str, tuple[int, int]]) -> bytearray:
    out = bytearray()
    for field in _fields(data, graph.start, graph.stop):
        if field.number == INITIALIZER and field.wire_type == 2 and field.stop - field.start >= LARGE_BYTES:
            _append(out, INITIALIZER, _tensor_skeleton(data, field, ranges))
        else:
            out += data[field.begin : field.stop]
    return out


def _tensor_skeleton(data: memoryview, tensor: Field, ranges: dict[str, tuple[int, int]]) -> bytearray:
    out = bytearray()
    name, raw = "", None
    for field in _fields(data, tensor.start, tensor.stop):
        if field.number == RAW_DATA and field.wire_type == 2 and field.stop - field.start >= LARGE_BYTES:
            raw = (field.start, field.stop - field.start)
            continue
        if field.number == NAME and field.wire_type == 2:
            name = bytes(data[field.start : field.stop]).decode(errors="replace")
        out += data[field.begin : field.stop]
    if raw is not None:
        ranges[name] = raw
    return out


def _append(out: bytearray, number: int, payload: bytearray) -> None:
    """Append a length-delimited field."""
    out.append(number << 3 | 2)
    length = len(payload)
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    out += payload


def _fields(data: memoryview, begin: int, end: int) -> Iterator[Field]:
    while begin < end:
        tag, start = _varint(data, begin, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, stop = _varint(data, start, end)
        elif wire_type == 2:
            length, start = _varint(data, start, end)
            stop = start + length
        elif wire_type in (1, 5):
            stop = start + (8 if wire_type == 1 else 4)
        else:
            raise WireError(truncated=False)
        if stop > end:
            raise WireError(truncated=end == len(data) and number in MODEL_FIELDS)
        yield Field(number, wire_type, begin, start, stop)
        begin = stop


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(truncated=at >= len(data))

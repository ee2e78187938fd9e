"""ONNX tensors as Resources: bytes stay in their file until needed.

Invariants: a Resource has exactly the bytes of its type, which is checked before anything is read. External data
outside the model's folder is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ppuc.compiler.frontend.place import Place, tensor_place
from ppuc.compiler.frontend.source import Source
from ppuc.ir.errors import Entity, EntityKind
from ppuc.ir.resource import FileRange, Resource
from ppuc.ir.types import DType, TensorType

ONNX_DTYPES: dict[int, DType] = {
    TensorProto.FLOAT: DType.F32,
    TensorProto.DOUBLE: DType.F64,
    TensorProto.FLOAT16: DType.F16,
    TensorProto.BFLOAT16: DType.BF16,
    TensorProto.FLOAT8E4M3FN: DType.F8E4M3,
    TensorProto.FLOAT8E5M2: DType.F8E5M2,
    TensorProto.FLOAT8E8M0: DType.F8E8M0,
    TensorProto.FLOAT4E2M1: DType.F4E2M1,
    TensorProto.INT64: DType.I64,
    TensorProto.INT32: DType.I32,
    TensorProto.INT16: DType.I16,
    TensorProto.INT8: DType.I8,
    TensorProto.UINT64: DType.U64,
    TensorProto.UINT32: DType.U32,
    TensorProto.UINT16: DType.U16,
    TensorProto.UINT8: DType.U8,
    TensorProto.BOOL: DType.BOOL,
}
_ONNX = {dtype: number for number, dtype in ONNX_DTYPES.items()}
_PACKED: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
}
"""Integers below a byte and their ranges: they are unpacked to i8 or u8."""
_BITS: dict[int, int] = {
    TensorProto.FLOAT4E2M1: 4,
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
"""Bits of the element types below a byte."""
_EXTERNAL_KEYS = ("location", "offset", "length", "checksum", "basepath")


class PackedResource(Resource):
    """Sub-byte integers that the file packs, unpacked; `range` is that of the packed type."""

    __slots__ = ("range",)

    def __init__(self, type: TensorType, array: np.ndarray, name: str, range: tuple[int, int]) -> None:
        super().__init__(type, array=array, name=name)
        self.range = range


def packed_range(elem_type: int) -> tuple[int, int] | None:
    """The range of an ONNX integer type below a byte; None for other types."""
    return _PACKED.get(elem_type)


def foreign(elem_type: int) -> bool:
    """Whether the PPU lacks the element type, even unpacked: strings, complex numbers and the like."""
    return elem_type not in ONNX_DTYPES and elem_type not in _PACKED


def dtype_of(elem_type: int, place: Place) -> DType:
    """The DType of an ONNX element type. Raises ModelError for strings, complex numbers and the like."""
    dtype = ONNX_DTYPES.get(elem_type)
    if dtype is None:
        known = elem_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(elem_type).lower() if known else f"number {elem_type}"
        raise place.error(f"element type {name} is not supported", about=(Entity(EntityKind.TYPE, name),))
    return dtype


def onnx_dtype(dtype: DType) -> int:
    """The ONNX element type of a DType."""
    return _ONNX[dtype]


_LISTS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
"""Fields of TensorProto that hold values one by one."""


def read_tensor(tensor: TensorProto, source: Source, of_model: bool = False) -> Resource:
    """The Resource of an initializer or of a tensor attribute; `of_model` for initializers of the main graph, whose
    bytes may still be in the file. Raises ModelError if its type is unsupported or its bytes are missing, misplaced or
    of the wrong number."""
    place = tensor_place(source.where, tensor.name)
    if any(d < 0 for d in tensor.dims):
        raise place.error("a dimension is negative", got=list(tensor.dims))
    if tensor.HasField("segment"):
        raise place.error("tensors that are split into segments are not supported")
    filled = [f for f in _LISTS if len(getattr(tensor, f))]
    filled += ["raw_data"] if tensor.HasField("raw_data") or (of_model and tensor.name in source.ranges) else []
    if len(filled) > 1:
        raise place.error("it holds its values twice", got=" and ".join(filled), expected="one field")
    if tensor.data_type in _PACKED:
        return _unpacked(tensor, source, of_model, place)
    type = TensorType(dtype_of(tensor.data_type, place), tuple(tensor.dims))
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, type, source, place)
    if of_model and tensor.name in source.ranges and not tensor.HasField("raw_data") and source.path is not None:
        offset, length = source.ranges[tensor.name]
        _check_size(type, length, place)
        return _in_file(tensor.name, type, FileRange(source.path.resolve(), offset, length))
    if not tensor.HasField("raw_data") or type.dtype.bits < 8:
        return _listed(tensor, type, place)
    data = tensor.raw_data
    _check_size(type, len(data), place)
    if type.dtype is DType.BOOL and data and max(data) > 1:
        raise place.error("a number does not fit element type bool", got=max(data), expected="0 to 1")
    return Resource(type, array=np.frombuffer(data, type.dtype.numpy).reshape(type.dims), name=tensor.name)


def _check_size(type: TensorType, length: int, place: Place) -> None:
    if length != type.bytes:
        raise place.error("the data do not fit the shape", got=f"{length} bytes", expected=_expected(type))


def _expected(type: TensorType) -> str:
    return f"{type.bytes} bytes for {type}"


def _listed(tensor: TensorProto, type: TensorType, place: Place) -> Resource:
    """Values in typed lists (float_data and so on), or packed below a byte: a copy, made now."""
    _check_list(tensor, type, place)
    try:
        array = numpy_helper.to_array(tensor).astype(type.dtype.numpy, copy=False).reshape(type.dims)
    except (ValueError, TypeError) as error:
        raise place.error("the data do not fit the shape", got=error, expected=_expected(type)) from None
    return Resource(type, array=array, name=tensor.name)


def _check_list(tensor: TensorProto, type: TensorType, place: Place) -> None:
    """Check that packed elements fill their bytes, and that numbers in int32_data are of the type, or its bits."""
    stored = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits = _BITS.get(tensor.data_type, 8 * stored.itemsize)
    if bits < 8:
        units = -(-type.elements * bits // 8)
        got = len(tensor.raw_data) if tensor.HasField("raw_data") else len(tensor.int32_data)
        if got != units:
            raise place.error("the data do not fit the shape", got=f"{got} bytes", expected=f"{units} bytes for {type}")
    if tensor.data_type == TensorProto.UINT32 and tensor.uint64_data and max(tensor.uint64_data) >> 32:
        got, expected = max(tensor.uint64_data), f"0 to {(1 << 32) - 1}"
        raise place.error(f"a number does not fit element type {type.dtype}", got=got, expected=expected)
    if not tensor.int32_data or bits >= 32:
        return
    signed = stored.kind == "i" and bits >= 8
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << max(bits, 8)) - 1)
    high = 1 if stored.kind == "b" else high
    least, most = min(tensor.int32_data), max(tensor.int32_data)
    if least < low or most > high:
        got = least if least < low else most
        raise place.error(f"a number does not fit element type {type.dtype}", got=got, expected=f"{low} to {high}")


def _unpacked(tensor: TensorProto, source: Source, of_model: bool, place: Place) -> Resource:
    """Unpack to one byte per element."""
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor = _loaded(tensor, _external_range(tensor, _packed_bytes(tensor), source, place))
    elif of_model and source.path is not None and tensor.name in source.ranges:
        tensor = _loaded(tensor, FileRange(source.path, *source.ranges[tensor.name]))
    low, high = _PACKED[tensor.data_type]
    type = TensorType(DType.I8 if low < 0 else DType.U8, tuple(tensor.dims))
    return PackedResource(type, _listed(tensor, type, place).array(), tensor.name, (low, high))


def _packed_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor of elements below a byte."""
    bits: int = math.prod(tensor.dims) * _BITS[tensor.data_type]
    return -(-bits // 8)


def _loaded(tensor: TensorProto, file: FileRange) -> TensorProto:
    """A copy of a tensor with its bytes from a file."""
    whole = TensorProto()
    whole.CopyFrom(tensor)
    whole.ClearField("data_location")
    data = np.memmap(file.path, np.uint8, "r", file.offset, (file.length,)) if file.length else np.empty(0, np.uint8)
    whole.raw_data = data.tobytes()
    return whole


def _in_file(name: str, type: TensorType, file: FileRange) -> Resource:
    """Weights inside the model file: mapped on first read, and keyed by their content."""
    return Resource(type, loader=lambda: _mapped(type, file), name=name)


def _mapped(type: TensorType, file: FileRange) -> np.ndarray:
    """A read-only view of the file; a copy if elements are unaligned, because numpy and BLAS require alignment."""
    flat = np.asarray(np.memmap(file.path, np.uint8, "r", file.offset, (file.length,)))
    if file.offset % type.dtype.bytes:
        flat = flat.copy()
    return flat.view(type.dtype.numpy).reshape(type.dims)


def _external(tensor: TensorProto, type: TensorType, source: Source, place: Place) -> Resource:
    if source.absent is not None and (location := _absent(tensor, source, place)):
        source.absent.add(location)
        key = f"zeros in place of {tensor.name}"
        return Resource(type, loader=lambda: np.zeros(type.dims, type.dtype.numpy), name=tensor.name, key=key)
    if type.dtype.bits < 8:
        return _listed(_loaded(tensor, _external_range(tensor, _packed_bytes(tensor), source, place)), type, place)
    file = _external_range(tensor, type.bytes, source, place, type)
    if file.length == 0:
        return Resource(type, array=np.empty(type.dims, type.dtype.numpy), name=tensor.name)
    if file.offset % type.dtype.bytes:
        return _in_file(tensor.name, type, file)
    return Resource(type, file=file, name=tensor.name)


def _external_range(
    tensor: TensorProto, size: int, source: Source, place: Place, type: TensorType | None = None
) -> FileRange:
    """Where the `size` bytes of a tensor lie."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = [key for key in entries if key not in _EXTERNAL_KEYS and not key.startswith("prepacked")]
    if unknown:
        raise place.error("its external data have an unknown entry", got=unknown[0], expected=", ".join(_EXTERNAL_KEYS))
    path = _external_path(entries.get("location", ""), source, place)
    try:
        offset, length = _whole(entries.get("offset", "0")), _whole(entries.get("length", str(size)))
    except ValueError:
        got = ", ".join(f"{key} {entries[key]}" for key in ("offset", "length") if key in entries)
        raise place.error("offset and length of external data must be whole numbers", got=got) from None
    if length != size:
        expected = _expected(type) if type is not None else f"{size} bytes"
        raise place.error("the data do not fit the shape", got=f"{length} bytes", expected=expected)
    _check_sum(path, entries.get("checksum", ""), place)
    there = path.stat().st_size
    if offset + length > there:
        raise place.error(
            f"external data file '{entries['location']}' is too short",
            got=f"{there} bytes",
            expected=f"at least {offset + length}",
            hint="copy or download the file that belongs to this model again",
        )
    return FileRange(path, offset, length)


def _check_sum(path: Path, expected: str, place: Place) -> None:
    """Check the SHA1 digest of a whole file of external data, if the model gives one."""
    if not expected:
        return
    status = path.stat()
    got = _sha1(path, status.st_size, status.st_mtime_ns)
    if got != expected.lower():
        raise place.error(
            f"external data file '{path.name}' is damaged, or of another model",
            got=f"SHA1 {got}",
            expected=f"SHA1 {expected}",
            hint="copy or download the file that belongs to this model again",
        )


@lru_cache(maxsize=64)
def _sha1(path: Path, size: int, modified: int) -> str:
    """Of a file that has not changed since; tensors share files."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


def _whole(text: str) -> int:
    """A number in decimal digits. Raises ValueError."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _absent(tensor: TensorProto, source: Source, place: Place) -> str:
    """The name of the file that holds a tensor, if it should lie in the model's folder and does not; else ""."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return "" if os.path.isfile(_external_place(location, source, place)) else location


def _external_path(location: str, source: Source, place: Place) -> Path:
    """The file of external data: a regular file inside the model's folder after following links."""
    path = _external_place(location, source, place)
    if not os.path.isfile(path):
        raise place.error(
            f"external data file '{location}' is missing",
            expected=f"it beside {source.path}",
            hint="copy it together with the .onnx file",
        )
    return path


def _external_place(location: str, source: Source, place: Place) -> Path:
    """Where a file of external data should be. Raises the error of a place outside the model's folder."""
    if source.folder is None:
        raise place.error(
            "its data are in another file, but the model was given in memory",
            got=location,
            hint="pass the path of the model, or load it with onnx.load(path, load_external_data=True)",
        )
    folder = source.folder.resolve()
    path = folder if "\0" in location else (folder / location).resolve()
    written = Path(location)
    if path == folder or not path.is_relative_to(folder) or ".." in written.parts or written.is_absolute():
        raise place.error(
            "external data must lie inside the model's folder",
            got=repr(location),
            expected=f"a path below {source.folder}",
        )
    if os.path.isfile(path) and path.stat().st_nlink > 1:
        raise place.error(
            "external data must lie inside the model's folder",
            got=f"'{location}', which has other names elsewhere (hard links)",
            expected="a file of its own",
            hint=f"replace it by a copy: cp {location} copy && mv copy {location}",
        )
    return path


def proto_type(type: TensorType) -> onnx.TypeProto:
    """The ONNX form of a tensor type."""
    return onnx.helper.make_tensor_type_proto(onnx_dtype(type.dtype), type.dims)


def type_text(type: onnx.TypeProto | None) -> str:
    """A readable type: `string[2, ?]`, `seq(f32[...])`."""
    kind = type.WhichOneof("value") if type is not None else None
    if type is None or kind is None:
        return "unknown"
    if kind == "tensor_type":
        tensor = type.tensor_type
        dtype = ONNX_DTYPES.get(tensor.elem_type)
        known = tensor.elem_type in TensorProto.DataType.values()
        other = TensorProto.DataType.Name(tensor.elem_type).lower() if known else f"type {tensor.elem_type}"
        name = str(dtype) if dtype is not None else other
        if not tensor.HasField("shape"):
            return f"{name}[...]"
        dims = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
        return f"{name}[{', '.join(dims)}]"
    if kind in ("sequence_type", "optional_type"):
        short = {"sequence_type": "seq", "optional_type": "optional"}[kind]
        return f"{short}({type_text(getattr(type, kind).elem_type)})"
    return str(kind).removesuffix("_type")

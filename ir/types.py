"""Element types, tensor types and memory spaces, shared by all three levels.

Invariant: a DType is one of a closed set; two tensor types are equal exactly when they print the same.
"""

from __future__ import annotations

import enum
import functools
import math
import re
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

Dim = int | str
"""A tensor dimension: a size, or the name of an unbound symbol."""


class DType(enum.Enum):
    """Element type. The value is its name in text; `bits` is its storage width."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    F8E4M3 = "f8e4m3"
    F8E5M2 = "f8e5m2"
    F8E8M0 = "f8e8m0"
    F4E2M1 = "f4e2m1"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U64 = "u64"
    U32 = "u32"
    U16 = "u16"
    U8 = "u8"
    BOOL = "bool"

    def __str__(self) -> str:
        return str(self._value_)  # not `value`, a slow property, here and below: tile search asks a million times

    def __hash__(self) -> int:
        return hash(self._value_)

    @functools.cached_property
    def bits(self) -> int:
        """Width of one stored element in bits (bool is stored as a byte)."""
        return 8 if self is DType.BOOL else 4 if self is DType.F4E2M1 else self.numpy.itemsize * 8

    @functools.cached_property
    def bytes(self) -> int:
        """Width of one stored element in whole bytes (f4e2m1 takes a byte per element until packed)."""
        return self.numpy.itemsize

    @functools.cached_property
    def numpy(self) -> np.dtype:
        """The numpy (or ml_dtypes) dtype that holds one element."""
        return _NUMPY[self._value_]

    @property
    def is_float(self) -> bool:
        return self._value_[0] == "f" or self._value_[0:2] == "bf"

    @property
    def is_integer(self) -> bool:
        return self._value_[0] in "iu"

    @property
    def is_signed(self) -> bool:
        """Whether it can represent negative numbers."""
        return self.is_float or self._value_[0] == "i"

    @staticmethod
    def of(dtype: DTypeLike) -> DType:
        """The DType of a numpy dtype. Raises KeyError for an unsupported one."""
        return _FROM_NUMPY[np.dtype(dtype)]


_NUMPY: dict[str, np.dtype] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u64": np.dtype(np.uint64),
    "u32": np.dtype(np.uint32),
    "u16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_FROM_NUMPY = {dtype: DType(name) for name, dtype in _NUMPY.items()}


class Space(enum.Enum):
    """A memory. `host`, `hbm` and `l2` exist once per chip, `l1` and `acc` once per compute unit."""

    HOST = "host"
    HBM = "hbm"
    L2 = "l2"
    L1 = "l1"
    ACC = "acc"

    def __str__(self) -> str:
        return self.value

    def __hash__(self) -> int:
        return hash(self._value_)


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; prints as `f32[1, 784]`."""

    dtype: DType
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        for d in self.shape:  # noqa: SIM110 - a generator takes three times as long for a handful of sizes
            if not isinstance(d, int):
                return False
        return True

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as ints. Raises ValueError if a dimension is an unbound symbol."""
        for d in self.shape:
            if not isinstance(d, int):
                raise ValueError(f"shape {self} has unbound symbols")
        return self.shape  # type: ignore[return-value]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)


_TYPE = re.compile(r"\s*([a-z0-9]+)\s*\[([^\]]*)\]\s*")


@functools.lru_cache(maxsize=4096)
def parse_type(text: str) -> TensorType:
    """Parse `f32[1, 784]`. Raises ValueError with the reason."""
    match = _TYPE.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a tensor type")
    try:
        dtype = DType(match[1])
    except ValueError:
        raise ValueError(f"unknown element type '{match[1]}'") from None
    dims = [d.strip() for d in match[2].split(",")] if match[2].strip() else []
    return TensorType(dtype, tuple(int(d) if d.lstrip("-").isdigit() else d for d in dims))


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The numpy broadcast of static shapes. Raises ValueError naming both shapes if they do not broadcast."""
    rank = max((len(s) for s in shapes), default=0)
    out = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape, rank - len(shape)):
            if size != 1 and out[i] not in (1, size):
                raise ValueError(f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast")
            if size != 1:
                out[i] = size
    return tuple(out)

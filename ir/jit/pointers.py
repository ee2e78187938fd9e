"""Memory by address, for compiled functions: numbers of 1 to 8 bytes, and runs of bytes.

Loops that walk many arrays of different sizes get their addresses as numbers: numba would compile a function again for
each type of array, and cannot hold a list of them.

Invariant: nothing is checked. Callers keep the arrays alive and the addresses within them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


def _reader(kind: str) -> Callable[[int, int], Any]:
    @intrinsic
    def read(typing: Any, address: Any, offset: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_pointer(context, builder, kind, *args), align=1)

        return getattr(types, kind)(types.int64, types.int64), code

    return cast(Callable[[int, int], Any], read)


def _writer(kind: str) -> Callable[[int, int, Any], None]:
    @intrinsic
    def write(typing: Any, address: Any, offset: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[2], _pointer(context, builder, kind, *args[:2]), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, getattr(types, kind)), code

    return cast(Callable[[int, int, Any], None], write)


def _pointer(context: Any, builder: Any, kind: str, address: Any, offset: Any) -> Any:
    """A pointer to a number. The offset is added to a pointer, not to the address: a loop over offsets can then be
    vectorised."""
    base = builder.inttoptr(address, ir.IntType(8).as_pointer())
    to: Any = context.get_data_type(getattr(types, kind)).as_pointer()
    return builder.bitcast(builder.gep(base, [offset]), to)


_BITS = ("uint8", "uint16", "uint32", "uint64")

read_1, read_2, read_4, read_8 = map(_reader, _BITS)
"""The unsigned number of so many bytes at an address and an offset in bytes."""

write_1, write_2, write_4, write_8 = map(_writer, _BITS)
"""Store the lowest bytes of a number at an address and an offset in bytes."""

read_long, read_float, write_float = _reader("int64"), _reader("float32"), _writer("float32")
"""The same for i64 and f32."""


@intrinsic
def _move(typing: Any, to: Any, origin: Any, size: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        copy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, ir.IntType(64)])
        ends = [builder.inttoptr(address, pointer) for address in args[:2]]
        builder.call(copy, [*ends, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


move = cast(Callable[[int, int, int], None], _move)
"""Copy bytes to one address from another, so many; the two ranges do not overlap."""


def address_of(array: np.ndarray) -> int:
    """The address of an array's first element."""
    return int(array.__array_interface__["data"][0])

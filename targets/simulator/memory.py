"""The memories of a simulated chip, as bytes.

Tensors in l2 and hbm live at their addresses in one arena per memory, so that overlapping tensors really share bytes.
Constants in hbm or on the host are separate read-only arrays: nothing writes them, and files are mapped, not copied.

Invariant: unwritten bytes are 0xFF (a NaN in every float format), so reading them shows in the results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ppuc.ir.errors import InputError, InternalError
from ppuc.ir.jit.pointers import address_of
from ppuc.ir.numerics import bits_dtype
from ppuc.ir.program import MemTensor, Program, Ring
from ppuc.ir.resource import Resource
from ppuc.ir.types import Space

FRESH = 0xFF


class ChipMemory:
    """Host, hbm and l2 contents of one run."""

    def __init__(
        self,
        program: Program,
        constants: Mapping[str, Resource],
        inputs: Mapping[str, np.ndarray],
        late: bool = False,
    ) -> None:
        """With `late`, inputs may be missing; `write` must provide them in time."""
        self._tensors = {t.name: t for t in program.tensors}
        self._flat: dict[str, np.ndarray] = {}
        for space in (Space.HOST, Space.HBM, Space.L2):
            self._place([t for t in program.tensors if t.space is space], constants)
        for tensor in program.tensors:
            if tensor.role == "input" and not (late and tensor.name not in inputs):
                self._flat[tensor.name][:] = _input_bytes(tensor, inputs)

    def write(self, name: str, array: np.ndarray) -> None:
        """Set the values of a tensor (of its dtype and size). Raises InputError."""
        self._flat[name][:] = _input_bytes(self._tensors[name], {name: array})

    def _place(self, tensors: Sequence[MemTensor], constants: Mapping[str, Resource]) -> None:
        own = [t for t in tensors if t.role == "const" and t.space is not Space.L2]
        for tensor in own:
            self._flat[tensor.name] = _constant_bytes(tensor, constants)
        shared = [t for t in tensors if t not in own]
        if not shared:
            return
        first = min(t.address for t in shared) // 64 * 64
        arena = np.full(max(t.address + t.bytes for t in shared) - first, FRESH, np.uint8)
        for tensor in shared:
            start = tensor.address - first
            self._flat[tensor.name] = arena[start : start + tensor.bytes]

    def bytes_of(self, name: str) -> np.ndarray:
        """The bytes of a tensor, as a view."""
        return self._flat[name]

    def element_bytes(self, name: str) -> int:
        """Bytes of one element of a tensor."""
        return self._tensors[name].dtype.bytes

    def values_of(self, name: str) -> np.ndarray:
        """A copy of a tensor's elements, flat, of its dtype."""
        return self._flat[name].copy().view(self._tensors[name].dtype.numpy)


def _constant_bytes(tensor: MemTensor, constants: Mapping[str, Resource]) -> np.ndarray:
    if tensor.name not in constants:
        raise InternalError(f"no value for constant '{tensor.name}': a run with values needs all of them")
    data = np.ascontiguousarray(constants[tensor.name].array()).reshape(-1).view(np.uint8)
    if data.size != tensor.bytes:
        raise InternalError(f"constant '{tensor.name}' has {data.size} bytes where {tensor.bytes} are placed")
    return data


def _input_bytes(tensor: MemTensor, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    where = f"input '{tensor.source}'"
    if tensor.name not in inputs:
        raise InputError.of(where, "has no value")
    array = np.ascontiguousarray(inputs[tensor.name])
    if array.dtype != tensor.dtype.numpy or array.size != tensor.elements:
        expected = f"{tensor.elements} elements of {tensor.dtype}"
        raise InputError.of(where, "does not fit", got=f"{array.size} elements of {array.dtype}", expected=expected)
    return array.reshape(-1).view(np.uint8)


class UnitMemory:
    """l1 and acc of every unit."""

    def __init__(self, rings: Sequence[Ring], units: int) -> None:
        self._rings = rings
        self._arena: dict[Space, np.ndarray] = {}
        for space in (Space.L1, Space.ACC):
            used = max((r.base + r.depth * r.slot_bytes for r in rings if r.space is space), default=0)
            self._arena[space] = np.full((units, used), FRESH, np.uint8)

    def slot(self, unit: int, ring: int, slot: int) -> np.ndarray:
        """The storage bits of a ring slot, in the ring's shape."""
        r = self._rings[ring]
        return np.ndarray(r.shape, self.bits(ring), self._arena[r.space][unit], r.base + slot * r.slot_bytes)

    def bits(self, ring: int) -> np.dtype:
        """The dtype of a ring's storage bits."""
        return bits_dtype(self._rings[ring].dtype)

    def tile_bytes(self, ring: int) -> int:
        """Bytes of a tile in a ring, without padding."""
        r = self._rings[ring]
        return math.prod(r.shape) * r.dtype.bytes

    def addresses(self, ring: int) -> tuple[int, int, int]:
        """The address of a ring's first slot in unit 0, and the bytes from unit to unit and from slot to slot."""
        r = self._rings[ring]
        arena = self._arena[r.space]
        return address_of(arena) + r.base, arena.strides[0], r.slot_bytes

    def in_acc(self, ring: int) -> bool:
        """Whether a ring lies in acc."""
        return self._rings[ring].space is Space.ACC

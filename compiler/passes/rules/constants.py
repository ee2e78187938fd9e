"""Constants computed from constants: small ones eagerly, large ones when their bytes are needed.

Invariant: the key of a Derived resource depends on how it is computed (op, attributes, keys of its inputs), so two
compilations of one model agree on it without computing the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppuc.ir.graph import Attrs, Op
from ppuc.ir.ops import OPS
from ppuc.ir.ops.base import Kind
from ppuc.ir.resource import Resource
from ppuc.ir.types import TensorType

EAGER_BYTES = 64 << 10
"""Results up to this size are computed while folding."""
_EAGER_INPUT_BYTES = 4 << 20
_GROWTH = 4
"""The program computes a result that is larger than EAGER_BYTES and this many times larger than its inputs."""


class Derived(Resource):
    """The result of one op on other resources, computed on first use."""

    __slots__ = ("_inputs", "_op")

    def __init__(self, op: Op, inputs: Sequence[Resource], name: str = "") -> None:
        super().__init__(op.result.type, loader=self._evaluate, name=name)
        self._op = (op.name, op.attrs, op.result.type)
        self._inputs = tuple(inputs)

    @property
    def key(self) -> str:
        """`fold:<16 hex digits>` of op, attributes and input keys."""
        if self._key is None:
            name, attrs, type = self._op
            text = "|".join((name, repr(attrs), str(type), *(i.key for i in self._inputs)))
            self._key = f"fold:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return self._key

    @property
    def recipe(self) -> tuple[str, Attrs, TensorType, tuple[Resource, ...]]:
        """Op, attributes, result type and inputs: enough to build an equal resource."""
        return (*self._op, self._inputs)

    @property
    def derivation(self) -> object:
        """The derivation that the key is made from, without reading any input."""
        return (*self._op, *(identity_of(i) for i in self._inputs))

    def _evaluate(self) -> np.ndarray:
        """Intermediate results of a chain are not cached: only its end is a constant of the program."""
        name, attrs, type = self._op
        inputs = [i._evaluate() if isinstance(i, Derived) and i._array is None else i.array() for i in self._inputs]
        return _evaluated(name, attrs, type, inputs)


def _evaluated(name: str, attrs: Attrs, type: TensorType, inputs: Sequence[np.ndarray]) -> np.ndarray:
    reference = OPS[name].reference
    if reference is None:
        raise ValueError(f"op {name} has no reference function to fold it with")
    (result,) = reference(attrs, *inputs)
    return np.ascontiguousarray(result, type.dtype.numpy).reshape(type.dims)


def folded(op: Op, inputs: Sequence[Resource]) -> Resource | None:
    """The value of `op` on constant `inputs`; None if it does not depend on constants alone, or would inflate the
    program's constants (an `expand` of a number to a gigabyte)."""
    record = OPS[op.name]
    if len(op.results) != 1 or record.reference is None or record.kind in (Kind.CONSTANT, Kind.STRUCTURE):
        return None
    size, given = op.result.type.bytes, sum(i.type.bytes for i in inputs)
    if size > EAGER_BYTES and size > _GROWTH * given:
        return None
    if size <= EAGER_BYTES and given <= _EAGER_INPUT_BYTES:
        arrays = [i.array() for i in inputs]
        return Resource.of(_evaluated(op.name, op.attrs, op.result.type, arrays), inputs[0].name if inputs else "")
    return Derived(op, inputs, next((i.name for i in inputs if i.name), ""))


def identity_of(resource: Resource) -> object:
    """A hashable that is equal exactly when two constants may be merged. Large constants hash a sample of their
    elements and compare in full only if the samples are equal; uncomputed ones use their derivation."""
    if isinstance(resource, Derived):
        return resource.derivation
    if resource.file is not None or resource.type.bytes <= EAGER_BYTES:
        return resource.key
    return _Sampled(resource)


class _Sampled:
    """A resource that hashes by a sample of its elements and compares in full."""

    __slots__ = ("_hash", "_resource")

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        flat = resource.array().reshape(-1)
        self._hash = hash((resource.type, flat[:: max(1, flat.size // 64)].tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sampled) and self._hash == other._hash and self._resource == other._resource


def splat(resource: Resource) -> Any | None:
    """The number that all elements of a small constant equal bit for bit, as a Python scalar; None if they differ."""
    if resource.type.bytes > EAGER_BYTES or resource.type.elements == 0:
        return None
    flat = resource.array().reshape(-1)
    if flat.size > 1 and flat[:1].tobytes() * flat.size != flat.tobytes():
        return None
    return flat[0].item()

"""Converts block-quantized constant weights of files and plans into the form that products read.

A file may use any block size; kernels need both halves of a matrix of 4-bit numbers, and its tiles, to consist of whole
blocks. So blocks are subdivided, and their parts repeat the scale.

Invariant: conversion is exact, and nothing is read before an artifact needs its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ppuc.ir.graph import Attrs, Value
from ppuc.ir.ops.blocks import UnblockAttrs, in_halves
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, TensorType

MOST_ROWS, FEWEST_ROWS = 128, 8
"""Maximum and minimum rows of a block in a kernel: larger ones take too much l1, and smaller ones need too many
scales."""

Read = Callable[[], np.ndarray]


class Emit(Protocol):
    """Appends an op of one result."""

    def __call__(self, name: str, *operands: Value, attrs: Attrs | None = None) -> Value: ...


@dataclass(frozen=True, slots=True)
class Weights:
    """A matrix [k, n]. `codes` gives its numbers, one an element: bytes of `stored`, or of 4 bits each in the low half
    of a byte where `halves` says what they are. `scale` gives numbers of type `scale_type` for each `block` rows of
    each column, [ceil(k / block), n]; `zero`, if any, the codes that stand for 0, as i8 or u8 in the same shape."""

    rows: int
    columns: int
    block: int
    stored: DType
    codes: Read
    scale_type: DType
    scale: Read
    halves: DType | None = None
    zero: Read | None = None
    zero_type: DType = DType.I8

    @property
    def fitted_block(self) -> int:
        """Rows of a block in a kernel; 0 if no kernel supports such weights."""
        if self.halves is not None and self.rows % 2:
            return 0
        half = self.rows // (1 if self.halves is None else 2)
        fitting = (b for b in range(min(self.block, MOST_ROWS), FEWEST_ROWS - 1, -1))
        return next((b for b in fitting if half % b == 0 and self.block % b == 0), 0)


def emit_weights(emit: Emit, const: Callable[[Resource], Value], weights: Weights, to: DType) -> Value | None:
    """The matrix as a `to`[k, n] that products widen on load; None if no kernel supports such weights."""
    block = weights.fitted_block
    if not block:
        return None
    halves = weights.halves
    rows = weights.rows // (1 if halves is None else 2)
    stored = DType.U8 if halves is not None else weights.stored
    part = np.arange(weights.rows // block) * block // weights.block

    def codes() -> np.ndarray:
        read = weights.codes()
        return np.ascontiguousarray(in_halves(read.view(np.uint8)) if halves is not None else read)

    def by_block(read: Read) -> np.ndarray:
        return np.ascontiguousarray(read()[part])

    blocks = (len(part), weights.columns)
    operands = [const(Resource(TensorType(stored, (rows, weights.columns)), loader=codes, name="codes"))]
    scale = functools.partial(by_block, weights.scale)
    operands.append(const(Resource(TensorType(weights.scale_type, blocks), loader=scale, name="scales")))
    if weights.zero is not None:
        zero = functools.partial(by_block, weights.zero)
        operands.append(const(Resource(TensorType(weights.zero_type, blocks), loader=zero, name="zeros")))
    return emit("unblock", *operands, attrs=UnblockAttrs(to, block, halves))

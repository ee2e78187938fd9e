"""Matrix products with block-quantized weights: loads tiles of codes and scales and dequantizes them in the kernel.

The k axis is walked in blocks. A tile of A splits k into (half, block, row of the block), so that its elements match
the order in which the vector engine writes the weights; the half axis exists only if bytes hold two numbers.

Invariant: a tile of k is whole blocks of both halves, and its scales are loaded with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import analyse_anchor, anchor_of, operand_view
from ppuc.compiler.lowering.kernels.matmul import MatmulLowering, slot
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK, KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.tiling.space import Access
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine, axis
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Load, Mma, TileRef, Vec, View
from ppuc.ir.ops.blocks import UnblockAttrs
from ppuc.ir.types import DType
from ppuc.targets.schema import Target

DEEPEST = 2048
"""Maximum rows of weights in a tile."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The weights' codes, scales and zero points in memory, and the geometry of their blocks."""

    codes: Value
    scale: Value
    zero: Value | None
    attrs: UnblockAttrs

    @property
    def halves(self) -> int:
        """Numbers per code."""
        return 1 if self.attrs.halves is None else 2

    @property
    def lead(self) -> tuple[int, ...]:
        """The axis of halves, if there is one."""
        return () if self.attrs.halves is None else (2,)

    @property
    def by_block(self) -> tuple[Value, ...]:
        """The operands with one entry per block."""
        return (self.scale,) if self.zero is None else (self.scale, self.zero)

    @property
    def blocks(self) -> int:
        """Blocks along k of each half."""
        return int(self.codes.type.dims[0]) // self.attrs.block


def stored_weights(body: Graph, anchor: Op) -> Stored | None:
    """The block-quantized source of the anchor's right operand; None if it is stored otherwise."""
    op = body.producer(anchor.operands[1])
    if op is None or not isinstance(op.attrs, UnblockAttrs):
        return None
    codes, scale, *zero = op.operands
    return Stored(codes, scale, zero[0] if zero else None, op.attrs)


class BlockMatmulLowering(MatmulLowering):
    """Lowers a group around one matmul whose right operand is block-quantized."""

    stored: Stored

    def _right(self, body: Graph, anchor: Op) -> tuple[Value, View]:
        found = stored_weights(body, anchor)
        assert found is not None
        self.stored = found
        if anchor.attrs.transpose_b:  # type: ignore[attr-defined]
            raise NotFusable("block-quantized weights cannot be read through views")
        return found.codes, View.contiguous(anchor.operands[1].type.dims)

    def _widens(self, body: Graph, anchor: Op) -> bool:
        return True

    def _depths(self) -> list[int]:
        step, blocks = self.stored.attrs.block * self.stored.halves, self.stored.blocks
        most = max(1, min(DEEPEST // step, blocks))
        return [step * n for n in range(1, most + 1) if blocks % n == 0 or n == most or n & (n - 1) == 0]

    def _right_slots(self, tn: int, tk: int) -> int:
        blocks = tk // self.stored.attrs.block * tn
        scales = sum(slot(blocks, value.type.dtype) for value in self.stored.by_block)
        return slot(tk // self.stored.halves * tn, self.b_dtype) + scales

    def _right_load_clk(self, tiles: list[int], tk: int, active: int, sharers: int) -> float:
        tn, columns = math.prod(tiles[i] for i in self.n_axes), self.stored.codes.type.dims[1]
        total = 0.0
        rows = [tk // self.stored.halves, *(tk // self.stored.attrs.block for _ in self.stored.by_block)]
        for count, value in zip(rows, (self.stored.codes, *self.stored.by_block), strict=True):
            traffic = cost.box_traffic(View((count, columns), (columns, 1)), [count, tn], value.type.dtype, self.target)
            total += cost.load_clk(traffic, self.target, active, value.space, sharers)
            total += cost.overhead_clk(self.target)
        return total

    def _widening_steps(self) -> int:
        integers = self.stored.attrs.halves is None and self.b_dtype.is_integer
        return 1 + (integers or self.stored.attrs.halves is not None) + (self.stored.zero is not None)

    def accumulate(self, loops: Sequence[Tiling]) -> tuple[Nest, str]:
        """The loop over blocks along k, with the loads of both operands, the decoding of the weights, and the mma."""
        stored = self.stored
        blocks = self.choice.k // (stored.attrs.block * stored.halves)
        nest = Nest([*loops, Tiling("k", stored.blocks, blocks)])
        m_tile, n_tile = ([i for i in axes if i in self.tile_axes()] for axes in (self.m_axes, self.n_axes))
        inner = (*stored.lead, blocks, stored.attrs.block)
        wide = self._load_right(nest, n_tile, inner)
        a, a_k_first = self._load_left(nest, m_tile, inner)
        acc = self.accumulator()
        k_loop = nest.loops[-1]
        bounds = [loops[i].bound for i in (*m_tile, *n_tile)]
        bounds += [*(None for _ in stored.lead), k_loop.bound, None]
        start = ("k",) if k_loop.exists else ()
        valid = tuple(bounds) if any(b is not None for b in bounds) else ()
        mma = Mma(acc, TileRef(a), TileRef(wide), start, len(inner), transpose_a=a_k_first, valid=valid)
        nest.add(len(nest.loops), mma)
        return nest, acc

    def _load_left(self, nest: Nest, mine: Sequence[int], inner: tuple[int, ...]) -> tuple[str, bool]:
        """Add the load of a tile of A with axes `inner` for k; returns (buffer, whether those are its first axes)."""
        stored, access, first = self.stored, self.a, self._k_first("a")
        tile = [self.tiles[i] for i in mine]
        shape = [*inner, *tile] if first else [*tile, *inner]
        self._check_rank(shape)
        buffer = self.kernel.buffer("at", self.dtype, shape, depth=self.choice.rings.operands)
        sizes = (*stored.lead, stored.blocks, stored.attrs.block)
        strides = [self.a_k * math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        view = View((*access.view.shape, *sizes), (*access.view.strides, *strides), access.view.offset)
        index = self._columns_index(nest, access, mine, len(inner) if first else 0)
        index += self._k_index(nest, 0 if first else len(mine))
        param = self.kernel.param(self.a_tensor, self.dtype, view)
        nest.add(len(nest.loops), Load(buffer, param, tuple(index)))
        return buffer, first

    def _columns_index(self, nest: Nest, access: Access, mine: Sequence[int], at: int) -> list[Affine]:
        """Indices along the axes of the merged space; those in `mine` are tile axes from `at` on."""
        found = []
        for i in range(len(self.space.axes)):
            offset = nest.loops[i].offset if access.present(i) else Affine()
            found.append(offset + axis(at + mine.index(i)) if i in mine else offset)
        return found

    def _k_index(self, nest: Nest, at: int) -> list[Affine]:
        """Indices of (half, block, row of the block), tile axes from `at` on."""
        lead = [axis(at + i) for i in range(len(self.stored.lead))]
        return [*lead, nest.loops[-1].offset + axis(at + len(lead)), axis(at + len(lead) + 1)]

    def _load_right(self, nest: Nest, mine: Sequence[int], inner: tuple[int, ...]) -> str:
        """Add the loads of codes, scales and zero points, and the vec that dequantizes them; returns the buffer of the
        weights."""
        stored, depth = self.stored, self.choice.rings.operands
        tile, columns = [self.tiles[i] for i in mine], stored.codes.type.dims[1]
        lead = len(stored.lead)
        block = stored.attrs.block
        tiles = []
        for value in (stored.codes, *stored.by_block):
            coded = value is stored.codes
            shape = [*((1,) * lead if coded else stored.lead), inner[-2], block if coded else 1, *tile]
            self._check_rank(shape)
            tiles.append(self.kernel.buffer("bt" if coded else "scale", value.type.dtype, shape, depth=depth))
            rows = (*((1,) * lead if coded else stored.lead), stored.blocks, block if coded else 1)
            pitch = columns * (block if coded else 1)
            strides = (*(stored.blocks * columns for _ in stored.lead), pitch, columns)
            view = View((*rows, *self.b.view.shape), (*strides, *self.b.view.strides), self.b.view.offset)
            index = self._k_index(nest, 0) + self._columns_index(nest, self.b, mine, len(inner))
            param = self.kernel.param(self.tensors[value.name], value.type.dtype, view)
            pad = 1.0 if value is stored.scale else 0.0  # a power of two has no code for 0
            nest.add(len(nest.loops), Load(tiles[-1], param, tuple(index), pad))
        wide = self.kernel.buffer("bw", self.dtype, [*inner, *tile])
        bounds = (*(None for _ in inner), *(nest.loops[i].bound for i in mine))
        valid = bounds if any(b is not None for b in bounds) else ()
        nest.add(len(nest.loops), Vec(self._widening(), (wide,), tuple(tiles), valid))
        return wide

    def _widening(self) -> str:
        """Add the vector program that computes weights from codes, scales and zero points."""
        stored, builder = self.stored, ProgramBuilder()
        codes, scale = builder.param(self.b_dtype), builder.param(stored.scale.type.dtype)
        number = codes
        if stored.attrs.halves is not None:
            number = builder.step("halves", codes, ints=(0,), dtype=stored.attrs.halves)
        elif self.b_dtype.is_integer:
            number = builder.step("cast", codes, dtype=DType.F32)
        if stored.zero is not None:
            zero = builder.param(stored.zero.type.dtype)
            zero = builder.step("cast", zero, dtype=DType.F32) if stored.zero.type.dtype.is_integer else zero
            number = builder.step("sub", number, zero)
        number = builder.step("mul", number, scale)
        return self.kernel.vector(builder.finish(f"{self.name}.unblock", [(number, self.dtype)]))

    def _check_rank(self, shape: Sequence[int]) -> None:
        if len(shape) > MAX_TILE_RANK:
            raise NotFusable("a tile split into blocks has more axes than a load can describe")


def check_matmul(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group has no matmul kernel, or a poor one, with any tiling. A reduction needs whole rows
    in the accumulator and enough of them to occupy every unit."""
    anchor = anchor_of(body, "matmul")
    chain = analyse_anchor(body, anchor)
    for value in anchor.operands[: 1 if stored_weights(body, anchor) is not None else 2]:
        operand_view(body, value)
    if not chain.reduce_axes:
        return
    n = anchor.results[0].type.dims[-1]
    if math.prod(chain.domain[a] for a in chain.reduce_axes) != n or chain.reduce_axes[-1] != len(chain.domain) - 1:
        raise NotFusable("the reduction runs over other axes than the columns of the product")
    rows = math.prod(anchor.results[0].type.dims) // max(n, 1)
    if 16 * n * 4 > cost.acc_budget(target):
        raise NotFusable(f"a row of {n} columns does not fit the accumulator")
    if -(-rows // 16) * 4 < 3 * target.cu:
        raise NotFusable(f"{rows} rows, kept whole, would leave units idle")


def matmul_lowering(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int = 0
) -> MatmulLowering:
    """The lowering of a group around one matmul, tiled as the `rank`-th cheapest candidate. Raises NotFusable."""
    blocks = stored_weights(body, anchor_of(body, "matmul")) is not None
    lowering = BlockMatmulLowering if blocks else MatmulLowering
    return lowering(name, body, tensors, loc, target, rank)


def lower_matmul(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int = 0
) -> KernelBuilder:
    """Lower a group around one matmul, tiled as the `rank`-th cheapest candidate. Raises NotFusable."""
    return matmul_lowering(name, body, tensors, loc, target, rank).lower()

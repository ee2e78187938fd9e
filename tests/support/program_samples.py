"""Hand-built programs that use every instruction and every optional field once."""

from __future__ import annotations

import math

from ppuc.ir.affine import affine, axis, var
from ppuc.ir.kernel import Bound, Gather, Load, Mma, Param, Store, TileRef, Vec, View
from ppuc.ir.program import (
    Bump,
    Copy,
    CounterGroup,
    Instr,
    KernelProgram,
    MemTensor,
    Program,
    Queue,
    Ring,
    RingUse,
    Segment,
    StreamLoop,
    StreamNode,
    Wait,
)
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import Step, VecParam, VectorProgram
from ppuc.targets.isa import mnemonic_of

BIAS_RELU = VectorProgram(
    "bias_relu",
    (VecParam("c", DType.F32), VecParam("b", DType.F32, whole=True)),
    (("r", DType.BF16),),
    (
        Step("s", "add", ("c", "b")),
        Step("z", "const", number=0.0, dtype=DType.F32),
        Step("m", "max", ("s", "z")),
        Step("t", "reduce_max", ("m",), ints=(1,)),
        Step("i", "const", number=-math.inf, dtype=DType.F32),
        Step("r", "cast", ("m",), dtype=DType.BF16),
    ),
)


def gemm_program(name: str = "mlp", m: int = 1000, n: int = 3072, k: int = 768) -> Program:
    """x[m, k] @ w[k, n] + bias through relu, on a 16 x 4 grid, with a weight copy from the host."""
    tensors = (
        MemTensor("x", DType.BF16, m * k, Space.L2, 0, "input", "x"),
        MemTensor("w", DType.BF16, k * n, Space.HBM, 4096, "const", "w"),
        MemTensor("b", DType.F32, n, Space.HBM, 4096 + 2 * k * n, "const", "bias"),
        MemTensor("y", DType.BF16, m * n, Space.L2, 2 * m * k, "output", "y"),
    )
    counters = (
        CounterGroup("x.c", "x", "blocks", 0, 64 * k, (1,) * 16),
        CounterGroup("y.d", "y", "done", 16, m * n, (64,)),
    )
    copies = (
        Copy(0, "x", "w", 0, m * k, bumps=(Bump("x.c", True),), loc=("Gemm_0",)),
        Copy(3, "y", "x", 2**33, 17, waits=(Wait("y.d", False),)),
    )
    segment = Segment("s0", (_gemm(m, n, k), _gather_kernel()), copies, counters)
    return Program(name, "ppu-tiny", "0123456789abcdef", tensors, (("X:0", "x"),), (("out/Y", "y"),), (segment,))


def _gemm(m: int, n: int, k: int) -> KernelProgram:
    params = (
        Param("x", "x", DType.BF16, View.contiguous((m, k)), Space.L2),
        Param("w", "w", DType.BF16, View((k, n), (n, 1), 8), Space.HBM),
        Param("b", "b", DType.F32, View.contiguous((n,)), Space.HBM),
        Param("y", "y", DType.BF16, View.contiguous((m, n)), Space.L2, written=True),
    )
    load, tensor, vector, store = Queue.LOAD, Queue.TENSOR, Queue.VECTOR, Queue.STORE
    rings = (
        Ring("at", DType.BF16, (64, 64), Space.L1, 0, 8192, 2, load, (tensor,)),
        Ring("bt", DType.BF16, (64, 256), Space.L1, 16384, 32768, 2, load, (tensor,)),
        Ring("bias", DType.F32, (256,), Space.L1, 81920, 1024, 1, load, (vector,)),
        Ring("c", DType.F32, (64, 256), Space.ACC, 0, 65536, 2, tensor, (vector,)),
        Ring("o", DType.BF16, (64, 256), Space.L1, 90112, 32768, 2, vector, (store,), after=("at", "bt")),
    )
    loads = (
        _instr(Load("bias", "b", (var("n") + axis(0),)), _ring("claim", "bias", 2), _ring("push", "bias", 2)),
        _loop("k", k, 64, None, _gemm_loads()),
    )
    mma = Mma("c", TileRef("at"), TileRef("bt"), ("k",), valid=(Bound(var("m"), m), None, None))
    uses = (_ring("wait", "at", 3), _ring("wait", "bt", 3), _ring("claim", "c", 2), _ring("push", "c", 2))
    vec = Vec("bias_relu", ("o",), ("c", "bias"), (Bound(var("m"), m), Bound(var("n"), n)), (var("m"), affine(3)))
    keep = Store("y", "o", (var("m") + axis(0), var("n") + axis(1)))
    streams = (
        (load, _nest(m, n, loads)),
        (tensor, _nest(m, n, (_loop("k", k, 64, None, (_instr(mma, *uses),)),))),
        (vector, _nest(m, n, (_instr(vec, _ring("wait", "c", 2)),))),
        (store, _nest(m, n, (Instr("store.box", keep, (_ring("wait", "o", 2),), (), (Bump("y.d", False),)),))),
    )
    return KernelProgram("gemm_0", (("cm", 16), ("cn", 4)), params, rings, streams, ("Gemm_0", 'we"ird\n\\ name'))


def _gemm_loads() -> tuple[StreamNode, ...]:
    a = Load("at", "x", (var("m") + axis(0), var("k") + axis(1)))
    b = Load("bt", "w", (var("k") + axis(0), var("n") + axis(1)), pad=-math.inf)
    return (
        Instr("load.box", a, (_ring("claim", "at", 3), _ring("push", "at", 3)), (Wait("x.c", True),)),
        _instr(b, _ring("claim", "bt", 3), _ring("push", "bt", 3)),
    )


def _gather_kernel() -> KernelProgram:
    """Rows by an index list, a convolution window, an integer mma on sub-tiles and a scatter-add."""
    params = (
        Param("t", "x", DType.BF16, View((100, 8), (8, 1)), Space.L2),
        Param("o", "y", DType.BF16, View((100, 8), (8, 1)), Space.L2, written=True),
    )
    rings = (
        Ring("r", DType.BF16, (4, 8), Space.L1, 0, 64, 1, Queue.LOAD, (Queue.TENSOR, Queue.STORE)),
        Ring("ids", DType.I64, (4,), Space.L1, 64, 32, 1, Queue.LOAD, (Queue.LOAD, Queue.STORE)),
        Ring("acc", DType.F32, (4, 4), Space.ACC, 0, 64, 1, Queue.TENSOR, ()),
    )
    stride = axis(0, 2) + axis(1) - 3
    loads = (
        _instr(Load("r", "t", (affine(), axis(1)), gather=Gather(0, "ids", 0))),
        _instr(Load("r", "t", (stride, axis(2)), pad=1.5)),
    )
    part = TileRef("r", (axis(0) + 1, axis(1, -1) + 7), (2, 8))
    mma = Mma("acc", part, TileRef("r"), (), k_axes=2, transpose_a=True, transpose_b=True)
    scatter = Store("o", "r", (affine(), axis(1)), scatter=Gather(0, "ids", 0), combine="add")
    streams: tuple[tuple[Queue, tuple[StreamNode, ...]], ...] = (
        (Queue.LOAD, loads),
        (Queue.TENSOR, (_instr(mma),)),
        (Queue.STORE, (_instr(scatter),)),
    )
    return KernelProgram("gather_1", (("c", 1),), params, rings, streams)


def _nest(m: int, n: int, body: tuple[StreamNode, ...]) -> tuple[StreamNode, ...]:
    return (_loop("m", m, 64, "cm", (_loop("n", n, 256, "cn", body),)),)


def _loop(name: str, stop: int, step: int, over: str | None, body: tuple[StreamNode, ...]) -> StreamLoop:
    return StreamLoop(name, 0, stop, step, over, body)


def _instr(stmt: Load | Store | Mma | Vec, *rings: RingUse) -> Instr:
    return Instr(mnemonic_of(stmt), stmt, rings)


def _ring(kind: str, name: str, level: int) -> RingUse:
    return RingUse(kind, name, level)

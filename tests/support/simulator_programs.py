"""Hand-built programs for the simulator's tests and benchmark: what `emit` would make of small kernels."""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.ir.affine import Affine, affine, axis, var
from ppuc.ir.kernel import Bound, Load, Mma, Param, Store, TileRef, Vec, View
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

RELU = VectorProgram("relu", (VecParam("0", DType.F32),), (("r", DType.F32),), (Step("r", "relu", ("0",)),))


def tensor(name: str, elements: int, space: Space, address: int, role: str, dtype: DType = DType.F32) -> MemTensor:
    return MemTensor(name, dtype, elements, space, address, role, name)


def use(kind: str, ring: str, level: int) -> RingUse:
    return RingUse(kind, ring, level)


def tile_index(*offsets: Affine) -> tuple[Affine, ...]:
    """Offsets of a box whose tile axis i moves along dimension i."""
    return tuple(o + axis(i) for i, o in enumerate(offsets))


def program(name: str, tensors: list[MemTensor], segment: Segment) -> Program:
    inputs = tuple((t.name, t.name) for t in tensors if t.role == "input")
    outputs = tuple((t.name, t.name) for t in tensors if t.role == "output")
    return Program(name, "", "", tuple(tensors), inputs, outputs, (segment,))


def copy_kernel(
    rows: int, cols: int, tile: int, depth: int, src: str = "x", dst: str = "y", space: Space = Space.L2, units: int = 1
) -> KernelProgram:
    """y = x through l1, `tile` rows at a time."""
    view = View.contiguous((rows, cols))
    params = (Param("x", src, DType.F32, view, space), Param("y", dst, DType.F32, view, space, True))
    ring = Ring("t", DType.F32, (tile, cols), Space.L1, 0, tile * cols * 4, depth, Queue.LOAD, (Queue.STORE,))
    index = tile_index(var("m"), affine())
    load = Instr("load.box", Load("t", "x", index), (use("claim", "t", 1), use("push", "t", 1)))
    store = Instr("store.box", Store("y", "t", index), (use("wait", "t", 1), use("pop", "t", 1)))
    loop = lambda body: (StreamLoop("m", 0, rows, tile, "u", (body,)),)  # noqa: E731
    return KernelProgram(
        "copy", (("u", units),), params, (ring,), ((Queue.LOAD, loop(load)), (Queue.STORE, loop(store))), ("Copy_0",)
    )


def copy_program(rows: int, cols: int, tile: int, depth: int = 2, space: Space = Space.L2, units: int = 1) -> Program:
    size = rows * cols
    tensors = [tensor("x", size, space, 0, "input"), tensor("y", size, space, size * 4, "output")]
    kernel = copy_kernel(rows, cols, tile, depth, space=space, units=units)
    return program("copy", tensors, Segment("s0", (kernel,), (), ()))


@dataclass(frozen=True)
class Gemm:
    """y[m, n] = relu?(a[m, k] . b[k, n]) in tiles, with k-loop rings of `depth` and `units` along m and n."""

    m: int
    n: int
    k: int
    tm: int = 16
    tn: int = 16
    tk: int = 16
    depth: int = 2
    grid: tuple[int, int] = (1, 1)
    a: str = "a"
    b: str = "b"
    y: str = "y"
    a_space: Space = Space.L2
    b_space: Space = Space.L2
    name: str = "gemm"
    base: int = 0
    after: tuple[str, ...] = ()
    wait_a: str = ""
    wait_b: str = ""
    bump_y: str = ""
    dtype: DType = DType.F32

    @property
    def l1_bytes(self) -> int:
        return self.depth * self.dtype.bytes * (self.tm * self.tk + self.tk * self.tn) + 2 * 4 * self.tm * self.tn

    def rings(self) -> tuple[Ring, ...]:
        at, bt, o = self.tm * self.tk, self.tk * self.tn, self.tm * self.tn
        size, base = self.dtype.bytes, self.base
        bt_base = base + self.depth * at * size
        o_base = bt_base + self.depth * bt * size
        p, after = self.name + ".", self.after
        acc_after = tuple(n for n in after if n.endswith(".c"))
        l1_after = tuple(n for n in after if not n.endswith(".c"))
        d, l1 = self.dtype, Space.L1
        return (
            Ring(
                p + "at", d, (self.tm, self.tk), l1, base, at * size, self.depth, Queue.LOAD, (Queue.TENSOR,), l1_after
            ),
            Ring(
                p + "bt",
                d,
                (self.tk, self.tn),
                l1,
                bt_base,
                bt * size,
                self.depth,
                Queue.LOAD,
                (Queue.TENSOR,),
                l1_after,
            ),
            Ring(
                p + "c", DType.F32, (self.tm, self.tn), Space.ACC, 0, o * 4, 2, Queue.TENSOR, (Queue.VECTOR,), acc_after
            ),
            Ring(p + "o", DType.F32, (self.tm, self.tn), l1, o_base, o * 4, 2, Queue.VECTOR, (Queue.STORE,), l1_after),
        )

    def kernel(self) -> KernelProgram:
        p = self.name + "."
        mv, nv, kv = var("m"), var("n"), var("k")
        params = (
            Param("a", self.a, self.dtype, View.contiguous((self.m, self.k)), self.a_space),
            Param("b", self.b, self.dtype, View.contiguous((self.k, self.n)), self.b_space),
            Param("y", self.y, DType.F32, View.contiguous((self.m, self.n)), Space.L2, True),
        )
        valid = (Bound(mv, self.m), Bound(nv, self.n), Bound(kv, self.k))
        wait_a = (Wait(self.wait_a, True),) if self.wait_a else ()
        wait_b = (Wait(self.wait_b, True),) if self.wait_b else ()
        bump = (Bump(self.bump_y, True),) if self.bump_y else ()
        load_a = Instr(
            "load.box",
            Load(p + "at", "a", tile_index(mv, kv)),
            (use("claim", p + "at", 3), use("push", p + "at", 3)),
            wait_a,
        )
        load_b = Instr(
            "load.box",
            Load(p + "bt", "b", tile_index(kv, nv)),
            (use("claim", p + "bt", 3), use("push", p + "bt", 3)),
            wait_b,
        )
        mma = Instr(
            "mma",
            Mma(p + "c", TileRef(p + "at"), TileRef(p + "bt"), ("k",), valid=valid),
            (
                use("claim", p + "c", 2), use("wait", p + "at", 3), use("wait", p + "bt", 3),
                use("push", p + "c", 2), use("pop", p + "at", 3), use("pop", p + "bt", 3),
            ),
        )  # fmt: skip
        vec = Instr(
            "vec",
            Vec("relu", (p + "o",), (p + "c",), valid[:2]),
            (use("claim", p + "o", 2), use("wait", p + "c", 2), use("push", p + "o", 2), use("pop", p + "c", 2)),
        )
        store = Instr(
            "store.box",
            Store("y", p + "o", tile_index(mv, nv)),
            (use("wait", p + "o", 2), use("pop", p + "o", 2)),
            (),
            bump,
        )
        k_loop = lambda *body: (StreamLoop("k", 0, self.k, self.tk, None, body),)  # noqa: E731
        streams = (
            (Queue.LOAD, self.outer(k_loop(load_a, load_b))),
            (Queue.STORE, self.outer((store,))),
            (Queue.TENSOR, self.outer(k_loop(mma))),
            (Queue.VECTOR, self.outer((vec,))),
        )
        return KernelProgram(
            self.name, (("cm", self.grid[0]), ("cn", self.grid[1])), params, self.rings(), streams, (self.name,)
        )

    def outer(self, body: tuple[StreamNode, ...]) -> tuple[StreamNode, ...]:
        inner = StreamLoop("n", 0, self.n, self.tn, "cn", body)
        return (StreamLoop("m", 0, self.m, self.tm, "cm", (inner,)),)


def gemm_program(g: Gemm) -> Program:
    a, b, y = g.m * g.k, g.k * g.n, g.m * g.n
    held = 4 * (a * (g.a_space is Space.L2) + b * (g.b_space is Space.L2))
    tensors = [
        tensor("a", a, g.a_space, 0, "input", g.dtype),
        tensor("b", b, g.b_space, 0 if g.b_space is not g.a_space else a * 4, "input", g.dtype),
        tensor("y", y, Space.L2, held, "output"),
    ]
    return program("gemm", tensors, Segment("s0", (g.kernel(),), (), ()))


def chain_program(
    m: int = 40, k: int = 24, n: int = 32, n2: int = 24, grid: tuple[int, int] = (2, 1), depth: int = 2
) -> Program:
    """relu(relu(a . b) . w) with the second weight staged from hbm to l2, counters between, and rings taken over."""
    block = 8 * n
    blocks = -(-m * n // block)
    tiles = -(-n // 16)
    expect = tuple(tiles * (1 if 16 * (i * 8 // 16) < m else 0) for i in range(blocks))
    first = Gemm(m, n, k, tk=8, depth=depth, grid=grid, y="h", bump_y="h.rows", name="g1")
    names = tuple(r.name for r in first.rings())
    second = Gemm(
        m, n2, n, tk=8, depth=depth, grid=grid, a="h", b="w", name="g2", after=names, wait_a="h.rows", wait_b="w.in"
    )
    sizes = {"a": m * k, "b": k * n, "h": m * n, "w": n * n2, "y": m * n2}
    tensors, at = [], 0
    for name, role in (("a", "input"), ("b", "input"), ("h", "temp"), ("w", "temp"), ("y", "output")):
        tensors.append(tensor(name, sizes[name], Space.L2, at, role))
        at += sizes[name] * 4
    tensors.append(tensor("w0", sizes["w"], Space.HBM, 0, "input"))
    half = sizes["w"] // 2
    copies = (
        Copy(0, "w", "w0", 0, half, (), (Bump("w.in", True),)),
        Copy(0, "w", "w0", half, sizes["w"] - half, (), (Bump("w.in", True),)),
    )
    groups = (
        CounterGroup("h.rows", "h", "rows", 0, block, expect),
        CounterGroup("w.in", "w", "copy", blocks, half, (1, 1)),
    )
    return program("chain", tensors, Segment("s0", (first.kernel(), second.kernel()), copies, groups))

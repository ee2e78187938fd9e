"""Matrix products: MatMul, Gemm, Einsum and their fused forms."""

from __future__ import annotations

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F32, Sample

EQUATIONS = (
    *("ij,jk->ik", "ij,jk", "bij,bjk->bik", "bhid,bhjd->bhij", "i,j->ij", "i,i->", "ij->ji", "ii->i", "ii", "ij->"),
    *(
        "ij->j",
        "...ij,...jk->...ik",
        "ij,j->i",
        "ij,ij->ij",
        "ij,ij,ij->i",
        "bnh,nhd->bd",
        "abc,cd,de->abe",
        "i,ij,j->",
    ),
    *("b...i,ij->b...j", "ibh,hnd->ibnd", "abij,abjk->aibk", "ij,kj->ki", "aij,aj->i", "i->i", "ijk->kji"),
)


def _matrices(s: Sample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    m, k, n = s.size(), s.size(0 if s.flip(0.2) else 1), s.size()
    batch = s.shape(0, 3, least=0 if s.flip(0.1) else 1, most=12)
    if s.flip(0.1):
        return (k,), (*batch, k, n)
    if s.flip(0.1):
        return (*batch, m, k), (k,)
    return (*s.broadcast(batch), m, k), (*s.broadcast(batch), k, n)


@strategy("MatMul")
def matmul(s: Sample) -> None:
    dtype, special = s.dtype(), 0.02 if s.flip(0.2) else 0.0
    a, b = _matrices(s)
    s.add(s.array(dtype, a, special))
    s.add(s.array(dtype, b), s.flip())


def _terms(s: Sample, m: int, n: int) -> tuple[int, ...]:
    return s.pick(((m, n), (n,), (1, n), (m, 1), (1,), (), (1, 1)))


def _gemm(s: Sample) -> None:
    dtype = s.dtype()
    m, k, n = s.size(0 if s.flip(0.1) else 1), s.size(0 if s.flip(0.1) else 1), s.size(1)
    ta, tb = s.flip(), s.flip()
    s.add(s.array(dtype, (k, m) if ta else (m, k)))
    s.add(s.array(dtype, (n, k) if tb else (k, n)), s.flip())
    if s.opset < 11 or s.flip():
        s.add(s.array(dtype, _terms(s, m, n)), s.flip())
    s.attributes = {"transA": int(ta), "transB": int(tb)}
    integer = dtype.kind in "iu"
    if s.flip():
        s.attributes |= {"alpha": 2.0 if integer else s.pick((0.5, 0.0, -1.25)), "beta": s.pick((1.0, 2.0, 0.0))}


@strategy("Gemm")
def gemm(s: Sample) -> None:
    _gemm(s)


@strategy("FusedGemm", domain="com.microsoft")
def fused_gemm(s: Sample) -> None:
    s.types["T"] = (F32,)
    _gemm(s)
    if s.flip(0.7):
        s.attributes["activation"] = s.pick(("Relu", "Sigmoid", "Tanh", "LeakyRelu"))
        if s.attributes["activation"] == "LeakyRelu":
            s.attributes["activation_alpha"] = 0.2


@strategy("FusedMatMul", "TransposeMatMul", domain="com.microsoft")
def fused_matmul(s: Sample) -> None:
    dtype = s.dtype("T", (F32,))
    m, k, n, batch = s.size(1), s.size(1), s.size(1), s.shape(0, 2, least=1, most=8)
    ta, tb = s.flip(), s.flip()
    a, b = (k, m) if ta else (m, k), (n, k) if tb else (k, n)
    s.add(s.array(dtype, (*batch, *a)))
    s.add(s.array(dtype, (*batch, *b)), s.flip())
    s.attributes = {"transA": int(ta), "transB": int(tb), "alpha": s.pick((1.0, 0.5))}
    if s.op == "FusedMatMul" and len(batch) == 1 and s.flip(0.3):
        s.arrays["x0"] = s.array(dtype, (a[0], *batch, a[1]))
        s.attributes["transBatchA"] = 1


@strategy("Einsum")
def einsum(s: Sample) -> None:
    equation = s.pick(EQUATIONS)
    sizes = {letter: s.size(1, 9) for letter in "abcdehijkn"}
    dots = s.shape(0, 2, least=1, most=8)
    dtype = s.dtype()
    for term in equation.split("->")[0].split(","):
        head, _, tail = term.partition("...")
        middle = dots if "..." in term else ()
        shape = (*(sizes[c] for c in head), *middle, *(sizes[c] for c in tail))
        s.add(s.array(dtype, shape), s.flip(0.2))
    s.attributes["equation"] = equation.replace(",", " , ") if s.flip(0.2) else equation

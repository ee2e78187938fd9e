"""Products of integers that the tensor engine does not support: exact, wrapping as ONNX Runtime's do."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.entry import compile
from tests.support.onnx_text import model_of

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "matrices": ((17, 33), (33, 9)),
    "a row": ((33,), (33, 9)),
    "a column": ((17, 33), (33,)),
    "numbers": ((33,), (33,)),
    "batches": ((3, 1, 5, 40), (2, 40, 7)),
    "long sums": ((2, 3000), (3000, 3)),
    "wide": ((70, 8), (8, 300)),
    "nothing to sum": ((4, 0), (0, 3)),
}
NAMES = {"int32": np.int32, "int64": np.int64, "uint32": np.uint32, "uint64": np.uint64}


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_matmul(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], target: str) -> None:
    info, rng = np.iinfo(NAMES[name]), np.random.default_rng(0)
    a, b = (rng.integers(info.min, info.max, shape, info.dtype, endpoint=True) for shape in shapes)
    dims = [", ".join(map(str, shape)) for shape in shapes]
    result = ", ".join("abcd"[: np.matmul(a, b).ndim])
    model = model_of(
        f"agraph ({name}[{dims[0]}] a, {name}[{dims[1]}] b) => ({name}[{result}] y) {{ y = MatMul(a, b) }}"
    )
    y = compile(model, target, host=False).run({"a": a, "b": b}).outputs["y"]
    np.testing.assert_array_equal(y, np.matmul(a, b), strict=True)


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
def test_gemm_with_transposes_and_constants(target: str) -> None:
    rng = np.random.default_rng(1)
    a, w, c = (rng.integers(-(2**31), 2**31, shape, np.int32) for shape in ((12, 20), (30, 12), (30,)))
    text = "agraph (int32[12, 20] a) => (int32[20, 30] y) { y = Gemm<transA = 1, transB = 1>(a, w, c) }"
    y = compile(model_of(text, {"w": w, "c": c}), target, host=False).run({"a": a}).outputs["y"]
    np.testing.assert_array_equal(y, a.T @ w.T + c, strict=True)


def test_einsum_and_views_around() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-(2**40), 2**40, shape, np.int64) for shape in ((4, 6), (4, 5)))
    text = """agraph (int64[4, 6] a, int64[4, 5] b, int64 s) => (int64[5, 6] y) {
        p = Einsum<equation = "km,kn->mn">(a, b) q = Mul(p, s) shape = Constant<value_ints = [5, 6]>()
        y = Reshape(q, shape) }"""
    s = np.array(-3, np.int64)
    y = compile(model_of(text), "ppu-tiny", host=False).run({"a": a, "b": b, "s": s}).outputs["y"]
    np.testing.assert_array_equal(y, (a.T @ b * s).reshape(5, 6), strict=True)

"""One operator of given sizes for `ppuc predict`, from the command line or a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.precisions import PRECISIONS
from ppuc.ir.errors import Diagnostic, UsageError

GEMM = ("m", "n", "k")
ATTENTION = ("batch", "heads", "kv_heads", "query", "key", "dim")
CONV = ("n", "h", "w", "c", "k", "r", "stride", "pad")

OPERANDS = ("bf16", "f16", "f32", "i8", "f8e4m3")
"""Element types of operands."""

DTYPES = {name: name for name in OPERANDS} | {
    name: operands
    for name, precision in PRECISIONS.items()
    if (operands := precision.operands if precision.quantized else precision.contractions)
}
"""Names of element types -> those of the IR."""

LARGEST = 1 << 24
"""Maximum size: beyond any operator, and small enough that products of sizes stay exact."""


@dataclass(frozen=True, slots=True)
class Case:
    """An operator of `kind`, its sizes `dims` and the element type of its operands.

    gemm: m, n, k: y[m, n] = x[m, k] . w[n, k]^T. attention: batch, heads, heads of keys and values, queries, keys,
    size of a head, causal or not. ffn: rows, size, inner size, with a gate or not. conv: images, height, width,
    channels, filters, side of the window, stride, padding. softmax, layernorm, pass (each
    element read, scaled and written): rows, columns.
    """

    kind: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        """Kind and sizes."""
        if self.kind == "attention":
            return f"attention {' x '.join(map(str, self.dims[:-1]))}{' causal' if self.dims[-1] else ''}"
        sizes = " x ".join(map(str, self.dims))
        return sizes if self.kind == "gemm" else f"{self.kind} {sizes}"

    @property
    def macs(self) -> int:
        """Multiply-accumulates; for causal attention, the unmasked ones. 0 without a product."""
        if self.kind == "gemm":
            m, n, k = self.dims
            return m * n * k
        if self.kind == "attention":
            batch, heads, _, queries, keys, size, causal = self.dims
            seen = sum(max(0, keys - queries + i + 1) for i in range(queries)) if causal else queries * keys
            return 2 * batch * heads * seen * size
        if self.kind == "conv":
            n, h, w, c, k, r, stride, pad = self.dims
            return n * ((h + 2 * pad - r) // stride + 1) * ((w + 2 * pad - r) // stride + 1) * k * c * r * r
        return 0


def gemm(text: str, dtype: str, where: str = "--gemm") -> Case:
    """The case of `m,n,k[:dtype]`. Raises UsageError."""
    sizes, marks = _split(text)
    return Case("gemm", _sizes(sizes, GEMM, where, text), _dtype([*marks, dtype][0], where, len(marks) > 1, text))


def attention(text: str, dtype: str, where: str = "--attention") -> Case:
    """The case of `batch,heads,kv_heads,query,key,dim[:causal][:dtype]`. Raises UsageError."""
    sizes, marks = _split(text)
    causal = "causal" in marks
    rest = [mark for mark in marks if mark != "causal"]
    dims = _sizes(sizes, ATTENTION, where, text)
    if dims[1] % dims[2]:
        raise UsageError.of(where, "heads are not a multiple of kv_heads", got=text)
    return Case("attention", (*dims, int(causal)), _dtype([*rest, dtype][0], where, len(rest) > 1, text))


def conv(text: str, dtype: str, where: str = "--conv") -> Case:
    """The case of `n,h,w,c,k,r,stride,pad[:dtype]`. Raises UsageError."""
    sizes, marks = _split(text)
    dims = _sizes(sizes, CONV, where, text)
    if dims[5] > min(dims[1:3]) + 2 * dims[7]:
        raise UsageError.of(where, "the window is larger than the padded image", got=text)
    return Case("conv", dims, _dtype([*marks, dtype][0], where, len(marks) > 1, text))


def _split(text: str) -> tuple[list[str], list[str]]:
    sizes, *marks = text.split(":")
    return [size.strip() for size in sizes.split(",")], [mark.strip() for mark in marks]


def _sizes(given: Sequence[str], names: Sequence[str], where: str, text: str) -> tuple[int, ...]:
    if len(given) != len(names):
        raise UsageError.of(where, "has the wrong number of sizes", got=text, expected=",".join(names))
    return tuple(size_of(value, name, where) for value, name in zip(given, names, strict=True))


def size_of(text: str, name: str, where: str) -> int:
    """A size in a text; padding may be 0. Raises UsageError."""
    least = 0 if name == "pad" else 1
    if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= LARGEST:
        raise UsageError(Diagnostic(where, f"{name} is no size", text, f"a whole number from {least} to {LARGEST:,}"))
    return int(text)


def dtype_of(text: str, where: str) -> str:
    """The IR name of an element type. Raises UsageError."""
    if text not in DTYPES:
        raise UsageError.of(where, "is no element type of operands", got=text, expected=", ".join(DTYPES))
    return DTYPES[text]


def _dtype(name: str, where: str, several: bool, text: str) -> str:
    if several:
        raise UsageError.of(where, "has more after its sizes than an element type", got=text)
    return dtype_of(name, where)

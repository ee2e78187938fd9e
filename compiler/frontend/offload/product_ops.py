"""Names of ops that sum products.

Invariant: this module imports nothing, because loading programs uses it too.
"""

from __future__ import annotations

PRODUCTS = frozenset(
    {
        "Attention",
        "BifurcatedAttention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupQueryAttention",
        "LSTM",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "QAttention",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    }
)
"""Ops of the standard and of com.microsoft that sum products."""

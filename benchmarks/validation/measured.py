"""Measured operators: what was run, on what, and how long it took.

Invariant: a case is a row of a file (in `data/`, or in the folder given with `--data`) as it stands; nothing is left
out but what the set's `least_us` excludes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Case:
    """An operator of `kind` and sizes `dims`, which took `us` microseconds.

    gemm: m, n, k: y[m, n] = x[m, k] . w[n, k]^T. attention: batch, heads, heads of keys and values, queries, keys,
    size of a head, causal or not. ffn: rows, size, inner size, with a gate or not. conv: images, height, width,
    channels, filters, side of the window, stride, padding. softmax, layernorm: rows, columns. `launch` says whether the
    time contains the machine's launch; `base` is the column count of the case from which times are measured as
    increments, 0 for none.
    """

    kind: str
    dims: tuple[int, ...]
    us: float
    dtype: str

    @property
    def name(self) -> str:
        """Kind and sizes."""
        sizes = " x ".join(map(str, self.dims))
        return sizes if self.kind == "gemm" else f"{self.kind} {sizes}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One machine's measurements of one file. Shorter cases than `least_us` are launch overhead and timer noise; `goal`
    is the mean absolute error to stay within, `kinds` (all when empty) what is taken from the file. `increments`: times
    are judged from one number of columns to the next, because each carries the same overhead of a framework."""

    name: str
    target: str
    file: str
    dtype: str
    kinds: tuple[str, ...] = ()
    clock_mhz: float = 0.0
    least_us: float = 0.0
    goal: float = 0.0
    increments: bool = False

    def cases(self, folders: tuple[Path, ...]) -> list[Case] | None:
        """The cases, in the file's order; None when no folder has the file."""
        path = next((folder / self.file for folder in folders if (folder / self.file).exists()), None)
        if path is None:
            return None
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        found = [case for row in csv.DictReader(lines) for case in self._cases(row)]
        return [c for c in found if c.us > self.least_us and (not self.kinds or c.kind in self.kinds)]

    def _cases(self, row: Mapping[str, str]) -> Iterator[Case]:
        """The cases of a row."""
        if "batch_size" in row:
            columns = ("batch_size", "num_heads", "num_key_value_heads", "query_length", "key_length", "head_dim")
            causal = int(int(row["query_length"]) > 1)
            yield Case("attention", (*(int(row[c]) for c in columns), causal), float(row["us"]), self.dtype)
        elif "bf16_us" in row:
            if text := row[f"{self.dtype.replace('i8', 'int8')}_us"]:
                yield Case("gemm", (int(row["m"]), int(row["n"]), int(row["k"])), float(text), self.dtype)
        elif "m" in row:
            us = float(row["us"]) if "us" in row else float(row["latency_ms"]) * 1e3
            yield Case("gemm", (int(row["m"]), int(row["n"]), int(row["k"])), us, self.dtype)
        elif "op" in row:
            yield Case(row["op"], _numbers(row["shape"]), float(row["measured_us"]), self.dtype)
        else:
            yield self._workload({key.lower(): value for key, value in row.items()})

    def _workload(self, row: Mapping[str, str]) -> Case:
        """A case whose sizes stand in its name."""
        kind, _, sizes = row["workload"].rpartition("_")
        numbers = _numbers(sizes)
        if "latency_ns" in row:
            us = float(row["latency_ns"]) / 1e3
        else:
            us = float(next(text for key, text in row.items() if key != "workload")) / self.clock_mhz
        if kind == "gemm":
            m, k, n = numbers
            return Case("gemm", (m, n, k), us, self.dtype)
        if kind.startswith("ffn"):
            return Case("ffn", (*numbers, int(kind == "ffn_gated")), us, self.dtype)
        if kind == "attn_enc" or kind == "attention":
            heads, length, size = numbers
            return Case("attention", (1, heads, heads, length, length, size, 0), us, self.dtype)
        if kind == "attn_dec":
            heads, shared, queries, keys, size = numbers
            return Case("attention", (1, heads, shared, queries, keys, size, 0), us, self.dtype)
        return Case(kind, numbers, us, self.dtype)


def _numbers(text: str) -> tuple[int, ...]:
    """The sizes in a text like `256x128x64`."""
    return tuple(map(int, re.findall(r"\d+", text)))


SETS = (
    Measured("A100 GEMM, n and k up to 4096", "a100-class", "a100_gemm_bf16.csv", "bf16", least_us=10, goal=0.06),
    Measured("A100 GEMM, n or k above 4096", "a100-class", "a100_gemm_bf16_large.csv", "bf16", least_us=10, goal=0.08),
    Measured("H100 GEMM", "h100-class", "h100_gemm_bf16.csv", "bf16", least_us=10, goal=0.045),
    Measured("810E GEMM bf16", "zhenwu-810e", "zw810e_gemm.csv", "bf16", least_us=10, goal=0.08),
    Measured("810E GEMM int8", "zhenwu-810e", "zw810e_gemm.csv", "i8", least_us=10, goal=0.08),
    Measured("H100 attention, context", "h100-class", "h100_attention_context.csv", "bf16", least_us=10, goal=0.12),
    Measured("H100 attention, generation", "h100-class", "h100_attention_generation.csv", "bf16", goal=0.15),
    Measured("TPU v6e GEMM", "tpuv6e-core", "v6e_ops.csv", "f16", ("gemm",), goal=0.09),
    Measured("TPU v6e attention, feed-forward", "tpuv6e-core", "v6e_ops.csv", "f16", ("attention", "ffn"), goal=0.20),
    Measured("TPUv3 GEMM", "tpuv3-core", "tpuv3_gemm.csv", "f32", clock_mhz=940, goal=0.10),
    Measured("TPUv3 operators", "tpuv3-core", "tpuv3_ops.csv", "f32", clock_mhz=940, goal=0.15),
    Measured(
        "A100 softmax", "a100-class", "a100_softmax_layernorm.csv", "f16", ("softmax",), goal=0.20, increments=True
    ),
    Measured(
        "A100 layer norm", "a100-class", "a100_softmax_layernorm.csv", "f16", ("layernorm",), goal=0.20, increments=True
    ),
)

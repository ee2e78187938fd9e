"""Measured matrix products: what was run, on what, and how long it took.

Invariant: a case is a row of a file in `data/` (or of one given on the command line) as it stands; nothing is left out
but what the set's `least_us` excludes.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Case:
    """y[m, n] = x[m, k] . w[n, k]^T in `us` microseconds."""

    m: int
    n: int
    k: int
    us: float

    @property
    def name(self) -> str:
        """m x n x k."""
        return f"{self.m} x {self.n} x {self.k}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One machine's measurements. Shorter cases than `least_us` are launch overhead and timer noise; `goal` is the mean
    absolute error to stay within."""

    name: str
    target: Path
    file: Path
    dtype: str
    clock_mhz: float = 0.0
    least_us: float = 0.0
    goal: float = 0.0

    def cases(self) -> list[Case]:
        """The cases, in the file's order. Columns: m, n, k, latency_ms; or Workload (name_MxNxK) and cycles."""
        with self.file.open(encoding="utf-8", newline="") as file:
            found = [self._case(row) for row in csv.DictReader(file)]
        return [case for case in found if case.us > self.least_us]

    def _case(self, row: dict[str, str]) -> Case:
        if "latency_ms" in row:
            return Case(int(row["m"]), int(row["n"]), int(row["k"]), float(row["latency_ms"]) * 1e3)
        shape = re.search(r"(\d+)x(\d+)x(\d+)", row["Workload"])
        cycles = next(value for key, value in row.items() if key != "Workload")
        if shape is None or not self.clock_mhz:
            raise ValueError(f"{self.file}: {row} is neither m, n, k, latency_ms nor a workload in cycles")
        m, n, k = (int(text) for text in shape.groups())
        return Case(m, n, k, float(cycles) / self.clock_mhz)


SETS = (
    Measured(
        "A100 bf16", HERE / "targets/a100-class.toml", HERE / "data/a100_gemm_bf16.csv", "bf16", least_us=10, goal=0.08
    ),
    Measured(
        "TPUv3 f32", HERE / "targets/tpuv3-core.toml", HERE / "data/tpuv3_gemm.csv", "f32", clock_mhz=940, goal=0.10
    ),
)

DTYPES = {"bf16": TensorProto.BFLOAT16, "f16": TensorProto.FLOAT16, "f32": TensorProto.FLOAT}


def product_model(case: Case, dtype: str) -> onnx.ModelProto:
    """The case as an ONNX model: a linear layer without bias, whose weights are an input [n, k]."""
    element = DTYPES[dtype]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="product", transB=1)],
        "product",
        [
            helper.make_tensor_value_info("x", element, [case.m, case.k]),
            helper.make_tensor_value_info("w", element, [case.n, case.k]),
        ],
        [helper.make_tensor_value_info("y", element, [case.m, case.n])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

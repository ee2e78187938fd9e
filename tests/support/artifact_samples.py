"""A small program with weights and a host part, to be saved and damaged."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from ppuc.ir.program import MemTensor
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, Space, TensorType
from ppuc.targets.artifact import Artifact, IOSpec
from tests.support.program_samples import BIAS_RELU, gemm_program


def sample(m: int = 64, n: int = 256, k: int = 64) -> Artifact:
    """A small program with a bf16 weight, an f32 bias and a ragged i8 table."""
    rng = np.random.default_rng(3)
    program = gemm_program(m=m, n=n, k=k)
    table = MemTensor("t", DType.I8, 13, Space.HBM, 1 << 20, "const", "t")
    constants = {
        "w": rng.standard_normal((k, n), np.float32).astype(ml_dtypes.bfloat16),
        "b": Resource.of(rng.standard_normal(n, np.float32), "bias"),
        "t": rng.integers(-128, 127, 13, np.int8),
    }
    return Artifact(
        replace(program, tensors=(*program.tensors, table)),
        (BIAS_RELU,),
        constants,
        (IOSpec("X:0", "x", TensorType(DType.F32, (m, k))),),
        (IOSpec("out/Y", "y", TensorType(DType.F32, (m, n))),),
        {"model": "mlp.onnx", "digest": "sha256:00", "compiler": "0.1.0", "options": '{"precision": "bf16"}'},
    )

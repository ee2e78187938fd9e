"""Cycles on serial systolic arrays against SCALE-Sim's closed form, which its cycle counts follow exactly.

Invariant: a case is compiled and simulated like any measured one; only cycles on the tensor engine are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.predict.case import Case
from ppuc.compiler.predict.operators import model_of
from ppuc.ir.program import Queue
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from ppuc.targets.simulator.run import simulate

NAME = "SCALE-Sim, serial arrays"
GOAL = 1e-12
"""Every case is exact."""

SIDES = (32, 128)
DATAFLOWS = ("weight", "output")

GEMMS = (
    (1, 129, 128), (1, 1000, 2048), (7, 7, 7), (16, 4096, 4096), (32, 32, 32), (32, 32, 1000), (33, 31, 65),
    (64, 64, 10000), (100, 100, 100), (128, 128, 4096), (197, 768, 768), (197, 3072, 768), (197, 768, 3072),
    (300, 200, 700), (511, 513, 1025), (512, 512, 512), (1000, 64, 300), (1024, 1024, 1024), (2048, 512, 768),
    (4096, 1024, 1024), (8192, 64, 64), (10000, 128, 256), (12544, 64, 147), (20000, 256, 512),
)  # fmt: skip
"""m, n, k."""

LAYERS = (
    (224, 3, 64, 7, 2), (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 64, 256, 1, 1), (56, 256, 64, 1, 1),
    (56, 256, 128, 1, 1), (56, 128, 128, 3, 2), (56, 256, 512, 1, 2), (28, 128, 512, 1, 1), (28, 512, 128, 1, 1),
    (28, 128, 128, 3, 1), (28, 512, 256, 1, 1), (28, 256, 256, 3, 2), (28, 512, 1024, 1, 2), (14, 256, 1024, 1, 1),
    (14, 1024, 256, 1, 1), (14, 256, 256, 3, 1), (14, 1024, 512, 1, 1), (14, 512, 512, 3, 2), (14, 1024, 2048, 1, 2),
    (7, 512, 2048, 1, 1), (7, 2048, 512, 1, 1), (7, 512, 512, 3, 1),
)  # fmt: skip
"""The convolutions of ResNet-50: side of the image, channels, filters, side of the window, stride."""


def record() -> dict[str, Any]:
    """Compile and simulate all cases; prints those that differ. Returns what results.json holds of a set."""
    cases, classes = [], {}
    for side in SIDES:
        for dataflow in DATAFLOWS:
            target = _array(side, dataflow)
            found = [
                {
                    "case": case.name,
                    "cycles": _cycles(case, target),
                    "closed_form": closed_form(*product, side, dataflow),
                }
                for case, product in _cases()
            ]
            errors = [abs(c["cycles"] / c["closed_form"] - 1) for c in found]
            classes[f"{dataflow}-stationary {side} x {side}"] = len(found), sum(errors) / len(errors)
            cases += found
    wrong = [c for c in cases if c["cycles"] != c["closed_form"]]
    print(f"\n{NAME}: {len(cases) - len(wrong)} of {len(cases)} cases exact")
    for c in wrong:
        print(f"  {c['case']}: {c['cycles']} cycles, closed form {c['closed_form']}")
    mape = sum(abs(c["cycles"] / c["closed_form"] - 1) for c in cases) / len(cases)
    return {"mape": mape, "goal": GOAL, "given": False, "classes": classes, "cases": cases}


def closed_form(m: int, n: int, k: int, side: int, dataflow: str) -> int:
    """SCALE-Sim's cycles of a product on a side x side array: its folds, one after another."""
    if dataflow == "weight":
        return -(-k // side) * -(-n // side) * (3 * side + m - 2) - 1
    return -(-m // side) * -(-n // side) * (2 * side + k - 2) - 1


def _array(side: int, dataflow: str) -> Target:
    """The validation core with a serial array of side x side."""
    target = load_target("systolic-128")
    fragment = [1, side, side] if dataflow == "weight" else [side, side, 1]
    shapes = [f"tensor.fragment.{dtype}={fragment}" for dtype in target.tensor.fragment]
    return override(target, "tensor.overlap=serial", f"tensor.dataflow={dataflow}", *shapes)


def _cases() -> Iterator[tuple[Case, tuple[int, int, int]]]:
    """Each case with the m, n, k of its product."""
    for m, n, k in GEMMS:
        yield Case("gemm", (m, n, k), "f32"), (m, n, k)
    for size, channels, filters, window, stride in LAYERS:
        pad = window // 2
        out = (size + 2 * pad - window) // stride + 1
        yield (
            Case("conv", (1, size, size, channels, filters, window, stride, pad), "f32"),
            (out * out, filters, channels * window * window),
        )


def _cycles(case: Case, target: Target) -> int:
    """Cycles to the last result, without those between kernels."""
    artifact = compile_model(model_of(case), CompileOptions(target)).artifact
    profile = simulate(artifact.program, artifact.vectors, target, {}, None).profile
    return round(sum(kernel.engine.get(Queue.TENSOR, 0.0) for kernel in profile.kernels)) - 1


__all__ = ["GOAL", "NAME", "closed_form", "record"]

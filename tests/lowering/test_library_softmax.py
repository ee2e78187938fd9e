"""Long rows of a softmax on machines whose library walks them in thread blocks (`softmax` in a target)."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.predict.case import Case
from ppuc.compiler.predict.prediction import Predictor
from ppuc.ir.kernel import Kernel, Load, Loop, Stmt
from ppuc.ir.types import Space
from ppuc.targets.description import Target, load_target, override
from tests.support.onnx_text import model_of

HELD = 64
TINY = load_target("ppu-tiny")
LIBRARY = override(TINY, f"softmax.held={HELD}", "softmax.rows=2")


def kernel_of(text: str, target: Target = LIBRARY) -> Kernel:
    compiled = compile_model(model_of(text), CompileOptions(target))
    assert compiled.module is not None
    (kernel,) = compiled.module.kernels
    return kernel


def loads(stmts: tuple[Stmt, ...]) -> int:
    """Loads of a walk over all loops, each counted once."""
    return sum(loads(s.body) if isinstance(s, Loop) else isinstance(s, Load) for s in stmts)


def softmax(rows: int, columns: int, axis: int = -1) -> str:
    return f"m (float[{rows}, {columns}] x) => (float[{rows}, {columns}] y) {{ y = Softmax<axis={axis}>(x) }}"


def test_a_block_walks_its_row_three_times_and_loads_nothing_ahead() -> None:
    kernel = kernel_of(softmax(6, HELD + 1))
    assert loads(kernel.body) == 3
    (ring,) = (b for b in kernel.buffers if b.name == "t")
    assert (ring.shape, ring.depth) == ((2, HELD + 1), 1), "two rows share a unit"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (softmax(6, HELD), LIBRARY),
        (softmax(6, HELD + 1), TINY),
        (softmax(HELD + 1, 6, axis=0), LIBRARY),
        (f"m (float[6, {HELD + 1}] x) => (float[6, 1] y) {{ y = ReduceMax<axes=[1]>(x) }}", LIBRARY),
    ],
    ids=["short rows", "no such library", "another axis", "a maximum alone"],
)
def test_other_kernels_load_each_element_once(text: str, target: Target) -> None:
    kernel = kernel_of(text, target)
    assert loads(kernel.body) == 1
    assert all(b.depth > 1 for b in kernel.buffers if b.space is Space.L1)


def test_a_layer_norm_is_not_a_softmax() -> None:
    n = HELD + 1
    kernel = kernel_of(f"m (float[6, {n}] x, float[{n}] s) => (float[6, {n}] y) {{ y = LayerNormalization(x, s) }}")
    assert loads(kernel.body) == 2, "elements and scales"


@pytest.mark.parametrize("columns", [HELD - 1, HELD, HELD + 1, 300, 3000, 5000])
def test_values_are_right(columns: int) -> None:
    """3,000 columns are two rows of 12 KB, of which l1 (16 KB) holds parts."""
    model = model_of(softmax(5, columns))
    x = np.random.default_rng(columns).standard_normal((5, columns), np.float32)
    result = ppuc.compile(model, target=LIBRARY).run({"x": x})
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(result.outputs["y"], expected, rtol=1e-5, atol=1e-7)
    assert not result.profile.hazards


def test_walks_after_the_first_read_l2_and_add_to_the_time() -> None:
    a100 = load_target("a100-class")
    sizes = (2048, 4096)
    walked = Predictor(a100, intervals=False).predict(Case("softmax", sizes, "f16"), "")
    kept = Predictor(override(a100, "softmax.held=0"), intervals=False).predict(Case("softmax", sizes, "f16"), "")
    bytes_of_x = 2 * sizes[0] * sizes[1]
    assert kept["l2_bytes"] == 0
    assert walked["l2_bytes"] == pytest.approx(2 * bytes_of_x, rel=0.01)
    assert walked["hbm_bytes"] == pytest.approx(2 * bytes_of_x, rel=0.01)
    assert walked["us"] > 1.5 * kept["us"]

"""The table of precisions agrees with the formats that quantization knows, and is the only list of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ppuc
from ppuc.compiler.precisions import PRECISIONS, Precision, named_precision
from ppuc.compiler.quantization.plan import BLOCKS, FORMATS
from ppuc.compiler.validation.tolerance import UNIT_ROUNDOFF
from ppuc.ir.errors import UsageError

ROOT = Path(__file__).parents[2]
OWN_NAMES = {"fp16", "fp8", "8bit", "mixed"}
"""Precisions that are not called like a format: who says one of these means a precision."""

every = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)


@every
def test_layers_have_a_format_that_policies_know(precision: Precision) -> None:
    if precision.quantized:
        assert precision.layers in FORMATS
        assert precision.weights_only == (precision.layers in BLOCKS)
        assert precision.scales_activations == (not precision.weights_only)
    assert precision.quantized or not (precision.weights_only or precision.per_layer or precision.scales_activations)


@every
def test_rounding_is_at_least_that_of_contractions(precision: Precision) -> None:
    """Tolerances may not promise more than the narrowest operands hold."""
    rounding, contractions = precision.rounding_type, precision.contraction_type
    if contractions is None:
        assert rounding is None
        return
    assert rounding is not None
    assert UNIT_ROUNDOFF[rounding] >= UNIT_ROUNDOFF[contractions]
    if precision.quantized and (stored := FORMATS[precision.layers][0]).is_float:
        assert rounding is stored


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        named_precision("fp7")
    listed = "model, fp32, bf16, fp16, fp8, int8, 8bit, mixed, mxfp8, mxfp4, nvfp4"
    assert str(refused.value) == f"--precision: unknown precision 'fp7'\n  expected: {listed}"


def test_the_api_names_all_of_them() -> None:
    assert f"`precision` is one of {', '.join(PRECISIONS)};" in " ".join(str(ppuc.compile.__doc__).split())


def test_nothing_else_lists_precisions() -> None:
    """But for the default of `ppuc quantize`."""
    allowed = {"compiler/commands/quantize.py": {"8bit"}}
    for path in sorted((ROOT / "compiler").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name == "compiler/precisions.py":
            continue
        constants = {n.value for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Constant)}
        assert not constants & OWN_NAMES - allowed.get(name, set()), name

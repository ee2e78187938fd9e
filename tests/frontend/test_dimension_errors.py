"""What the frontend says about open dimensions, and values given for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError, UsageError
from tests.frontend.error_texts import RELU, lines, text_of
from tests.support.onnx_text import model_of


def open_model() -> onnx.ModelProto:
    model = model_of(
        "g (float[N, 3, M, 2] x, float[N] z, float[4] w) => (a, b, c) { a = Relu(x) b = Neg(z) c = Neg(w) }"
    )
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = -1
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "n rows"
    return model


def test_unbound_dimensions() -> None:
    assert text_of(ModelError, open_model()) == lines(
        "g: dimensions of the inputs are not fixed",
        "got: x: f32[N, 3, n rows, ?]; z: f32[N]",
        "expected: a size for each",
        "hint: add --dim N=... --dim 'n rows'=... --dim x:3=...",
    )
    assert text_of(ModelError, open_model(), dims={"N": 2, "n rows": 3}) == lines(
        "g: dimensions of the inputs are not fixed",
        "got: x: f32[N, 3, n rows, ?]",
        "expected: a size for each",
        "hint: add --dim x:3=...",
    )


def test_unknown_rank() -> None:
    model = model_of(RELU)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert text_of(ModelError, model) == lines(
        "g: dimensions of the inputs are not fixed",
        "got: x: f32 of unknown rank",
        "expected: a size for each",
        "hint: add --dim x:0=... (and so on, one for each axis)",
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dims": {"B": 1}}, ["g: the model has no open dimension 'B'", "expected: one of N, n rows, x:3"]),
        ({"dims": {"w:4": 1}}, ["g: the model has no open dimension 'w:4'", "expected: one of N, n rows, x:3"]),
        ({"dims": {"N": -1}}, ["g: the size of dimension 'N' must be a whole number", "got: -1"]),
        ({"dims": {"N": 2.0}}, ["g: the size of dimension 'N' must be a whole number", "got: 2.0"]),
        (
            {"dims": {"N": 2}, "shapes": {"z": [3]}},
            [
                "g: dimension 'N' has two sizes",
                "got: 2, and 3 from axis 0 of input 'z'",
                "hint: where 'N' means different things, add --dim z:0=3",
            ],
        ),
        (
            {"dims": {"w:0": 9}},
            ["g: the size does not fit input 'w'", "got: 9 for axis 0", "expected: w: f32[4]"],
        ),
        ({"shapes": {"w": [4, 4]}}, ["g: the size does not fit input 'w'", "got: [4, 4]", "expected: w: f32[4]"]),
        ({"shapes": {"v": [4]}}, ["g: the model has no input 'v'", "expected: one of x, z, w"]),
    ],
    ids=str,
)
def test_dimensions_that_do_not_suit_the_model(options: Mapping[str, object], expected: Sequence[str]) -> None:
    assert text_of(UsageError, open_model(), **options) == lines(*expected)


@pytest.mark.parametrize(
    "given",
    [
        {"dims": {"N": 2, "n rows": 4, "x:3": 5, "z:0": 3}},
        {"dims": {"N": 2, "z:0": 3}, "shapes": {"x": [2, 3, 4, 5], "z": [3]}},
        {"shapes": {"x": [2, 3, 4, 5], "z": [3]}},
    ],
    ids=str,
)
def test_a_symbol_may_mean_different_things(given: Mapping[str, Any]) -> None:
    """Exporters name axes alike that have nothing to do with each other; sizes given for an axis itself count, and
    nothing else takes its size from such a symbol."""
    imported = load_model(open_model(), **given)
    assert {n: v.type.dims for n, v in imported.inputs} == {"x": (2, 3, 4, 5), "z": (3,), "w": (4,)}
    assert imported.dims == {"n rows": 4}


def test_a_dimension_of_a_fixed_model() -> None:
    assert text_of(UsageError, model_of(RELU), dims={"N": 1}) == lines(
        "g: the model has no open dimension 'N'", "expected: none: all are fixed"
    )

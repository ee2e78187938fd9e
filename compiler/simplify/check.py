"""Checks that a simplified model is equivalent to the original: ONNX Runtime runs both on the same random inputs.

Invariant: the magnitude of the inputs is chosen so that the original's results are finite and not all zero, if
possible; symbolic dimensions have the sizes that the weights require, else sizes with which the original runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from ppuc.compiler.frontend.bind import InputDecl, bind_inputs, declared_inputs
from ppuc.compiler.frontend.source import overridable_initializers
from ppuc.compiler.inputs import InputSpec, generate_all
from ppuc.compiler.simplify.convert import inputs_of, static_types, to_graph
from ppuc.compiler.simplify.symbolic import infer
from ppuc.compiler.simplify.symbolic_demands import demanded_sizes
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import FP32_FLOOR, UNIT_ROUNDOFF, Tolerance
from ppuc.compiler.validation.values import compare_values
from ppuc.ir.errors import ModelError
from ppuc.ir.types import DType

if TYPE_CHECKING:
    import onnx

TRIED_SIZES = (2, 1, 8, 32, 64, 224, 256)
"""Sizes of symbolic dimensions that the weights do not determine, tried in order until ONNX Runtime runs the
original."""
MOST_TRIED = 1 << 25
"""Maximum elements of an input; sizes that exceed it are not tried."""
MAGNITUDES = (0, -40, -80, -120, 40, 80)
"""Powers of two to scale random inputs by, tried in order until the results are informative."""


def check(
    original: onnx.ModelProto, result: onnx.ModelProto, where: str, seed: int = 0
) -> tuple[dict[str, int], tuple[Comparison, ...]]:
    """Run both models on the same random inputs. Returns the sizes of the symbols and the comparisons. Raises
    ModelError if ONNX Runtime rejects the original for every size tried, or the result."""
    oracle, refusal = Oracle(original), None
    declarations, keys = _declarations(original, where)
    for sizes, specs in _trials(original, declarations, keys, where):
        feeds = {**generate_all(specs, "random", seed), **_defaults(original)}
        try:
            feeds, wanted = informative_inputs(oracle, feeds)
        except ModelError as error:
            refusal = refusal or error
            continue
        got = Oracle(result).run(feeds)
        return sizes, tuple(
            c for name, want in wanted.items() for c in compare_values(name, got[name], want, tolerance)
        )
    assert refusal is not None
    if not keys:
        raise refusal
    raise ModelError.of(
        where,
        "cannot be checked: ONNX Runtime runs it with none of the sizes that were tried for its open dimensions",
        got=refusal.diagnostics[0].got,
        hint=f"add {' '.join(f'--dim {key}=...' for key in keys)}, or leave out the check with --no-check",
    )


def _declarations(model: onnx.ModelProto, where: str) -> tuple[tuple[InputDecl, ...], list[str]]:
    """The inputs that have no default, and the `--dim` keys of their open dimensions."""
    defaults = overridable_initializers(model)
    declarations = declared_inputs([i for i in inputs_of(model) if i.name not in defaults], where)
    keys = {
        d if isinstance(d, str) else f"{i.name}:{axis}"
        for i in declarations
        for axis, d in enumerate(i.shape or ())
        if not isinstance(d, int)
    }
    return declarations, sorted(
        k for k in keys if not set(k) & set("+-*/ ")
    )  # the values of expressions follow from their symbols


def _trials(
    model: onnx.ModelProto, declarations: Sequence[InputDecl], keys: Sequence[str], where: str
) -> Iterator[tuple[dict[str, int], list[InputSpec]]]:
    """Candidate sizes of the open dimensions, with inputs of those sizes."""
    demanded: Mapping[str, int] = {}
    if keys:
        g = to_graph(model, where)
        infer(g, static_types(g))
        demanded = {k: n for k, n in demanded_sizes(g).items() if k in keys}
    for size, asked in product(TRIED_SIZES if keys else TRIED_SIZES[:1], (demanded, {}) if demanded else ({},)):
        sizes = {**dict.fromkeys(keys, size), **asked}
        types, _ = bind_inputs(declarations, sizes, {}, where)
        if size == TRIED_SIZES[0] or sum(t.elements for t in types) <= MOST_TRIED:
            yield sizes, [InputSpec(d.name, t) for d, t in zip(declarations, types, strict=True)]


def _defaults(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Values for inputs that have a default: numbers near the default, or, for integers, which may be sizes or indices,
    the default itself."""
    defaults = {name: numpy_helper.to_array(tensor) for name, tensor in overridable_initializers(model).items()}
    return {n: a * a.dtype.type(1.125) if a.dtype.kind == "f" else a for n, a in defaults.items()}


def informative_inputs(oracle: Oracle, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Inputs scaled to a magnitude with informative results (unscaled if there is none), and the results. Raises
    ModelError if ONNX Runtime rejects them."""
    first = oracle.run(feeds)
    if _is_informative(first) or not any(a.dtype in (np.float32, np.float64) for a in feeds.values()):
        return dict(feeds), first
    for power in MAGNITUDES[1:]:
        scaled = {n: np.ldexp(a, power) if a.dtype in (np.float32, np.float64) else a for n, a in feeds.items()}
        results = oracle.run(scaled)
        if _is_informative(results):
            return scaled, results
    return dict(feeds), first


def _is_informative(results: Mapping[str, Any]) -> bool:
    """Whether every floating-point result has an element that is finite and not zero."""
    arrays = [a for a in results.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size]
    return all(bool((np.isfinite(a) & (a != 0)).any()) for a in arrays)


def tolerance(reference: np.ndarray) -> Tolerance:
    """The tolerance: reassociation in f32 stays within 90 dB, narrower formats within a few of their rounding steps;
    integers are equal."""
    dtype = DType.of(reference.dtype)
    if not dtype.is_float:
        return Tolerance(0.0)
    return Tolerance(max(FP32_FLOOR, 8 * UNIT_ROUNDOFF[dtype]))

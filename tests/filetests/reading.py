"""The module of a case: its text, completed by a header and a graph where it has none."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from ppuc.compiler.inputs import RANGE_OPTION, input_ranges
from ppuc.ir.module import Module
from ppuc.ir.resource import Resource
from ppuc.ir.text import parse_module
from ppuc.ir.types import DType, TensorType, parse_type
from tests.filetests.case import Case

_RANDOM = re.compile(r"random ([a-z]\w*\[[^]]*\])(?: (\d+))?")


def read_module(case: Case) -> Module:
    """The module that a text spells. A text without a module header gets one for the target: its graph's parameters and
    results are the inputs and outputs. A text without a graph gets an empty one. Raises TextError."""
    padded = "\n" * (case.first - 1) + case.text + "\n"
    code = [case.source(case.first + i) for i in range(case.text.count("\n") + 1)]
    if any(line.startswith("module ") for line in code):
        return parse_module(padded, random_constant, str(case.path))
    if not any(line.startswith("graph ") for line in code):
        padded += "graph @none() -> () {\n}\n"
    target = case.recipe.target
    module = parse_module(padded + 'module {\n  target "" ""\n}\n', random_constant, str(case.path))
    hash = target.hash if module.program is None else module.program.target_hash
    ranges = {RANGE_OPTION + name: str(high) for name, high in input_ranges(module.graph).items()}
    return replace(
        module,
        target=target.name,
        target_hash=hash,
        options=tuple(sorted({**dict(case.recipe.options), **ranges}.items())),
        inputs=tuple((p.name, p.name) for p in module.graph.params),
        outputs=tuple((r.name, r.name) for r in module.graph.results),
    )


def random_constant(key: str) -> Resource:
    """The constant that `res("random f32[8, 16]", "w")` names; a number after the type gives other elements. Floats are
    normal, integers in -8..7 (0..15 when unsigned). Raises KeyError for another key."""
    found = _RANDOM.fullmatch(key)
    if found is None:
        raise KeyError(key)
    type = parse_type(found[1])
    return Resource(type, loader=lambda: _elements(type, int(found[2] or 0)), key=key)


def _elements(type: TensorType, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *str(type).encode()])
    if type.dtype.is_float:
        return rng.standard_normal(type.dims).astype(type.dtype.numpy)
    low = 0 if type.dtype is DType.BOOL or type.dtype.value.startswith("u") else -8
    return rng.integers(low, 2 if type.dtype is DType.BOOL else low + 16, type.dims).astype(type.dtype.numpy)

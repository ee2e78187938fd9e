"""Which ops are claimed to run on the PPU, and the strategy of each.

A strategy fills in a Sample whose op and opset are chosen already. Invariant: `STRATEGIES` covers `claimed_ops()`
exactly (tests/fuzz/test_ops.py).
"""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Callable

import numpy as np
import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from ppuc.compiler.frontend.registry import IMPORTERS, register_importers
from tests.fuzz.sample import TYPES, Node, Sample, UnsuitedError

OLDEST = 7
FAMILIES = (
    *("attention", "contraction", "control", "elementwise", "expanded", "moving", "normalization", "quantized"),
    *("recurrent", "reduction", "shaping", "spectral", "windows"),
)
CONTROL = ("If", "Loop", "Scan")
ON_HOST = frozenset({"Bernoulli", "SequenceMap"})
"""Ops with an ONNX function body that stay on the host all the same: random numbers, and sequences."""

Key = tuple[str, str]
"""Domain ("" for the standard one) and op type."""
Strategy = Callable[[Sample], None]
STRATEGIES: dict[Key, Strategy] = {}


def strategy(*ops: str, domain: str = "") -> Callable[[Strategy], Strategy]:
    """Register the decorated function for ops of `domain`."""

    def add(function: Strategy) -> Strategy:
        for op in ops:
            if (domain, op) in STRATEGIES:
                raise ValueError(f"two strategies for {op}")
            STRATEGIES[domain, op] = function
        return function

    return add


def load_strategies() -> dict[Key, Strategy]:
    """All of them; their modules register them."""
    for family in FAMILIES:
        importlib.import_module(f"tests.fuzz.{family}")
    return STRATEGIES


@functools.cache
def claimed_ops() -> tuple[Key, ...]:
    """Ops that the frontend imports or expands by ONNX's own definition."""
    register_importers()
    standard = {s.name: s for s in onnx.defs.get_all_schemas() if s.domain == ""}
    expanded = {n for n, s in standard.items() if s.has_function or s.has_context_dependent_function}
    found = {*IMPORTERS, *(("", n) for n in (*expanded, *CONTROL) if n not in ON_HOST)}
    return tuple(sorted(found))


@functools.cache
def opsets_of(key: Key) -> tuple[int, ...]:
    """Opsets to try: the first and the last of each version that the op had from opset 7 on."""
    domain, op = key
    newest = onnx.defs.onnx_opset_version()
    if domain:
        return (13, 17, 21)
    since = sorted(
        {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.name == op}
    )
    if not since:  # no longer in the standard, but in files
        return (11, newest)
    starts = [max(v, OLDEST) for v in since if v <= newest]
    ends = [v - 1 for v in since[1:] if v - 1 >= OLDEST] + [newest]
    return tuple(sorted({*starts, *ends}))


@functools.cache
def _contributed() -> dict[str, ort.schemadef.OpSchema]:
    return {s.name: s for s in ort.get_all_operator_schema() if s.domain == "com.microsoft"}


@functools.cache
def _types(key: Key, opset: int) -> dict[str, tuple[np.dtype, ...]]:
    """Element types by parameter of the schema."""
    domain, op = key
    schema = _contributed().get(op) if domain else None
    if not domain:
        try:
            schema = onnx.defs.get_schema(op, opset)
        except onnx.defs.SchemaError:
            return {"T": (TYPES["float"],)}
    if schema is None:
        return {"T": (TYPES["float"],)}
    return {t.type_param_str: _known(t.allowed_type_strs) for t in schema.type_constraints}


def _known(allowed: list[str]) -> tuple[np.dtype, ...]:
    names = [a.removeprefix("tensor(").removesuffix(")") for a in allowed]
    return tuple(TYPES[n] for n in names if n in TYPES)


def node_of(key: Key, source: random.Random, opset: int = 0, calm: bool = False) -> Node:
    """A node of the op, of any of its versions (0) or of the one in `opset`, and without extreme values when `calm`.
    Raises UnsuitedError when the draws make none."""
    domain, op = key
    opset = opset or opsets_of(key)[source.randrange(len(opsets_of(key)))]
    sample = Sample(source, op, domain, opset, _types(key, opset), calm)
    load_strategies()[key](sample)
    return sample.node()


def node_of_seed(key: Key, seed: int) -> Node:
    """The node of a seed: the first draws from it on that make one."""
    source = random.Random(f"{key}{seed}")
    for _ in range(50):
        try:
            return node_of(key, source)
        except UnsuitedError:
            continue
    raise UnsuitedError(f"{key}: no node of seed {seed}")

"""Random nodes of every kind agree with ONNX Runtime, from file to simulator."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_nodes import outcome
from tests.node_generator import KINDS, node_of_seed

LEAST_AGREEING = 3
"""Of eight nodes of a kind; ONNX Runtime refuses some."""


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_agree_with_onnx_runtime(kind: str) -> None:
    found = [outcome(*node_of_seed(kind, seed), "ppu-tiny") for seed in range(8)]
    assert not [why for what, why in found if what in ("differs", "fault")]
    assert sum(what == "agrees" for what, _ in found) >= LEAST_AGREEING


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(1000, 1 << 31))
def test_nodes_of_any_seed_agree(kind: str, seed: int) -> None:
    what, why = outcome(*node_of_seed(kind, seed), "ppu-tiny")
    assert what in ("agrees", "refused", "no oracle"), why

"""Random nodes of every op that ppuc claims agree with ONNX Runtime or onnx.reference, from file to simulator.

PPUC_FUZZ_EXAMPLES sets how many nodes of each op there are; `python -m benchmarks.fuzz_ops` tells more about them.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from benchmarks import fuzz_models
from tests.fuzz.judging import Fate, by_onnxruntime, judged, outcome_of
from tests.fuzz.models import model_of_seed
from tests.fuzz.registry import Key, claimed_ops, load_strategies, node_of, node_of_seed, opsets_of
from tests.fuzz.sample import Node, UnsuitedError

EXAMPLES = int(os.environ.get("PPUC_FUZZ_EXAMPLES", "2"))
TARGET = "ppu-tiny"


def test_every_claimed_op_has_a_strategy() -> None:
    assert set(load_strategies()) == set(claimed_ops())


@pytest.mark.parametrize("key", claimed_ops(), ids=lambda key: ".".join(filter(None, key)))
def test_nodes_agree(key: Key) -> None:
    found = [outcome_of(node_of_seed(key, seed), TARGET) for seed in range(EXAMPLES)]
    assert not [outcome.why for outcome in found if outcome.is_wrong]


@settings(max_examples=20 * EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(claimed_ops()), source=st.randoms(use_true_random=False))
def test_nodes_of_any_draw_agree(key: Key, source: random.Random) -> None:
    """Draws that hypothesis can shrink."""
    try:
        node = node_of(key, source)
    except UnsuitedError:
        reject()
    outcome = outcome_of(node, TARGET)
    assert not outcome.is_wrong, f"{node}\n{outcome.why}"


@pytest.mark.parametrize("first", range(0, 12 * EXAMPLES, 6))
def test_models_of_several_nodes_agree(first: int) -> None:
    """Host nodes among them; ONNX Runtime refuses some."""
    found = [fuzz_models.outcome(model_of_seed(seed), TARGET) for seed in range(first, first + 6)]
    assert not [why for what, why in found if what in ("differs", "fault")]
    assert sum(what in ("agrees", "with host") for what, _ in found) >= 2


def test_a_seed_is_one_node() -> None:
    for key in (("", "Conv"), ("", "Cast"), ("com.microsoft", "QGemm")):
        first, second = node_of_seed(key, 3), node_of_seed(key, 3)
        assert first.model == second.model
        assert all(np.array_equal(a, second.feeds[n], equal_nan=a.dtype.kind == "f") for n, a in first.feeds.items())
        assert node_of_seed(key, 4).model != first.model
    assert model_of_seed(5).model == model_of_seed(5).model != model_of_seed(6).model


def test_nodes_of_every_version_are_made() -> None:
    for op in ("Clip", "Slice", "Softmax", "Squeeze", "TopK"):
        made = {node_of_seed(("", op), seed).model.opset_import[0].version for seed in range(60)}
        assert made == set(opsets_of(("", op)))


def _outputs(node: Node) -> list[np.ndarray]:
    """What ONNX Runtime computes, ready to be spoiled."""
    found = by_onnxruntime(node)
    return [] if isinstance(found, str) else [np.array(x) for x in found]


def test_wrong_results_are_found() -> None:
    """One element off by a unit in the last place is seen where elements only move, by a thousandth anywhere."""
    for op, error in (("Transpose", 2.0**-23), ("Exp", 1e-3), ("MatMul", 1e-3), ("Softmax", 1e-3), ("ArgMax", 1)):
        for seed in range(40):
            node = node_of_seed(("", op), seed)
            right = outcome_of(node, TARGET)
            got = _outputs(node)
            if right.fate is not Fate.AGREES or not got or not got[0].size or got[0].dtype == bool:
                continue
            flat = got[0].reshape(-1)
            with np.errstate(all="ignore"):
                flat[-1] = flat[-1] + np.asarray(error if op == "ArgMax" else flat[-1] * error).astype(flat.dtype)
            if flat.dtype in (np.float32, np.int64) and np.isfinite(flat[-1]) and abs(float(flat[-1])) > 1e-3:
                assert judged(node, got).fate is Fate.DIFFERS, f"{node}"
                break
        else:
            raise AssertionError(f"no node of {op} was suited")

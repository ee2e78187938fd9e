"""Random models by trial agree with ONNX Runtime: a few seeds here, thousands with `benchmarks/fuzz.py`."""

from __future__ import annotations

import pytest

from tests.fuzz.solved import disagreement
from tests.fuzz.trial import model_of_seed
from tests.fuzz.trial_model import SPREAD


@pytest.mark.parametrize("seed", range(36))
def test_a_model_of_a_seed(seed: int) -> None:
    model, feeds, symbols = model_of_seed(seed)
    target, precision = SPREAD[seed % len(SPREAD)]
    assert not disagreement(model, feeds, target, precision, symbols, host=True)


def test_a_seed_gives_the_same_model_every_time() -> None:
    (first, feeds, _), (second, again, _) = model_of_seed(5), model_of_seed(5)
    assert first.SerializeToString() == second.SerializeToString()
    assert {n: a.tobytes() for n, a in feeds.items()} == {n: a.tobytes() for n, a in again.items()}


def test_models_are_of_many_kinds_of_nodes() -> None:
    """Graphs in nodes, functions, codes, symbols and several types among them."""
    made = [model_of_seed(seed) for seed in range(60)]
    ops = {node.op_type for model, _, _ in made for node in model.graph.node}
    assert {"If", "Loop", "Scan", "QuantizeLinear", "Conv", "MatMul", "Reshape", "Cast", "Slice", "Pad"} <= ops
    assert len(ops) > 90
    assert any(model.functions for model, _, _ in made)
    assert any(symbols for _, _, symbols in made)
    assert len({array.dtype for _, feeds, _ in made for array in feeds.values()}) > 3

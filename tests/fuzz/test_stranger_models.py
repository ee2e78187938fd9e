"""Models of the stranger generator agree with ONNX Runtime: a few seeds here, more with `benchmarks/fuzz.py`."""

from __future__ import annotations

import pytest

from tests.fuzz.solved import disagreement
from tests.fuzz.stranger import model_of_seed
from tests.fuzz.trial_model import SPREAD


@pytest.mark.parametrize("seed", range(12))
def test_a_model_of_a_seed(seed: int) -> None:
    model, feeds, symbols = model_of_seed(seed)
    target, precision = SPREAD[seed % len(SPREAD)]
    assert not disagreement(model, feeds, target, precision, symbols, host=True)


def test_models_have_what_trial_models_seldom_have() -> None:
    """Computed operands, graphs in graphs, integers of few bits, and tensors without elements."""
    made = [model_of_seed(seed) for seed in range(40)]
    ops = {node.op_type for model, _, _ in made for node in model.graph.node}
    assert {"If", "Loop", "Shape", "Size", "ConvTranspose", "GatherND", "ScatterND", "QuantizeLinear"} <= ops
    inner = [a.g for model, _, _ in made for node in model.graph.node for a in node.attribute if a.HasField("g")]
    assert any(node.op_type in ("If", "Loop") for graph in inner for node in graph.node)
    assert len({array.dtype for _, feeds, _ in made for array in feeds.values()}) > 5

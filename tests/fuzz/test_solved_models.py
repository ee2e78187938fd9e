"""Random models with solved shapes agree with ONNX Runtime: a few seeds here, thousands with `benchmarks/fuzz.py`."""

from __future__ import annotations

import onnx
import pytest

from tests.fuzz.solved import disagreement, model_of_seed

SPREAD = [("ppu-tiny", "fp32"), ("zhenwu-m890", "bf16"), ("zhenwu-810e", "int8")]


@pytest.mark.parametrize("seed", range(36))
def test_a_model_of_a_seed(seed: int) -> None:
    model, feeds = model_of_seed(seed)
    onnx.checker.check_model(model, full_check=True)
    target, precision = SPREAD[seed % len(SPREAD)]
    assert not disagreement(model, feeds, target, precision)


def test_a_seed_gives_the_same_model_every_time() -> None:
    (first, feeds), (second, again) = model_of_seed(5), model_of_seed(5)
    assert first.SerializeToString() == second.SerializeToString()
    assert {n: a.tobytes() for n, a in feeds.items()} == {n: a.tobytes() for n, a in again.items()}

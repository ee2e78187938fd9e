"""The runner of random models: it survives a crash of the oracle, and asks onnx.reference where the oracle is off."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest

from benchmarks import fuzz
from ppuc.compiler.validation.compare import compare
from ppuc.compiler.validation.oracle import Session
from ppuc.compiler.validation.tolerance import exact
from tests.fuzz.second import agrees_otherwise, second_opinion
from tests.fuzz.trial import model_of_seed
from tests.support.onnx_text import model_of

X = {"x": np.float32([[0.5, -1.5, 2.5]])}


@pytest.mark.parametrize("seed", range(4))
def test_the_second_opinion_is_that_of_the_first_as_a_rule(seed: int) -> None:
    model, feeds, _ = model_of_seed(seed)
    want = Session.exact(model, "trial").run(feeds)
    found = second_opinion(model, feeds)
    for output, array in zip(model.graph.output, want, strict=True):
        np.testing.assert_allclose(found[output.name], array, rtol=1e-2, atol=1e-2)


def test_a_program_that_the_second_opinion_confirms_is_not_wrong() -> None:
    model = model_of("g (float[1, 3] x) => (float[1, 3] y) { r = Round(x) y = Neg(r) }")
    right, wrong = np.float32([[0, 2, -2]]), np.float32([[0, 2, -3]])
    complaint = compare("y", right, wrong, exact())
    assert agrees_otherwise(model, X, {"y": right}, [complaint])
    assert not agrees_otherwise(model, X, {"y": wrong}, [replace(complaint)])


def made(seed: int, layers: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]:
    return model_of("g (float[1, 3] x) => (float[1, 3] y) { y = Neg(x) }"), X, {}


def outcome_of(monkeypatch: pytest.MonkeyPatch, generator: fuzz.Generator, seconds: float = 60) -> tuple[str, str]:
    monkeypatch.setitem(fuzz.GENERATORS, "trial", generator)
    return fuzz.outcome((1, "ppu-tiny", "model", 3, "trial", False), seconds)


def test_a_crash_of_the_oracle_is_no_failure_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(seed: int, layers: int) -> fuzz.Made:
        os.kill(os.getpid(), signal.SIGKILL)
        return made(seed, layers)

    assert outcome_of(monkeypatch, crashing) == (fuzz.NO_ORACLE, "died of SIGKILL before the model was made")


def test_a_crash_of_the_compiler_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "disagreement", lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
    assert outcome_of(monkeypatch, made) == (fuzz.FAILED, "died of SIGKILL once the model was made")


def test_what_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "disagreement", lambda *a, **k: time.sleep(60))
    assert outcome_of(monkeypatch, made, 1) == (fuzz.FAILED, "not done after 1 s")


def test_a_right_program_agrees_and_an_error_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome_of(monkeypatch, made) == (fuzz.AGREES, "")

    def refusing(seed: int, layers: int) -> fuzz.Made:
        raise ValueError("no model")

    what, why = outcome_of(monkeypatch, refusing)
    assert what == fuzz.FAILED
    assert why.startswith("ValueError at test_second.py:")

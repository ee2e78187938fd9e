"""A repair is kept only if it improves held-out samples."""

from __future__ import annotations

import math

import numpy as np

from ppuc.compiler.passes.remarks import collecting
from ppuc.compiler.quantization.calibrate import calibrated_plan
from ppuc.compiler.quantization.held_out import kept, refusal
from ppuc.compiler.quantization.measure import Accuracy, Difference, Reference
from ppuc.compiler.quantization.repair import apply_repair
from tests.quantization.networks import convnet, prepared, samples_of

NAMES = {"v1": "logits", "v2": "cache"}


def accuracy(**levels: list[float]) -> Accuracy:
    """Outputs of unit power on samples of these SQNRs in dB."""
    return Accuracy(
        {
            name: Difference(signal=len(each), noise=sum(10 ** (-db / 10) for db in each), levels=each)
            for name, each in levels.items()
        }
    )


def test_what_wins_everywhere_is_kept() -> None:
    before, after = accuracy(v1=[20, 22, 21], v2=[30, 30, 31]), accuracy(v1=[24, 25, 25], v2=[30, 31, 31])
    assert refusal(before, after, "fit", NAMES) is None


def test_an_output_that_loses_is_not_outweighed_by_others() -> None:
    before, after = accuracy(v1=[20, 22, 21], v2=[30, 30, 31]), accuracy(v1=[17, 19.5, 18], v2=[40, 40, 41])
    found = refusal(before, after, "offsets, fit", NAMES)
    assert found is not None
    assert found.reason == "takes output 'logits' from 21.0 to 18.2 dB on held-out samples"
    assert math.isclose(found.without_db - found.repaired_db, 17 / 6)


def test_a_loss_that_may_be_chance_is_outweighed() -> None:
    before, after = accuracy(v1=[20, 22, 21], v2=[30, 30, 31]), accuracy(v1=[25, 17, 20.5], v2=[40, 40, 41])
    assert refusal(before, after, "fit", NAMES) is None


def test_what_wins_nothing_is_given_up() -> None:
    before = accuracy(v1=[20, 22, 21], v2=[30, 30, 31])
    found = refusal(before, before, "fit", NAMES)
    assert found is not None
    assert found.output == ""


def test_a_repair_fitted_to_other_data_is_not_applied() -> None:
    """Samples that are nearly black images: weights fitted to them do not generalise."""
    ready = prepared(convnet())
    rng = np.random.default_rng(3)
    (image,) = samples_of(ready, 1)
    alike = [{"x": image["x"] * 0 + 0.01 * rng.standard_normal(1).astype(np.float32)} for _ in range(8)]
    others = samples_of(ready, 4, seed=9)
    plan = calibrated_plan(ready, "e4m3", [*alike, *others])
    fitted = apply_repair(ready, plan, list(ready.feeds(alike)), "fit")
    judge = Reference(ready.module.graph, ready.feeds(others))
    assert judge.compare(ready.quantized(fitted).graph).sqnr < judge.compare(ready.quantized(plan).graph).sqnr - 1
    with collecting("quantize") as said:
        found = kept(ready, plan, fitted, "fit", others)
    assert found.plan is plan
    assert found.method == "none"
    assert found.refused is not None
    (remark,) = said.remarks
    assert (remark.kind, remark.decision) == ("missed", "repair")
    assert remark.reason.startswith("'fit' takes output 'y' from ")


def test_a_repair_that_holds_for_other_data_is_applied() -> None:
    ready = prepared(convnet())
    samples, others = samples_of(ready, 24), samples_of(ready, 8, seed=9)
    plan = calibrated_plan(ready, "e4m3", samples)
    fitted = apply_repair(ready, plan, list(ready.feeds(samples)), "fit")
    with collecting("quantize") as said:
        found = kept(ready, plan, fitted, "fit", others)
    assert found.plan is fitted
    assert found.refused is None
    assert [(r.kind, r.reason) for r in said.remarks] == [("applied", "'fit' gains on held-out samples")]

"""Policies: reading back, selection by patterns, and invalid entries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppuc.compiler.entry import compile as compile_program
from ppuc.compiler.quantization.calibrate import calibrated_plan
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.policy import read_policy, write_policy
from ppuc.ir.errors import UsageError
from tests.quantization.networks import convnet, prepared, samples_of
from tests.support.small_models import mlp


def test_a_policy_read_back_is_equal(tmp_path: Path) -> None:
    ready = prepared(convnet())
    plan = calibrated_plan(ready, "int8", samples_of(ready))
    changed = {
        "c": LayerPlan("bf16"),
        "p": replace(plan.layers["p"], format="e4m3", unsigned=(), offset=np.arange(17, dtype=np.float32)),
        "y": replace(plan.layers["y"], bias=np.arange(5, dtype=np.float32), weight_scale=np.full(5, 0.5, np.float32)),
    }
    plan = plan.with_layers(changed)
    write_policy(tmp_path / "p.toml", plan, {"model": "net"})
    back = read_policy(tmp_path / "p.toml", ready.layers)
    assert ready.quantized(back).graph == ready.quantized(plan).graph
    assert ready.quantized(back).graph != ready.module.graph
    written = (tmp_path / "p.toml").read_bytes(), (tmp_path / "p.npz").read_bytes()
    write_policy(tmp_path / "p.toml", back, {"model": "net"})
    assert written == ((tmp_path / "p.toml").read_bytes(), (tmp_path / "p.npz").read_bytes())


def test_patterns_select_layers_and_later_entries_win(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[layer]]\nname = "*"\nformat = "int8"\n[[layer]]\nname = "c"\nformat = "bf16"\n')
    plan = read_policy(file, prepared(convnet()).layers)
    assert {n: p.format for n, p in plan.layers.items()} == {"c": "bf16", "d": "int8", "p": "int8", "y": "int8"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[layer]]\nname = "convolution"', "no layer is called 'convolution'"),
        ('[[layer]]\nname = "c"\nformat = "fp7"', "the format is unknown\n  got: fp7"),
        ('[[layer]]\nname = "c"\nscale = 1', "unknown key 'scale'"),
        ('[[layer]]\nname = "c"\nscales = [0]', "scales must be positive numbers"),
        ('[[layer]]\nname = "c"\nscales = [1.0, 2.0]', "layer 'c' multiplies 1 activations\n  got: 2 scales"),
        ('[[layer]]\nformat = "bf16"', "needs a name"),
        ("[[layers]]", "unknown key 'layers'"),
        ("[[", "is not TOML"),
    ],
)
def test_policies_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_policy(file, prepared(convnet()).layers)
    assert message in str(caught.value)


def test_repaired_arrays_belong_to_their_policy(tmp_path: Path) -> None:
    ready = prepared(mlp())
    plan = Plan({"second": LayerPlan(bias=np.ones(7, np.float32))})
    write_policy(tmp_path / "p.toml", plan, {})
    np.savez(tmp_path / "p.npz", **{"second/bias": np.zeros(7, np.float32)})
    with pytest.raises(UsageError, match="are not this layer's"):
        read_policy(tmp_path / "p.toml", ready.layers)


def test_mixed_needs_a_policy() -> None:
    with pytest.raises(UsageError, match="needs a policy"):
        compile_program(mlp(), "ppu-tiny", "mixed", {"N": 1})

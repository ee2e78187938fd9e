"""Pipelines: their passes, which passes can be disabled, and that all pipelines compile correct programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppuc
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.pipeline.default import NONE, PIPELINE
from ppuc.compiler.pipeline.layers import KeepLayers
from ppuc.compiler.pipeline.pass_options import spec_of
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.compiler.pipeline.registry import OWN, PASSES
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import UsageError
from ppuc.targets.description import load_target
from tests.property.graph_generator import module_of_seed
from tests.repository.test_examples import needs_the_recogniser
from tests.support.pass_classes import Early, Needed, Renamed
from tests.support.small_models import mlp
from tests.support.whole_pipeline import compiled

OPTIONAL = [name for name, kind in OWN.items() if not kind.required and name != KeepLayers.name]
REQUIRED = [name for name, kind in OWN.items() if kind.required and name != Quantize.name]  # no pass of its own
NOISE = {"model": 0.0, "bf16": 2.0**-7}


def passes(pipeline: str = "default", **options: Any) -> tuple[Pass, ...]:
    return passes_of(CompileOptions(pipeline=pipeline, **options))


def names(steps: tuple[Pass, ...]) -> list[str]:
    return [step.name for step in steps]


def test_the_shortest_pipeline_is_what_cannot_be_left_out() -> None:
    assert passes() == PIPELINE
    assert passes("none") == NONE
    assert names(NONE) == REQUIRED
    assert [name for name in names(PIPELINE) if name in REQUIRED] == REQUIRED


def test_passes_can_be_left_out() -> None:
    assert names(passes(disabled=("fold", "cascade"))) == [n for n in names(PIPELINE) if n not in ("fold", "cascade")]
    assert names(passes(disabled=OPTIONAL)) == REQUIRED


@pytest.mark.parametrize("name", REQUIRED)
def test_required_passes_cannot(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        passes(disabled=(name,))
    assert str(caught.value) == f"--disable-pass {name}: pass '{name}' is required: {OWN[name].required}"


def test_what_is_no_pipeline() -> None:
    with pytest.raises(UsageError) as caught:
        passes("defalt")
    assert str(caught.value) == (
        "--pipeline: there is no pipeline 'defalt'\n  expected: default, none\n  hint: did you mean 'default'?"
    )
    with pytest.raises(UsageError, match="--pipeline: there is no pass 'fould'"):
        passes("fould,tile")
    with pytest.raises(UsageError, match=r"--disable-pass fould: there is no pass 'fould'"):
        passes(disabled=("fould",))
    with pytest.raises(UsageError) as caught:
        passes("fold,cascade,tile", disabled=("split-k",))
    assert str(caught.value) == (
        "--disable-pass split-k: pass 'split-k' is not in the pipeline\n"
        "  got: fold,cascade,tile\n  expected: fold, cascade"
    )


def test_a_pipeline_is_a_name_or_a_list() -> None:
    specs = [spec_of(step) for step in PIPELINE]
    assert passes(",".join(specs)) == PIPELINE
    assert passes(",".join(specs), tune=4) == passes(tune=4)
    assert Tile(4) in passes(tune=4)
    kept = passes(keep_layers=True)
    assert names(kept)[names(kept).index("memory-space-assignment") - 1] == "keep-layers"
    assert passes(",".join(map(spec_of, kept)), keep_layers=True) == kept


def test_passes_of_packages_go_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Early, Needed, Renamed):
        monkeypatch.setitem(PASSES, kind.name, kind)
    found = names(passes())
    assert found[found.index("match-attention") + 1] == "early"
    assert found[found.index("weight-layout") - 1] == "needed"
    assert "renamed" not in found
    assert names(passes(disabled=("match-attention", "weight-layout")))[2:4] == ["early", "decompose"]
    short = names(passes("none"))
    assert "early" not in short
    assert short[short.index("memory-space-assignment") - 1] == "needed"
    with pytest.raises(UsageError, match="pass 'needed' is required: tests need it"):
        passes("none", disabled=("needed",))
    assert names(passes("fold,tile")) == ["fold", "tile"]


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
@pytest.mark.parametrize("precision", NOISE)
@pytest.mark.parametrize("seed", range(20, 26))
def test_random_graphs_through_the_shortest_pipeline(seed: int, precision: str, target: str) -> None:
    module, inputs = module_of_seed(seed, noise=NOISE[precision], precision=precision)
    compiled(module, load_target(target), inputs, passes("none"))


@pytest.mark.parametrize("name", OPTIONAL)
def test_random_graphs_without_a_pass(name: str) -> None:
    for seed in range(40, 43):
        module, inputs = module_of_seed(seed)
        compiled(module, load_target("ppu-tiny"), inputs, passes(disabled=(name,)))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
@pytest.mark.parametrize("precision", NOISE)
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_many_random_graphs_through_the_shortest_pipeline(first: int, precision: str, target: str) -> None:
    for seed in range(first, first + 50):
        module, inputs = module_of_seed(seed, noise=NOISE[precision], precision=precision)
        compiled(module, load_target(target), inputs, passes("none"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONAL)
def test_many_random_graphs_without_a_pass(name: str) -> None:
    for seed in range(60, 100):
        for precision, noise in NOISE.items():
            module, inputs = module_of_seed(seed, noise=noise, precision=precision)
            compiled(module, load_target("zhenwu-m890"), inputs, passes(disabled=(name,)))


@needs_the_recogniser
def test_a_trained_network_through_the_shortest_pipeline() -> None:
    """The recogniser of the demo, on a narrow image."""
    from examples.read_text import model_file

    dims = {"x:0": 1, "x:2": 48, "x:3": 64}
    program, plain = (ppuc.compile(model_file(), dims=dims, pipeline=name) for name in ("none", "default"))
    count, fewer = (sum(len(s.kernels) for s in p.artifact.program.segments) for p in (program, plain))
    assert count > 2 * fewer
    inputs = program.random_inputs()
    result = program.run(inputs)
    assert not result.profile.hazards
    (want,) = Oracle(model_file()).run(inputs).values()
    (got,) = result.outputs.values()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_programs_say_what_made_them(tmp_path: Path) -> None:
    """Layers are compared in the program that was compiled, not in the default one."""
    plain = ppuc.compile(mlp(), "ppu-tiny", dims={"N": 2})
    assert "pipeline" not in plain.artifact.meta
    short = ppuc.compile(mlp(), "ppu-tiny", dims={"N": 2}, pipeline="none", disable_passes=())
    assert short.artifact.meta["pipeline"] == ",".join(map(spec_of, NONE))
    fewer = ppuc.compile(mlp(), "ppu-tiny", dims={"N": 2}, disable_passes=["fold"])
    assert "fold" not in fewer.artifact.meta["pipeline"].split(",")
    assert len(ppuc.verify(short, layers=True).layers) > len(ppuc.verify(plain, layers=True).layers)
    inputs = {"x": np.ones((2, 20), np.float32)}
    short.save(tmp_path / "a.ppu")
    loaded = ppuc.load(tmp_path / "a.ppu")
    assert passes_of(loaded.options) == NONE
    np.testing.assert_allclose(loaded.run(inputs).outputs["y"], plain.run(inputs).outputs["y"], rtol=1e-5)

"""Going on from a dump: every text of it ends in the bytes of the compilation, whatever the options were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.dump import read_manifest
from ppuc.compiler.pipeline.link import link
from ppuc.compiler.pipeline.manager import CompiledModel, Run, said
from ppuc.compiler.pipeline.pass_options import specs_of
from ppuc.compiler.pipeline.resume import check_target, read_module, remaining_passes
from ppuc.ir.errors import UsageError
from ppuc.targets.artifact import Artifact, save
from ppuc.targets.description import Target, load_target, override
from tests.support.onnx_text import model_of

TINY = load_target("ppu-tiny")


def product(m: int, k: int, n: int) -> onnx.ModelProto:
    """Two products: f32[m, k] -> f32[m, 7]."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((k, n), np.float32), "v": rng.standard_normal((n, 7), np.float32)}
    text = f"net (float[{m}, {k}] x) => (float[{m}, 7] y) {{ h = MatMul(x, w) t = Tanh(h) y = MatMul(t, v) }}"
    return model_of(text, weights)


def cache() -> onnx.ModelProto:
    weights = {"w": np.random.default_rng(0).standard_normal((16, 16), np.float32)}
    return model_of(
        """net (float[2, 5, 16] past, float[2, 1, 16] x) => (float[2, 6, 16] present, float[2, 6, 16] y) {
            new = MatMul(x, w)
            present = Concat<axis = 1>(past, new)
            y = Tanh(present)
        }""",
        weights,
    )


def compiled(model: onnx.ModelProto, folder: Path, target: Target = TINY, **options: Any) -> CompiledModel:
    return compile_model(model, CompileOptions(target, **options), Instrumentation(dump=folder))


def stored(artifact: Artifact, folder: Path) -> bytes:
    save(artifact, folder / "made.ppu")
    return (folder / "made.ppu").read_bytes()


def resumed(text: Path, target: Target) -> Artifact:
    module = read_module(text)
    check_target(module, target, str(text))
    run = Run(target, remaining_passes(module, str(text)), listening=True)
    after, manifest = run.run(module), read_manifest(text.parent)
    assert manifest is not None
    return link(after, target, (*manifest.said(text.name), *said(run.records)))


CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "precision": {"precision": "bf16"},
    "tune": {"precision": "bf16", "tune": 8},
    "layers": {"keep_layers": True},
    "pipeline": {"pipeline": "none"},
    "list": {"pipeline": ",".join(specs_of(PIPELINE[:15] + PIPELINE[17:]))},
    "disabled": {"disabled": ("fold", "canonicalise")},
    "all": {"precision": "bf16", "tune": 4, "keep_layers": True, "disabled": ("horizontal-fusion",)},
    "set": {"target": override(TINY, "hbm.gbs=50")},
}


@pytest.mark.parametrize("case", CASES)
def test_every_text_ends_in_the_same_bytes(case: str, tmp_path: Path) -> None:
    options = {"target": TINY, **CASES[case]}
    made = compiled(product(100, 70, 100), tmp_path / "dump", **options)
    want = stored(made.artifact, tmp_path)
    plain = stored(compiled(product(100, 70, 100), tmp_path / "plain").artifact, tmp_path)
    assert (want == plain) == (case == "nothing")
    texts = sorted((tmp_path / "dump").glob("*.ppir"))
    assert len(texts) >= 5
    for text in texts:
        assert stored(resumed(text, options["target"]), tmp_path) == want, text.name


def test_shared_memory_is_resumed(tmp_path: Path) -> None:
    made = compiled(cache(), tmp_path / "dump", aliases={"past": "present"})
    want = stored(made.artifact, tmp_path)
    assert want != stored(compiled(cache(), tmp_path / "plain").artifact, tmp_path)
    for text in sorted((tmp_path / "dump").glob("*.ppir")):
        assert stored(resumed(text, TINY), tmp_path) == want, text.name


def test_modules_say_what_they_have_been_through_and_what_is_to_come(tmp_path: Path) -> None:
    compiled(product(40, 20, 30), tmp_path / "plain")
    plain = read_module(tmp_path / "plain" / "00-import.ppir")
    assert (plain.pipeline, plain.done) == ((), ())
    done = read_module(max((tmp_path / "plain").glob("*.ppir"))).done
    assert "legalise{narrow=false}" in done
    assert "tile" in done
    compiled(product(40, 20, 30), tmp_path / "tuned", tune=3, keep_layers=True)
    tuned = read_module(tmp_path / "tuned" / "00-import.ppir")
    assert "tile{tries=3}" in tuned.pipeline
    assert "keep-layers" in tuned.pipeline
    assert read_module(max((tmp_path / "tuned").glob("*.ppir"))).done == tuned.pipeline


def test_other_passes_than_those_recorded_have_no_rest(tmp_path: Path) -> None:
    compiled(product(40, 20, 30), tmp_path / "dump", tune=3)
    text = tmp_path / "dump" / "00-import.ppir"
    source = text.read_text()
    text.write_text(source.replace('  pipeline "fold"\n', '  pipeline "canonicalise"\n  done "fold"\n', 1))
    with pytest.raises(UsageError) as caught:
        remaining_passes(read_module(text), "a.ppir")
    assert str(caught.value) == (
        "a.ppir: the recorded passes are not a prefix of the pipeline, so the remaining passes are unknown\n"
        "  got: fold\n  expected: canonicalise\n  hint: name the passes to run with -p"
    )
    text.write_text(source.replace("tile{tries=3}", "tyle{tries=3}"))
    with pytest.raises(UsageError, match=r"^a\.ppir: there is no pass 'tyle'"):
        remaining_passes(read_module(text), "a.ppir")

"""Resuming from a dump: every text of it gives the same bytes as the original compilation, whatever the options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import Calibration, CompileOptions, Instrumentation, Quantization
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.dump import read_manifest
from ppuc.compiler.pipeline.link import link
from ppuc.compiler.pipeline.manager import CompiledModel, Run, all_remarks
from ppuc.compiler.pipeline.pass_options import specs_of
from ppuc.compiler.pipeline.quantize_step import Quantize
from ppuc.compiler.pipeline.resume import check_target, read_module, remaining_passes
from ppuc.compiler.quantization.data import Data
from ppuc.compiler.quantization.requantize import requantized
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


def samples(count: int) -> list[dict[str, np.ndarray]]:
    """Inputs of the products, f32[100, 70]."""
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((100, 70), np.float32)} for _ in range(count)]


def compiled(model: onnx.ModelProto, folder: Path, target: Target = TINY, **options: Any) -> CompiledModel:
    return compile_model(model, CompileOptions(target, **options), Instrumentation(dump=folder))


def stored(artifact: Artifact, folder: Path) -> bytes:
    save(artifact, folder / "made.ppu")
    return (folder / "made.ppu").read_bytes()


def resumed(text: Path, target: Target) -> Artifact:
    module = read_module(text)
    check_target(module, target, str(text))
    steps, through = remaining_passes(module, str(text)), text.name
    if steps and isinstance(steps[0], Quantize):
        module, steps, through = requantized(module, steps[0], text, target), steps[1:], Quantize.name
    run = Run(target, steps, listening=True)
    after, manifest = run.run(module), read_manifest(text.parent)
    assert manifest is not None
    return link(after, target, (*manifest.remarks_until(through), *all_remarks(run.records)))


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
    "fp8": {"precision": "fp8"},
    "int8": {"precision": "int8", "tune": 3},
    "blocks": {"precision": "mxfp8"},
    "calibrated": {"precision": "fp8", "quantization": Quantization(Data(few := samples(3)))},
    "percentile": {
        "precision": "int8",
        "quantization": Quantization(Data(few), calibration=Calibration("percentile", power_of_two=True)),
    },
    "repaired": {"precision": "fp8", "quantization": Quantization(Data(samples(16)))},
    "short": {"precision": "fp8", "pipeline": "none"},
    "quantized layers": {"precision": "int8", "keep_layers": True, "disabled": ("canonicalise",)},
}
"""Every option that changes bytes."""


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


def test_a_policy_is_resumed(tmp_path: Path) -> None:
    """Its plan is in the dump, so that the policy can go."""
    policy = tmp_path / "p.toml"
    policy.write_text('[[layer]]\nname = "MatMul_0"\nformat = "int8"\nscales = [0.03]\n')
    options = {"precision": "mixed", "quantization": Quantization(policy=policy)}
    want = stored(compiled(product(100, 70, 100), tmp_path / "dump", **options).artifact, tmp_path)
    policy.unlink()
    texts = sorted((tmp_path / "dump").glob("*.ppir"))
    assert [read_module(text).done[:1] for text in texts[:3]] == [(), ("quantize",), ("quantize",)]
    for text in texts:
        assert stored(resumed(text, TINY), tmp_path) == want, text.name


def test_the_command_quantizes_again(tmp_path: Path) -> None:
    """From the plan in the dump; without it, a text from before is refused, and one from after goes on."""
    dump = tmp_path / "dump"
    made = compiled(product(100, 70, 100), dump, precision="fp8", quantization=Quantization(Data(samples(3))))
    want = stored(made.artifact, tmp_path)
    plain = stored(compiled(product(100, 70, 100), tmp_path / "plain", precision="bf16").artifact, tmp_path)
    assert want != plain

    def opt(file: str, *words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["opt", str(dump / file), *words, "-o", str(tmp_path / "again.ppu")])
        return result.exit_code, result.output

    for file in ("00-import.ppir", "01-quantize.ppir"):
        assert opt(file, "--to-end")[0] == 0
        assert (tmp_path / "again.ppu").read_bytes() == want, file
    assert opt("00-import.ppir", "--to-end", "--pipeline", "none")[0] == 0
    (dump / "quantization.toml").unlink()
    code, shown = opt("00-import.ppir", "--to-end")
    assert code == 2
    assert "is a text from before its layers were quantized, and the plan for that is not beside it" in shown
    code, shown = opt(sorted(dump.glob("*.ppir"))[2].name, "-p", "quantize")
    assert code == 2
    assert "pass quantize: can only be the first step" in shown
    assert opt("01-quantize.ppir", "--to-end")[0] == 0
    assert (tmp_path / "again.ppu").read_bytes() == want


@pytest.mark.parametrize("precision", ["model", "fp8"])
def test_shared_memory_is_resumed(precision: str, tmp_path: Path) -> None:
    made = compiled(cache(), tmp_path / "dump", precision=precision, aliases={"past": "present"})
    want = stored(made.artifact, tmp_path)
    assert want != stored(compiled(cache(), tmp_path / "plain", precision=precision).artifact, tmp_path)
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

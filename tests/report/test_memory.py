"""The memory plan and its drawing; what is said of a model that does not fit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from ppuc.compiler.cli import cli
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.report.memory import MemoryPlan, plan_of_module, plan_of_program
from ppuc.compiler.report.memory_svg import COLOURS, memory_svg
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from tests.support.onnx_text import model_of

SVG = "{http://www.w3.org/2000/svg}"


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Three products in a row; the weight `w<1>` has a name that XML has to escape."""
    rng = np.random.default_rng(0)
    names = ("w<1>", "w2", "w3")
    model = model_of("chain (float[64, 96] x) => (float[64, 96] y) { a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) "
                     "d = Softmax<axis = -1>(c) y = MatMul(d, w3) }")  # fmt: skip
    model.graph.node[0].input[1] = names[0]
    for name in names:
        array = rng.standard_normal((96, 96)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path / "chain.onnx"
    onnx.save(model, path)
    return path


def plan_of(model: Path, target: Target) -> MemoryPlan:
    module = compile_model(model, CompileOptions(target)).module
    assert module is not None
    return plan_of_module(module, target)


def assert_no_overlap(plan: MemoryPlan) -> None:
    for space in plan.spaces:
        assert space.bound <= space.extent <= space.capacity
        for a, b in itertools.combinations(space.blocks, 2):
            if a.start <= b.end and b.start <= a.end:
                assert a.address + a.bytes <= b.address or b.address + b.bytes <= a.address, (a, b)


def test_plan_of_a_model(chain: Path) -> None:
    plan = plan_of(chain, load_target("ppu-tiny"))
    assert_no_overlap(plan)
    hbm = {b.tensor: b for b in plan.spaces[1].blocks}
    assert {n: hbm[n].role for n in ("x", "y", "w<1>", "w2", "w3")} == {
        "x": "input", "y": "output", "w<1>": "constant", "w2": "constant", "w3": "constant",
    }  # fmt: skip
    assert hbm["w2"].bytes == 96 * 96 * 4
    assert (hbm["x"].start, hbm["x"].end) == (0, len(plan.steps))


def test_program_and_model_have_the_same_addresses(chain: Path) -> None:
    target = load_target("ppu-tiny")
    made = compile_model(chain, CompileOptions(target))
    assert made.module is not None
    ours, theirs = plan_of_module(made.module, target), plan_of_program(made.artifact.program, target)
    assert_no_overlap(theirs)
    for a, b in zip(ours.spaces, theirs.spaces, strict=True):
        assert sorted((x.role, x.address) for x in b.blocks) == sorted((x.role, x.address) for x in a.blocks)


def test_the_drawing_shows_every_tensor(chain: Path) -> None:
    plan = plan_of(chain, load_target("ppu-tiny"))
    root = ElementTree.fromstring(memory_svg(plan))
    titles = [t.text or "" for t in root.iter(f"{SVG}title")]
    drawn = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert len(drawn) == sum(len(s.blocks) for s in plan.spaces)
    assert any(t.startswith("constant w<1>: f32[96, 96], 36,864 bytes at ") for t in titles)
    assert {r.get("fill") for r in drawn} <= set(COLOURS.values())
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for r in drawn:
        x, y, w, h = (float(r.get(k, 0)) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width + 0.1
        assert 0 <= y <= y + h <= height


def test_the_command_draws_models_dumps_and_programs(chain: Path, tmp_path: Path) -> None:
    dump, program, out = tmp_path / "dump", tmp_path / "chain.ppu", tmp_path / "plan.svg"
    made = CliRunner().invoke(cli, ["compile", str(chain), "-t", "ppu-tiny", "-o", str(program), "--dump", str(dump)])
    assert made.exit_code == 0, made.stderr
    (allocated,) = dump.glob("*-allocate.ppir")
    extents = []
    for file, options in ((chain, ("-t", "ppu-tiny")), (allocated, ()), (program, ())):
        out.unlink(missing_ok=True)
        done = inspect(file, "--memory", out, "--json", *options)
        assert done.exit_code == 0, done.stderr
        record: dict[str, Any] = json.loads(done.stdout)
        ElementTree.parse(out)
        assert record["drawing"] == str(out)
        extents.append([s["extent"] for s in record["spaces"]])
    assert extents[0] == extents[1]
    shown = inspect(chain, "--memory", out, "-t", "ppu-tiny")
    assert "alive together at most" in shown.stdout
    assert f"drawn in {out}" in shown.stdout


def test_mistakes(chain: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    assert CliRunner().invoke(
        cli, ["compile", str(chain), "-t", "ppu-tiny", "-o", str(tmp_path / "p.ppu"), "--dump", str(dump)]
    ).exit_code == 0  # fmt: skip
    early = min(dump.glob("*.ppir"))
    done = inspect(early, "--memory", tmp_path / "o.svg")
    assert done.exit_code == 2
    assert "holds no addresses yet" in done.stderr
    done = inspect(tmp_path / "p.ppu", "--memory", tmp_path / "o.svg", "--dim", "N=1")
    assert done.exit_code == 2
    assert "shows a compiled plan as it is" in done.stderr
    assert not (tmp_path / "o.svg").exists()


def test_what_does_not_fit_is_explained(chain: Path, tmp_path: Path) -> None:
    # 3 weights of 36,864 bytes, x and y of 24,576: 159,744 at least, 104,448 with weights of half the size.
    arguments = ["compile", str(chain), "-t", "ppu-tiny", "--set", "hbm.bytes=131072", "-o", str(tmp_path / "p.ppu")]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 2
    (found,) = json.loads(done.stdout)["diagnostics"]
    assert found["what"] == "the model does not fit hbm"
    needed = int(found["got"].split(" bytes")[0].replace(",", ""))
    assert needed >= 159_744
    assert "constants 110,592, inputs 24,576" in found["got"]
    assert "constant 'w<1>' f32[96, 96]: 36,864; " in found["got"]
    assert found["expected"] == "at most 131,072 bytes"
    for remedy in ("--precision bf16", "--target ppu-edge", f"--set hbm.bytes={needed}"):
        assert remedy in found["hint"]
    assert CliRunner().invoke(cli, [*arguments, "--precision", "bf16"]).exit_code == 0
    arguments[5] = f"hbm.bytes={needed}"
    assert CliRunner().invoke(cli, arguments).exit_code == 0


def test_tensors_that_live_at_different_times_share_hbm() -> None:
    """Spilled activations of a deep chain need the two largest at a time, not all of them."""
    steps = 12
    lines = " ".join(f"a{i + 1} = MatMul(a{i}, x)" for i in range(steps))
    text = f"deep (float[256, 256] x) => (float[256, 256] y) {{ a0 = MatMul(x, x) {lines} y = MatMul(a{steps}, x) }}"
    size = 256 * 256 * 4
    target = override(load_target("ppu-tiny"), f"hbm.bytes={6 * size}")
    plan = plan_of_program(compile_model(model_of(text), CompileOptions(target)).artifact.program, target)
    hbm = plan.spaces[1]
    assert sum(b.bytes for b in hbm.blocks) > 6 * size
    assert hbm.extent <= 6 * size

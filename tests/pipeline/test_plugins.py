"""Plug-in packages: the example under examples/plugin, and the errors of invalid packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ppuc.compiler.frontend.registry import IMPORTERS
from ppuc.compiler.lowering.kinds import KINDS
from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.pipeline import registry
from ppuc.ir.errors import PluginError
from ppuc.ir.ops import OPS
from ppuc.ir.plugins import Extensible
from ppuc.targets import description
from tests.conftest import Offered
from tests.support.pass_classes import Renamed, Stranger

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plugin"

MODEL = """
import numpy as np, onnx, onnx.parser
rng = np.random.default_rng(0)
WEIGHTS = {"a": rng.uniform(0.5, 2, (6, 1)), "b": rng.uniform(0.5, 2, (8, 1)), "w": rng.standard_normal((8, 6, 3))}
INPUTS = {"x": rng.standard_normal((1, 6, 40)).astype(np.float32)}
FUNCTION = '''<domain: "com.example", opset_import: ["": 17]> Snake (X, alpha) => (Y) {
    p = Mul(alpha, X) s = Sin(p) q = Mul(s, s) d = Div(q, alpha) Y = Add(X, d) }'''

def model(function=""):
    text = '''<ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        vocoder (float[1, 6, 40] x) => (float[1, 8, 40] y) {
            h = com.example.Snake(x, a) c = Conv<pads = [1, 1]>(h, w) y = com.example.Snake(c, b) }'''
    made = onnx.parser.parse_model(text + function)
    for name, array in WEIGHTS.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return made
"""


def installed(site: Path, project: Path = EXAMPLE) -> Path:
    """Make `site` what installing `project` would make of it, but for the package itself."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return declared(site, about["name"], about["version"], about["entry-points"])


def declared(site: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> Path:
    """The metadata of a package with these entry points."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


def python(code: str, *paths: Path) -> Any:
    """What `code` prints as JSON, run with `paths` importable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ppuc(*arguments: object, paths: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """The command, run with `paths` importable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", "from ppuc.compiler.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_example_adds_an_op_a_pass_and_a_machine(tmp_path: Path) -> None:
    """Values equal those of the op's ONNX function in ONNX Runtime, and the pass is in the pipeline."""
    code = f"""{MODEL}
import json, ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions, HostPolicy, Instrumentation
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.targets.description import load_target
want = Oracle(model(FUNCTION)).run(INPUTS)["y"]
cases = {{"default": {{}}, "without": {{"disabled": ("snake_reciprocal",)}}, "none": {{"pipeline": "none"}}}}
found = {{}}
for name, options in cases.items():
    how = CompileOptions(load_target("ppu-vocoder"), host=HostPolicy(allowed=False), **options)
    made = compile_model(model(), how, Instrumentation(check_passes=True, inputs=INPUTS))
    result = CompiledProgram(made.artifact, how).run(INPUTS)
    error = float(np.abs(result.outputs["y"] - want).max() / np.abs(want).max())
    changed = [p.name for p in made.passes if p.changed]
    found[name] = [error, len(result.profile.hazards), changed, how.target.vector.lanes]
print(json.dumps(found))
"""
    found = python(code, installed(tmp_path), EXAMPLE)
    for error, hazards, _, lanes in found.values():
        assert error < 1e-6
        assert (hazards, lanes) == (0, 16)
    changed = {name: passes for name, (_, _, passes, _) in found.items()}
    assert "snake_reciprocal" in changed["default"]
    assert "snake_reciprocal" not in (*changed["without"], *changed["none"])
    assert "decompose" in changed["without"]


def test_dumps_made_with_a_package_need_it(tmp_path: Path) -> None:
    site = installed(tmp_path / "site")
    python(f"{MODEL}\nonnx.save(model(), {str(tmp_path / 'net.onnx')!r})\nprint('[]')")
    options = ("-t", "ppu-vocoder", "--dump", tmp_path / "dump", "-o", tmp_path / "a.ppu")
    made = ppuc("compile", tmp_path / "net.onnx", *options, paths=(site, EXAMPLE))
    assert made.returncode == 0, made.stderr
    for text in ("00-import", "03-snake_reciprocal"):
        first = (tmp_path / "dump" / f"{text}.ppir", "--to-end", "-o", tmp_path / "b.ppu")
        assert ppuc("opt", *first, paths=(site, EXAMPLE)).returncode == 0
        assert (tmp_path / "a.ppu").read_bytes() == (tmp_path / "b.ppu").read_bytes()
    missing = ppuc("opt", tmp_path / "dump" / "00-import.ppir", paths=())
    assert missing.returncode == 2
    assert "unknown op 'snake'" in missing.stderr
    refused = ppuc("check", tmp_path / "net.onnx", "-t", "ppu-tiny", paths=())
    assert refused.returncode == 1
    assert "com.example:Snake" in refused.stdout


def test_commands_list_what_packages_add(tmp_path: Path) -> None:
    paths = (installed(tmp_path), EXAMPLE)
    assert "ppu-vocoder" in ppuc("targets", paths=paths).stdout
    assert "x + sin^2(alpha x) / alpha" in ppuc("ops", paths=paths).stdout
    assert "com.example:Snake" in ppuc("ops", "--onnx", paths=paths).stdout
    assert "snake_reciprocal" in ppuc("passes", paths=paths).stdout
    assert "snake_reciprocal" not in ppuc("passes", paths=()).stdout


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    site = declared(tmp_path, "half-done", "1.2", {"ppuc.passes": {"swirl": "half_done.nowhere:Swirl"}})
    failed = ppuc("passes", paths=(site,))
    assert failed.returncode == 2
    assert failed.stderr == (
        "error: package half-done 1.2: cannot be used: its entry point 'swirl' of ppuc.passes "
        "(half_done.nowhere:Swirl) does not load\n"
        "  got: ModuleNotFoundError: No module named 'half_done'\n"
        "  hint: fix or uninstall the package\n"
    )


def test_tables_load_packages_when_a_key_is_missing(offered: Offered) -> None:
    asked: list[str] = []

    def take(name: str, found: Any) -> dict[str, Any]:
        asked.append(name)
        return {name: found}

    offered("things", pi="math:pi", tau="math:tau")
    table: Extensible[str, Any] = Extensible("things", take, {"one": 1})
    assert (table["one"], table.get("one"), "one" in table, asked) == (1, 1, True, [])
    assert table["pi"] == pytest.approx(3.14159, abs=1e-5)
    assert asked == ["pi", "tau"]
    assert (table.get("nothing"), table.get("nothing", 3), "nothing" in table) == (None, 3, False)
    with pytest.raises(KeyError):
        table["nothing"]
    assert list(table.complete()) == ["one", "pi", "tau"]
    assert asked == ["pi", "tau"]


def test_a_package_may_ask_the_table_while_it_is_loaded(offered: Offered) -> None:
    offered("things", pi="math:pi")
    table: Extensible[str, Any] = Extensible("things", lambda name, found: {name: table.get("tau", found)})
    assert table["pi"] == pytest.approx(3.14159, abs=1e-5)


def test_faults_stay_faults(offered: Offered) -> None:
    offered("things", a="math:pi", b="math:nothing")
    table: Extensible[str, Any] = Extensible("things", lambda name, found: {name: found})
    for _ in range(2):
        with pytest.raises(PluginError, match="its entry point 'b' of things"):
            table.complete()
    offered("things", one="math:pi")
    table = Extensible("things", lambda name, found: {name: found}, {"one": 1})
    with pytest.raises(PluginError, match="one is defined already, by ppuc or by another package"):
        table.complete()


@pytest.mark.parametrize(
    ("group", "name", "value", "fault"),
    [
        ("ppuc.passes", "fold", "ppuc.compiler.passes.normalise.fold:Fold", "fold is defined already"),
        ("ppuc.passes", "other", "ppuc.compiler.passes.normalise.fold:Fold", "the pass's own name is 'fold'"),
        ("ppuc.passes", "pi", "math:pi", "is not a dataclass derived from"),
        ("ppuc.passes", "stranger", f"{Stranger.__module__}:Stranger", "its neighbour 'nothing' is not a pass"),
        ("ppuc.pipelines", "mine", "math:pi", "is not a tuple of passes"),
        ("ppuc.pipelines", "default", "ppuc.compiler.pipeline.default:NONE", "default is defined already"),
        ("ppuc.ops", "exp", "math:pi", "is not a ppuc.ir.ops.OpDef"),
        ("ppuc.importers", "mine", "math:pi", "is not a module"),
        ("ppuc.kinds", "mine", "math:pi", "is not a ppuc.compiler.lowering.kernel_kind.KernelKind"),
        ("ppuc.targets", "mine", "math:pi", "is not the path of mine.toml"),
    ],
)
def test_what_tables_do_not_take(group: str, name: str, value: str, fault: str, offered: Offered) -> None:
    offered(group, **{name: value})
    known = (registry.PASSES, registry.PIPELINES, OPS, IMPORTERS, KINDS, description._FILES)
    whole = next(table for table in known if table.group == group)
    table: Extensible[Any, Any] = Extensible(group, whole._take, whole)  # type: ignore[arg-type]
    with pytest.raises(PluginError) as caught:
        table.complete()
    assert fault in str(caught.value)


def test_a_pass_without_a_place_is_known_by_name_only(offered: Offered) -> None:
    offered("ppuc.passes", renamed=f"{Renamed.__module__}:Renamed")
    table = Extensible("ppuc.passes", registry._pass, {"fold": Fold})
    assert table["renamed"] is Renamed

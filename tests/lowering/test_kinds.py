"""Kinds of kernels as rows: what the registry refuses, which row takes an op, and a kind that no other module knows."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from ppuc.compiler.lowering import kinds, search_store
from ppuc.compiler.lowering.kernel_kind import KernelKind, always, one_tiling
from ppuc.compiler.lowering.kernels.copies import add_copies, strided_copy
from ppuc.compiler.lowering.kernels.gather import lower_gather
from ppuc.compiler.lowering.kernels.move_bodies import stored_view
from ppuc.compiler.lowering.kernels.moves import check_move
from ppuc.compiler.lowering.kinds import KINDS, add_kind, check_group, lower_group, price_group
from ppuc.compiler.lowering.tiling.body import NotFusable, Resolver
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.ir import views
from ppuc.ir.graph import Attrs, Graph
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS, Kind, OpDef
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.plugins import Extensible
from ppuc.ir.types import DType
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.conftest import Offered
from tests.support.pass_graphs import Sketch, module_of
from tests.support.small_models import mlp
from tests.support.whole_pipeline import APART, compiled

ROOT = Path(__file__).parents[2]
TINY = load_target("ppu-tiny")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a test adds are gone after it."""
    monkeypatch.setattr(kinds, "KINDS", Extensible("ppuc.kinds", kinds._package_kind, KINDS))
    monkeypatch.setattr(kinds, "_ANCHORED", {op: list(rows) for op, rows in kinds._ANCHORED.items()})


@dataclass(frozen=True, slots=True)
class RollAttrs(Attrs):
    """Rows that move from the end to the front."""

    by: int


def lower_roll(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Two copies: the rows that stay in order, and those that come to the front."""
    (op,) = (o for o in body.ops if o.name == "roll")
    source, whole = Resolver(body).external(op.operands[0]), stored_view(body, op)
    assert source is not None
    assert isinstance(op.attrs, RollAttrs)
    rows, *rest = op.results[0].type.dims
    copies = []
    for start, size, to in ((0, rows - op.attrs.by, op.attrs.by), (rows - op.attrs.by, op.attrs.by, 0)):
        zeros, ones = (0 for _ in rest), (1,) * (1 + len(rest))
        read = views.take_slice(source.view, (start, *zeros), (size, *rest), ones)
        written = views.take_slice(whole, (to, *(0 for _ in rest)), (size, *rest), ones)
        copies.append(
            strided_copy(replace(source, view=read), written, tensors[source.value.name], tensors[body.results[0].name])
        )
    kernel = KernelBuilder(name, loc)
    add_copies(kernel, copies, target)
    return kernel


ROLL = KernelKind(name="roll", anchors={"roll": always}, check=check_move, lower=one_tiling(lower_roll), epilogue=False)


ROLL_OP = OpDef(
    name="roll",
    formula="result[i] = x[i - by]",
    kind=Kind.MOVE,
    operands="x",
    attrs=RollAttrs,
    infer=lambda attrs, types: (types[0],),
    reference=lambda attrs, x: (np.roll(x, attrs.by, 0),),
)


@pytest.fixture
def roll(monkeypatch: pytest.MonkeyPatch, offered: Offered) -> None:
    """An op and its kind of kernel, as a package adds them."""
    monkeypatch.setitem(OPS, "roll", ROLL_OP)
    offered("ppuc.kinds", roll=f"{__name__}:ROLL")


def kinds_of(module: Module) -> list[str]:
    return [op.attrs.kind for op in module.graph.ops if op.name == "group"]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("roll")
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_a_new_row_is_all_that_a_new_kind_takes(precision: str) -> None:
    """Through the whole pipeline, with a product before it and an op after it that cannot join it."""
    s = Sketch()
    x = s.matmul(s.param(37, 20), s.weight(20, 24))
    y = s.op("exp", s.op("roll", x, attrs=RollAttrs(5)))
    feeds = {"p": np.random.default_rng(0).standard_normal((37, 20)).astype(np.float32)}
    made = compiled(module_of(s.graph(y), precision=precision), TINY, feeds, APART)
    assert [kind for kind in kinds_of(made) if kind != "map"] == ["matmul", "roll"]
    assert kinds_of(made)[-1] == "map"


def test_of_rows_that_take_an_op_the_last_one_has_it() -> None:
    def narrow(op: object) -> bool:
        return op.operands[0].type.dtype is DType.F32  # type: ignore[attr-defined]

    row = KernelKind(
        name="rows", anchors={"gather": narrow}, check=check_move, lower=one_tiling(lower_gather), epilogue=False
    )
    add_kind(row)
    s = Sketch()
    table, words, indices = s.param(9, 8), s.param(9, 8, dtype=DType.I32), s.param(5, dtype=DType.I64)
    graph = s.graph(*(s.op("gather", t, indices, attrs=GatherAttrs(0)) for t in (table, words)))
    rng = np.random.default_rng(0)
    feeds = {
        table.name: rng.standard_normal((9, 8)).astype(np.float32),
        words.name: rng.integers(0, 99, (9, 8)).astype(np.int32),
        indices.name: rng.integers(0, 9, 5),
    }
    assert sorted(kinds_of(compiled(module_of(graph), TINY, feeds))) == ["gather", "rows"]


@pytest.mark.usefixtures("roll")
def test_what_the_registry_refuses() -> None:
    assert "roll" in kinds.KINDS
    for row, why in (
        (ROLL, "kernel kind 'roll' is defined twice"),
        (replace(ROLL, name="a", anchors={"rol": always}), "op 'rol' cannot anchor a kernel"),
        (replace(ROLL, name="a", anchors={"exp": always}), "op 'exp' cannot anchor a kernel"),
    ):
        with pytest.raises(ValueError, match=why):
            add_kind(row)
    assert list(kinds.KINDS)[-1] == "roll"


@pytest.mark.usefixtures("roll")
def test_a_kind_without_a_cost_model_and_with_one_tiling_says_so() -> None:
    s = Sketch()
    body = s.graph(s.op("roll", s.param(4, 4), attrs=RollAttrs(1)))
    assert check_group(body, TINY) == "roll"
    with pytest.raises(NotFusable, match="kernels of kind roll have no cost model"):
        price_group("roll", body, TINY)
    with pytest.raises(NotFusable, match="the kernel has one tiling"):
        lower_group("roll", "k", body, {v.name: v.name for v in (*body.params, *body.results)}, (), TINY, rank=1)


def test_ops_without_a_row_have_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Sketch()
    body = s.graph(s.op("softmax", s.param(4, 4), attrs=OPS["softmax"].attrs(1)))  # type: ignore[call-arg]
    with pytest.raises(NotFusable, match="no kernel for 'softmax'"):
        check_group(body, TINY)


def test_a_dump_that_names_an_unknown_kind(tmp_path: Path) -> None:
    model, dump = tmp_path / "m.onnx", tmp_path / "dump"
    model.write_bytes(mlp().SerializeToString())
    arguments = ["compile", model, "--dim", "N=2", "--target", "ppu-tiny", "-o", tmp_path / "a.ppu", "--dump", dump]
    assert CliRunner().invoke(cli, list(map(str, arguments))).exit_code == 0
    (fused,) = dump.glob("*-fuse.ppir")
    fused.write_text(fused.read_text().replace('kind = "matmul"', 'kind = "sparse"', 1))
    result = CliRunner().invoke(cli, ["opt", str(fused), "--to-end", "-o", str(tmp_path / "b.ppu")])
    assert result.exit_code == 2
    assert "has an unknown kernel kind\n  got: sparse\n  expected: map, copy, matmul, " in result.stderr


@pytest.mark.usefixtures("roll")
def test_outcomes_on_disk_depend_on_the_sources_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a package of others are searched for again when its code has changed."""
    s = Sketch()
    body = s.graph(s.op("roll", s.param(4, 4), attrs=RollAttrs(1)))
    assert kinds.packages_of("roll", body) == [__name__.partition(".")[0]]
    s = Sketch()
    product = s.graph(s.matmul(s.param(4, 4), s.param(4, 4)))
    assert kinds.packages_of("matmul", product) == []
    package = ModuleType("others")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "others", package)
    digests = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "rows.py").write_text(text)
        search_store.package_digest.cache_clear()
        digests |= {search_store.package_digest("others"), search_store.package_digest("others")}
    assert len(digests) == 2


def test_no_pass_knows_a_kind_by_name() -> None:
    """Groups are told apart by their kinds' traits and by their anchors, which are ops."""
    files = [f for folder in ("passes", "report", "pipeline") for f in (ROOT / "compiler" / folder).rglob("*.py")]
    files.append(ROOT / "compiler/lowering/kernel_cache.py")
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and "kind" in ast.unparse(node.left):
                named = {n.value for c in node.comparators for n in ast.walk(c) if isinstance(n, ast.Constant)}
                assert not named & set(KINDS), f"{file.name}:{node.lineno} compares kinds: {ast.unparse(node)}"

"""Remarks: how passes emit them, where they are stored, and that emitting them does not change programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.remarks import KINDS, Remark, collecting, listener
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.dump import read_manifest
from ppuc.compiler.pipeline.manager import Run, all_remarks
from ppuc.compiler.pipeline.packed_remarks import NOTE, packed, remarks_of, unpacked, with_remarks
from ppuc.compiler.report.fusion import fusion_record
from ppuc.compiler.report.remarks import chosen, ranked, recorded_remarks, settled
from ppuc.ir.errors import ArtifactError
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.ir.text import print_module
from ppuc.targets.artifact import load, save
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.fuzz.models import model_of_seed
from tests.support.onnx_text import model_of
from tests.support.pass_graphs import Sketch, mobilenet_block, module_of, resnet_block, transformer_block
from tests.support.small_models import mlp

TINY = load_target("ppu-tiny")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def record_of(*arguments: object) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def missed(lost: float | None = None, before: float | None = None, after: float | None = None, **rest: Any) -> Remark:
    details = {} if lost is None else {"lost_clk": lost}
    return replace(Remark("fuse", "missed", "not-fused", "x", (), "", before, after, details), **rest)


class TestCollecting:
    def test_without_a_collector_nobody_listens(self) -> None:
        assert listener() is None
        with collecting("fold") as outer:
            assert listener() is outer
            with collecting("fuse") as inner:
                assert listener() is inner
            assert listener() is outer
        assert listener() is None

    def test_a_collector_that_fails_is_left(self) -> None:
        with pytest.raises(ZeroDivisionError), collecting("fold"):
            raise ZeroDivisionError
        assert listener() is None

    def test_remarks_carry_pass_prices_and_details(self) -> None:
        with collecting("split-k") as collector:
            collector.applied("split-k", "y", ("n1", "n2"), before=1234.567, after=999, parts=4, share=0.123)
            collector.missed("not-split-k", "z", ("n3",), "too short", before=5.0, after=float("inf"))
            collector.note("found", "w")
        assert collector.remarks == (
            Remark("split-k", "applied", "split-k", "y", ("n1", "n2"), "", 1234.6, 999.0, {"parts": 4, "share": 0.1}),
            Remark("split-k", "missed", "not-split-k", "z", ("n3",), "too short", 5.0, None, {}),
            Remark("split-k", "note", "found", "w"),
        )

    def test_applications_of_a_rule_are_one_remark(self) -> None:
        s = Sketch()
        for _ in range(5):
            s.op("relu", s.param(2))
        with collecting("fold") as collector:
            for op in s.b.ops:
                collector.count("drop-relu", op)
        (remark,) = collector.remarks
        assert remark.details == {"count": 5}
        assert remark.entity == s.b.ops[0].result.name
        assert remark.nodes == ("node_0", "node_1", "node_2")

    def test_what_a_refusal_costs(self) -> None:
        assert missed(12.5).lost_clk == 12.5
        assert missed(before=10.0, after=4.0).lost_clk == 6.0
        assert missed(before=4.0, after=10.0).lost_clk == 0.0
        assert missed(before=4.0).lost_clk == 0.0
        assert missed(12.5, kind="applied").lost_clk == 0.0
        assert missed(before=10.0, after=4.0, kind="applied").gained_clk == 6.0


TEXTS = st.text(max_size=8)
NUMBERS = st.none() | st.floats(0, 1e9, allow_nan=False)
REMARKS = st.builds(
    Remark,
    TEXTS,
    st.sampled_from(KINDS),
    TEXTS,
    TEXTS,
    st.lists(TEXTS, max_size=3).map(tuple),
    TEXTS,
    NUMBERS,
    NUMBERS,
    st.dictionaries(TEXTS, st.integers(-9, 9) | st.floats(-1, 1) | TEXTS, max_size=3),
    st.integers(0, 3),
)


class TestPacking:
    @given(st.lists(REMARKS, max_size=6))
    def test_packed_remarks_come_back(self, remarks: Sequence[Remark]) -> None:
        assert unpacked(packed(remarks)) == tuple(remarks)
        assert tuple(Remark.of(json.loads(json.dumps(r.record()))) for r in remarks) == tuple(remarks)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"texts": [], "rows": [[]]}',
            b'{"texts": [], "rows": [[0,0,0,0,0,[],0,1,2,[]]]}',
        ],
    )
    def test_other_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - any text will do
            unpacked(data)

    def test_a_damaged_note_is_an_artifact_error(self) -> None:
        artifact = compile_model(mlp(), CompileOptions(TINY, dims={"N": 1})).artifact
        with pytest.raises(ArtifactError, match="holds remarks that cannot be read"):
            remarks_of(replace(artifact, notes={NOTE: b"{"}))

    def test_a_program_without_remarks_has_no_note(self, tmp_path: Path) -> None:
        artifact = replace(compile_model(mlp(), CompileOptions(TINY, dims={"N": 1})).artifact, notes={})
        assert with_remarks(artifact, ()) is artifact
        save(artifact, tmp_path / "plain.ppu")
        assert b"note" not in (tmp_path / "plain.ppu").read_bytes()
        assert remarks_of(load(tmp_path / "plain.ppu")) == ()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    return path


OPTIONS = ("--dim", "N=4", "--target", "ppu-tiny")


class TestWhereTheyAre:
    def test_in_program_dump_and_json(self, model: Path, tmp_path: Path) -> None:
        program, dump = tmp_path / "mlp.ppu", tmp_path / "steps"
        record = record_of("compile", model, *OPTIONS, "-o", program, "--dump", dump)
        printed = [Remark.of(r) for p in record["passes"] for r in p["remarks"]]
        assert {"fuse", "memory-space-assignment"} <= {r.pass_name for r in printed}
        assert list(ppuc.load(program).remarks) == printed
        manifest = read_manifest(dump)
        assert manifest is not None
        assert list(manifest.remarks_until()) == printed
        lines = [line for line in (dump / "manifest.json").read_text().splitlines() if '"decision"' in line]
        assert len(lines) == len(printed)
        assert list(compile_model(model, CompileOptions(TINY, dims={"N": 4})).remarks) == printed

    @pytest.mark.parametrize("step", ["import", "fuse", "memory-space-assignment", "tile"])
    def test_a_resumed_module_adds_its_own(self, model: Path, tmp_path: Path, step: str) -> None:
        program, dump, again = tmp_path / "mlp.ppu", tmp_path / "steps", tmp_path / "again.ppu"
        record_of("compile", model, *OPTIONS, "-o", program, "--dump", dump)
        (text,) = dump.glob(f"*-{step}.ppir")
        record_of("opt", text, "--to-end", "-o", again)
        assert again.read_bytes() == program.read_bytes()
        alone = tmp_path / "alone"
        alone.mkdir()
        (dump / "constants").rename(alone / "constants")
        record_of("opt", text.rename(alone / text.name), "--to-end", "-o", again)
        names = [p.name for p in PIPELINE]
        rest = names[names.index(step) + 1 :] if step != "import" else names
        assert {r.pass_name for r in ppuc.load(again).remarks} <= set(rest)

    def test_a_damaged_manifest_is_said(self, model: Path, tmp_path: Path) -> None:
        dump = tmp_path / "steps"
        record_of("compile", model, *OPTIONS, "-o", tmp_path / "mlp.ppu", "--dump", dump)
        (dump / "manifest.json").write_text('{"passes": [')
        done = invoke("opt", min(dump.glob("*.ppir")), "--to-end", "-o", tmp_path / "again.ppu")
        assert done.exit_code == 2
        assert "the manifest of the dump is damaged" in done.stderr

    def test_variants_have_their_own(self, model: Path, tmp_path: Path) -> None:
        program = tmp_path / "mlp.ppu"
        invoke("compile", model, "--dim", "N=1,40", "--target", "ppu-tiny", "-o", program)
        found = [record_of("inspect", program, "--remarks", "all", "--dim", f"N={n}")["remarks"] for n in (1, 40)]
        assert found[0] != found[1]
        alone = compile_model(model, CompileOptions(TINY, dims={"N": 40}))
        assert found[1] == [r.record() for r in ranked(settled(alone.remarks))]
        wrong = invoke("inspect", program, "--remarks", "all", "--dim", "N=2")
        assert wrong.exit_code == 2
        assert "has no variant with these sizes" in wrong.stderr

    def test_programs_of_several_segments_are_told_apart(self, tmp_path: Path) -> None:
        """f64 goes to the host, between two programs of the PPU."""
        text = """m (float[4, 8] x) => (float[4, 8] y) {
            a = Relu(x)
            b = Cast <to = 11> (a)
            c = Exp(b)
            d = Cast <to = 1> (c)
            y = Add(d, x)
        }"""
        dump = tmp_path / "dump"
        made = compile_model(model_of(text), CompileOptions(TINY), Instrumentation(dump=dump))
        assert len(made.modules) == 2
        assert {r.segment for r in made.remarks} == {0, 1}
        assert remarks_of(made.artifact) == made.remarks
        kernels = sum(len(s.kernels) for s in made.artifact.program.segments)
        assert fusion_record(made.remarks)["kernels"] == kernels
        assert recorded_remarks(dump, {}).remarks == made.remarks

        one_segment = compile_model(mlp(), CompileOptions(TINY, dims={"N": 1}), Instrumentation(dump=dump))
        assert recorded_remarks(dump, {}).remarks == one_segment.remarks, "segments of the earlier dump are gone"


class Texts(Run):
    """A run that keeps the text of the module after every pass."""

    texts: list[str]

    def _step(self, step: Pass, module: Module) -> Module:
        after = super()._step(step, module)
        self.texts = [*getattr(self, "texts", ()), print_module(after)]
        return after


class TestNothingChanges:
    @pytest.mark.parametrize("graph", [resnet_block, mobilenet_block, transformer_block])
    @pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
    def test_every_text_is_the_same_with_and_without_a_listener(self, graph: Callable[[], Graph], target: str) -> None:
        machine = load_target(target)
        module = replace(module_of(graph(), precision="bf16"), target=machine.name, target_hash=machine.hash)
        quiet, heard = (Texts(machine, PIPELINE, listening=listening) for listening in (False, True))
        quiet.run(module)
        heard.run(module)
        assert quiet.texts == heard.texts
        assert len(quiet.texts) == len(PIPELINE)
        assert not all_remarks(quiet.records)
        assert all_remarks(heard.records)

    def test_remarks_do_not_depend_on_the_order_of_sets(self, tmp_path: Path) -> None:
        onnx.save(model_of_seed(7, 12).model, tmp_path / "m.onnx")
        program = (
            "import sys, ppuc; made = ppuc.compile(sys.argv[1], target='ppu-tiny');"
            "sys.stdout.buffer.write(made.artifact.notes['remarks'])"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "m.onnx")]
        outputs = [
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
            for seed in ("1", "2")
        ]
        assert outputs[0] == outputs[1]
        assert len(unpacked(outputs[0])) > 5


class TestReports:
    def test_no_pass_runs_to_explain_another(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A model is compiled once; of a program and a dump nothing runs at all."""
        program, dump = tmp_path / "mlp.ppu", tmp_path / "steps"
        record_of("compile", model, *OPTIONS, "-o", program, "--dump", dump)
        (text,) = dump.glob("*-allocate.ppir")
        ran: list[str] = []
        for kind in {type(step) for step in PIPELINE}:
            original = kind.run

            def counted(self: Pass, module: Module, target: Target, run: Any = original) -> Module:
                ran.append(self.name)
                return run(self, module, target)  # type: ignore[no-any-return]

            monkeypatch.setattr(kind, "run", counted)
        for report in (("--fusion",), ("--remarks", "all"), ("--memory", tmp_path / "plan.svg")):
            for file in (program, text, *([dump] if report[0] != "--memory" else [])):
                record_of("inspect", file, *report)
                assert ran == [], report
            record_of("inspect", model, *report, *OPTIONS)
            assert ran == [step.name for step in PIPELINE], report
            ran.clear()

    def test_a_model_its_program_and_its_dump_give_the_same_report(self, model: Path, tmp_path: Path) -> None:
        program, dump = tmp_path / "mlp.ppu", tmp_path / "steps"
        record_of("compile", model, *OPTIONS, "-o", program, "--dump", dump)
        for report in (("--fusion",), ("--remarks", "missed")):
            found = [record_of("inspect", f, *report) for f in (program, dump, max(dump.glob("*.ppir")))]
            found.append(record_of("inspect", model, *report, *OPTIONS))
            for record in found:
                del record["file"]
            assert all(record == found[0] for record in found[1:])

    @pytest.mark.parametrize("seed", range(12))
    def test_kernels_add_up_to_those_of_the_program(self, seed: int) -> None:
        target, precision = (("ppu-tiny", "model"), ("zhenwu-m890", "bf16"), ("zhenwu-810e", "model"))[seed % 3]
        sample = model_of_seed(seed, 8)
        made = compile_model(sample.model, CompileOptions(load_target(target), precision, values=sample.feeds))
        kernels = sum(len(s.kernels) for s in made.artifact.program.segments)
        record = fusion_record(made.remarks)
        assert record["kernels"] == kernels
        assert (record["after_fusion"] or [{"after": kernels}])[-1]["after"] == kernels

    def test_costly_refusals_come_first(self) -> None:
        done = Remark("split-k", "applied", "split-k", "y", (), "", 9.0, 1.0)
        found = ranked([Remark("emit", "note", "streams", "p"), done, missed(1.0), missed(5.0, entity="z"), missed()])
        assert [r.lost_clk for r in found] == [5.0, 1.0, 0.0, 0.0, 0.0]
        assert found[2] is done

    def test_edges_are_shown_as_later_passes_left_them(self) -> None:
        """A tensor that is stored in half the bytes costs half; one that a cascade keeps in l1 costs nothing."""

        def edge(entity: str, reader: str) -> Remark:
            details = {"bytes": 800, "lost_clk": 40.0, "from_op": "conv", "to_op": "matmul"}
            return Remark("fuse", "missed", "not-fused", entity, ("n", reader), "why", details=details)

        edges = [edge("a", "r"), edge("b", "r"), edge("c", "r"), edge("c", "s"), edge("d", "r")]
        later = [
            Remark("precision", "applied", "stored-narrow", "a", details={"bytes": 400}),
            Remark("cascade", "applied", "cascaded", "b", ("n", "r"), details={"kernels": -1}),
            Remark("join", "applied", "part-in-place", "c", ("r",)),
            Remark("cascade", "missed", "not-cascaded", "d", ("n", "r"), "too long", 5.0, 9.0),
            Remark("cascade", "applied", "cascaded", "d", ("n", "r"), segment=1),
        ]
        a, b, c, other, d = settled([*edges, *later])[:5]
        assert (a.details["bytes"], a.lost_clk) == (400, 20.0)
        assert [(r.kind, r.decision, r.lost_clk) for r in (b, c)] == [("applied", "fused", 0.0)] * 2
        assert other == edges[3]
        assert (d.kind, d.reason, d.lost_clk) == ("missed", "too long", 40.0)
        assert settled([*edges, *later])[5:] == later

    def test_filters(self) -> None:
        remarks = [
            missed(nodes=("conv_1", "relu_1")),
            missed(pass_name="split-k", decision="not-split-k", entity="conv_2"),
            missed(pass_name="split-k", kind="applied", decision="split-k", entity="y"),
        ]
        kept = {
            f: [remarks.index(r) for r in chosen(remarks, f)] for f in ("all", "split-k", "split-k,missed", "conv_")
        }
        assert kept == {"all": [0, 1, 2], "split-k": [1, 2], "split-k,missed": [1], "conv_": [0, 1]}
        assert [remarks.index(r) for r in chosen(remarks, "not-split-k")] == [1]
        assert chosen(remarks, "relu_1, fuse") == (remarks[0],)
        assert chosen(remarks, "fues") == ()

    def test_the_commands_print_tables(self, model: Path, tmp_path: Path) -> None:
        program = tmp_path / "mlp.ppu"
        shown = invoke("compile", model, *OPTIONS, "-o", program, "--remarks", "fuse")
        assert shown.exit_code == 0, shown.stderr
        assert "fuse: " in shown.stdout
        assert "not-fused" in shown.stdout
        assert "memory-space-assignment" not in shown.stdout
        inspected = invoke("inspect", program, "--remarks", "fuse")
        assert inspected.stdout in shown.stdout
        assert "no remark matches" in invoke("inspect", program, "--remarks", "nothing-like-it").stdout

    def test_mistakes(self, model: Path, tmp_path: Path) -> None:
        program, silent = tmp_path / "mlp.ppu", tmp_path / "silent.ppu"
        record_of("compile", model, *OPTIONS, "-o", program)
        save(replace(load(program), notes={}), silent)
        for arguments, text in (
            ((silent, "--fusion"), "holds no remarks of the compiler"),
            ((tmp_path, "--remarks", "all"), "holds no remarks of the compiler"),
            ((program, "--remarks", "all", "-p", "bf16"), "shows a compiled plan as it is"),
            ((program, "--fusion", "--dim", "N=4"), "none: the program has fixed sizes"),
        ):
            done = invoke("inspect", *arguments)
            assert done.exit_code == 2, arguments
            assert text in done.stderr

"""Records of runs: complete, the same as what the command printed, and readable again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from ppuc.compiler.entry import compile_program
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.recording.passes import PassWatch
from ppuc.compiler.recording.record import FORMAT, read_record, run_record, write_record
from ppuc.ir.errors import UsageError
from ppuc.ir.text import print_module
from ppuc.targets.description import load_target
from tests.support.small_models import mlp

TARGET = load_target("ppu-tiny")
OPTIONS = CompileOptions(TARGET, dims={"N": 40})


def watched(model: onnx.ModelProto, options: CompileOptions = OPTIONS) -> tuple[CompiledProgram, PassWatch]:
    watch = PassWatch(options.target)
    return compile_program(model, options, Instrumentation(seen=watch)), watch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], CompiledProgram, PassWatch]:
    file = tmp_path_factory.mktemp("record") / "m.onnx"
    onnx.save(mlp(), file)
    program, watch = watched(mlp())
    return run_record("profile", file, program, {"profile": {"cycles": 1.0}}, watch), program, watch


class TestRecord:
    def test_holds_passes_kernels_and_sections(self, made: tuple[dict[str, Any], CompiledProgram, PassWatch]) -> None:
        record, program, watch = made
        assert [p["pass"] for p in record["passes"]] == [p.name for p in program.passes]
        changed = [p["pass"] for p in record["passes"] if p["change"] is not None]
        assert changed == [c.step for c in watch.changes]
        assert set(record["kernels"]) == {k.name for s in program.artifact.program.segments for k in s.kernels}
        assert all("for " in k["loops"] or "load" in k["loops"] for k in record["kernels"].values())
        tensors = record["tensors"]
        assert all(name in tensors for k in record["kernels"].values() for name in (*k["reads"], *k["writes"]))
        copies = {c.dst: c.src for s in program.artifact.program.segments for c in s.copies}
        assert copies
        assert {name: t["copy_of"] for name, t in tensors.items() if t["copy_of"] is not None} == copies
        assert record["profile"] == {"cycles": 1.0}

    @pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
    def test_is_read_as_written(
        self, name: str, made: tuple[dict[str, Any], CompiledProgram, PassWatch], tmp_path: Path
    ) -> None:
        write_record(tmp_path / name, made[0])
        assert read_record(tmp_path / name) == json.loads(json.dumps(made[0]))

    def test_of_a_loaded_program_has_remarks_and_no_graph(self, made: Any) -> None:
        record = run_record("profile", Path("m.ppu"), made[1], {})
        assert record["graph"] is None
        remarks = [r for p in record["passes"] for r in p["remarks"]]
        assert sorted(map(str, remarks)) == sorted(str(r.record()) for r in made[1].remarks)

    def test_watching_changes_no_byte(self) -> None:
        plain = compile_program(mlp(), OPTIONS)
        seen, _ = watched(mlp())
        assert seen.artifact.program == plain.artifact.program
        assert seen.artifact.notes == plain.artifact.notes

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("{}", "is not the record of a run"),
            ('{"format": "other"}', "is not the record of a run"),
            ("[1]", "is not the record of a run"),
            ("not json", "is not the record of a run"),
            (json.dumps({"format": FORMAT}), "is not the record of a run"),
            (json.dumps({"format": FORMAT, "schema": 99}), "was written by a later ppuc"),
        ],
    )
    def test_refuses_other_files(self, text: str, what: str, tmp_path: Path) -> None:
        for name, data in (("a.json", text.encode()), ("a.json.gz", gzip.compress(text.encode()))):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(UsageError, match=what):
                read_record(tmp_path / name)

    def test_refuses_a_truncated_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-9])
        with pytest.raises(UsageError, match="is not the record of a run"):
            read_record(tmp_path / "a.json.gz")
        with pytest.raises(UsageError, match="cannot be read"):
            read_record(tmp_path / "missing.json")

    def test_refuses_a_damaged_file(self, tmp_path: Path) -> None:
        data = bytearray(gzip.compress(b"{}" * 1000))
        data[12:16] = b"\xff" * 4
        (tmp_path / "a.json.gz").write_bytes(data)
        with pytest.raises(UsageError, match="is not the record of a run"):
            read_record(tmp_path / "a.json.gz")


class TestPassWatch:
    def test_a_difference_turns_one_text_into_the_next(self) -> None:
        texts: list[tuple[str, list[str]]] = []
        watch = PassWatch(TARGET)

        def seen(step: str, module: Any) -> None:
            watch(step, module)
            texts.append((step, print_module(module).splitlines()))

        compile_program(mlp(), OPTIONS, Instrumentation(seen=seen))
        assert [c.step for c in watch.changes] == [step for step, _ in texts]
        for change in watch.changes:
            assert change.added == sum(line.startswith("+") for line in change.diff)
            assert change.removed == sum(line.startswith("-") for line in change.diff)
        added = {line[1:] for line in watch.changes[-1].diff if line.startswith("+")}
        assert added <= set(texts[-1][1])

    def test_kernels_and_expected_cycles_are_those_of_the_module(self) -> None:
        program, watch = watched(mlp())
        last = watch.changes[-1]
        assert last.kernels == len(program.artifact.program.segments[0].kernels)
        assert last.expected_clk is not None
        assert last.expected_clk > 0
        assert watch.changes[0].expected_clk is None

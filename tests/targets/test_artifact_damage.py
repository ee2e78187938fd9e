"""Files that are not .ppu files, truncated files and damaged files: none is accepted as a program."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.ir.checksum import checksum
from ppuc.ir.errors import ArtifactError
from ppuc.ir.types import DType, TensorType
from ppuc.targets.artifact import Artifact, IOSpec, check, load, save
from ppuc.targets.description import load_target
from tests.support.artifact_samples import sample
from tests.support.damage import cuts, flipped
from tests.support.simulator_programs import RELU, chain_program
from tests.support.small_models import mlp


def small() -> Artifact:
    """A valid program of a few kilobytes with constants, one of them stored once for two, and a host part."""
    program = chain_program(m=16, k=8, n=16, n2=8, grid=(1, 1))
    rng = np.random.default_rng(4)
    weights = {t.name: rng.standard_normal(t.elements, np.float32) for t in program.tensors if t.name in ("w0", "b")}
    tensors = [replace(t, role="const") if t.name in weights else t for t in program.tensors]
    tensors.append(replace(tensors[1], name="b2", address=1 << 13))
    made = replace(program, tensors=tuple(tensors), inputs=(("X", "a"),), target="ppu-tiny")
    inputs = (IOSpec("X", "a", TensorType(DType.F32, (16, 8))),)
    outputs = (IOSpec("Y", "y", TensorType(DType.F32, (16, 8))),)
    host = {"step0": b"an ONNX model, say"}
    return Artifact(made, (RELU,), {**weights, "b2": weights["b"]}, inputs, outputs, {"model": "chain"}, host)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.ppu"
    save(sample(), path)
    return path


@pytest.fixture
def little(tmp_path: Path) -> Path:
    path = tmp_path / "little.ppu"
    save(small(), path)
    check(path)
    return path


def header_bytes(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


# Damage.


def each_flipped(path: Path, bits: Iterable[int]) -> Iterator[int]:
    """Flips bits of a file one after another, each back again before the next."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            for data in (flipped(content, bit), content):
                file.seek(bit // 8)
                file.write(data[bit // 8 : bit // 8 + 1])
                if data is not content:
                    yield bit


def test_every_bit_of_the_header_counts(little: Path) -> None:
    passed = []
    for bit in each_flipped(little, range(8 * header_bytes(little.read_bytes()))):
        with suppress(ArtifactError):
            load(little)
            passed.append(bit)
    assert not passed
    check(little)


def test_any_bit_counts(little: Path) -> None:
    passed, rng = [], random.Random(1)
    for bit in each_flipped(little, (rng.randrange(8 * little.stat().st_size) for _ in range(3000))):
        with suppress(ArtifactError):
            check(little)
            passed.append(bit)
    assert not passed
    check(little)


def test_weights_are_checked_when_they_are_used(little: Path) -> None:
    for name, place in ((n, load(little).constants[n].file) for n in ("w0", "b", "b2")):
        for _ in each_flipped(little, (8 * at + at % 8 for at in range(place.offset, place.offset + place.length, 7))):
            artifact = load(little)  # which reads no weights
            with pytest.raises(ArtifactError) as caught:
                artifact.constant(name)
            assert str(caught.value) == (
                f"{little}: is damaged: the bytes of '{name}' are not those that were written\n"
                "  hint: copy the file again, or recreate it"
            )


def test_lost_and_exchanged_parts_are_noticed(little: Path) -> None:
    for damaged in cuts(little.read_bytes(), 1500, random.Random(2)):
        little.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            check(little)


def test_truncation_at_any_byte_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    header = header_bytes(content)
    cut_at = {*range(50), header - 1, header, header + 1, len(content) - 1, *range(20, len(content), 211)}
    for cut in sorted(cut_at):
        saved.write_bytes(content[:cut])
        with pytest.raises(ArtifactError) as caught:
            load(saved)
        assert str(caught.value).startswith(f"{saved}: is not a" if cut < 9 else f"{saved}: is damaged: it ")


def test_bytes_after_the_end_are_noticed(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match=r"is damaged: it has \d+ bytes of data, its header declares \d+"):
        load(saved)


def test_a_file_that_goes_while_it_is_used(saved: Path) -> None:
    artifact = load(saved)
    saved.unlink()
    with pytest.raises(ppuc.PpucError, match="cannot be read\n  got: No such file or directory"):
        artifact.constant("w")


# Through the commands.


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "p.ppu"
    ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 3}).save(path)
    return path


def test_a_damaged_weight_stops_a_run_but_no_timing(program: Path) -> None:
    content, weight = program.read_bytes(), load(program).constants["w1"]
    program.write_bytes(flipped(content, 8 * (weight.file.offset + 5)))  # type: ignore[union-attr]
    message = f"error: {program}: is damaged: the bytes of 'w1' are not those that were written\n"
    for command in (["run"], ["inspect", "--check"], ["profile", "--no-interval"]):
        result = CliRunner().invoke(cli, [*command, str(program)])
        assert result.exit_code == 2, result.output
        assert message in result.output
    for command in (["profile", "--timing-only", "--no-interval"], ["inspect"], ["disasm"]):
        assert CliRunner().invoke(cli, [*command, str(program)]).exit_code == 0


def test_inspect_checks_a_whole_file(program: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", "--check", str(program), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["checked"] is True
    assert json.loads(CliRunner().invoke(cli, ["inspect", str(program), "--json"]).output)["checked"] is False
    shown = CliRunner().invoke(cli, ["inspect", "--check", str(program)]).output
    assert "  checked: all checksums match" in shown


def test_check_is_for_programs(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(mlp().SerializeToString())
    result = CliRunner().invoke(cli, ["inspect", "--check", str(tmp_path / "m.onnx")])
    assert result.exit_code == 2
    assert "--check: reads all of a compiled program\n  got: " in result.output


# Files of others.


def test_another_target_is_refused(saved: Path) -> None:
    tiny = load_target("ppu-tiny")
    with pytest.raises(ArtifactError) as caught:
        load(saved, tiny)
    assert str(caught.value) == (
        f"{saved}: was compiled for another machine\n  got: ppu-tiny (0123456789abcdef)\n"
        f"  expected: ppu-tiny ({tiny.hash})\n  hint: compile the model again for this target"
    )
    artifact = sample()
    save(replace(artifact, program=replace(artifact.program, target_hash=tiny.hash)), saved)
    assert load(saved, tiny).program.target_hash == tiny.hash


def test_the_first_version_is_refused(saved: Path) -> None:
    """Its metadata began with the checksum too, but of 64 digits; no file has a hash for each tensor."""
    content = saved.read_bytes()
    header = json.loads(content[8 : header_bytes(content)])
    del header["__metadata__"]["hashes"]
    header["__metadata__"] |= {"version": "1", "checksum": "0" * 64, "host": "{}", "shared": "{}"}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    saved.write_bytes(len(text).to_bytes(8, "little") + text + content[header_bytes(content) :])
    with pytest.raises(ArtifactError) as caught:
        load(saved)
    assert str(caught.value) == (
        f"{saved}: has another format version\n  got: 1\n  expected: 3\n"
        "  hint: compile the model again with this version of ppuc"
    )


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "0 bytes, the first of them missing"),
        (b"\x08\x0aonnx", "6 bytes, the first of them 08 0a 6f 6e 6e 78"),
        (b"PK\x03\x04" + bytes(100), "104 bytes, the first of them 50 4b 03 04 00 00 00 00"),
        (b"\xff" * 64, "64 bytes, the first of them ff ff ff ff ff ff ff ff"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, got: str) -> None:
    path = tmp_path / "m.ppu"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: is not a .ppu file\n  got: {got}\n  hint: make one with `ppuc compile MODEL.onnx`"
    )


def test_other_safetensors_files_are_foreign(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(ArtifactError, match=r"is not a \.ppu file\n  got: a safetensors file without a program"):
        load(tmp_path / "w.safetensors")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.ppu: cannot be read\n  got: No such file or directory"):
        load(tmp_path / "m.ppu")
    with pytest.raises(ArtifactError, match="cannot be read\n  got: Is a directory"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be read\n  got: File name too long"):
        load(tmp_path / ("n" * 300))
    with pytest.raises(ArtifactError, match="cannot be read\n  got: embedded null byte"):
        load(f"{tmp_path}/a\0b")


# Forgery: headers with the right checksum.


def rewrite(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file and make its checksum right again, as a careful forger would."""
    content = path.read_bytes()
    start = header_bytes(content)
    header = json.loads(content[8:start])
    edit(header)
    write_header(path, json.dumps(header, sort_keys=True, separators=(",", ":")), content[start:])


def write_header(path: Path, text: str, data: bytes) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    raw = len(raw).to_bytes(8, "little") + raw
    begin = 8 + len('{"__metadata__":{"checksum":"')
    digits = checksum(raw[:begin], raw[begin + 32 :])
    path.write_bytes(raw[:begin] + digits.encode() + raw[begin + 32 :] + data)


def test_the_forger_of_the_next_tests_knows_the_format(saved: Path) -> None:
    rewrite(saved, lambda header: header["__metadata__"].update(meta='{"model":"other"}'))
    assert load(saved).meta == {"model": "other"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h["__metadata__"].update(constants='{"w":"bf16[64, 255]"}'),
        lambda h: h["__metadata__"].update(constants='{"w":"bf17[64, 256]"}'),
        lambda h: h["__metadata__"].update(constants='{"nothing":"i8[1]"}'),
        lambda h: h["__metadata__"].update(constants="[]"),
        lambda h: h["__metadata__"].update(constants="{"),
        lambda h: h["__metadata__"].update(constants="{}"),
        lambda h: h["__metadata__"].update(shared='{"w":"b"}'),
        lambda h: h["__metadata__"].update(symbols='["a"]'),
        lambda h: h["__metadata__"].update(symbols="7"),
        lambda h: h["__metadata__"].update(symbols="[" * 100000),
        lambda h: h["__metadata__"].update(inputs='[["X","x"]]'),
        lambda h: h["__metadata__"].update(inputs='[["X","x",7]]'),
        lambda h: h["__metadata__"].update(meta="{"),
        lambda h: h["__metadata__"].update(meta='{"a":7}'),
        lambda h: h["__metadata__"].update(meta='{"a":"x","a":"y"}'),
        lambda h: h["__metadata__"].pop("symbols"),
        lambda h: h["__metadata__"].pop("hashes"),
        lambda h: h["__metadata__"].update(symbols=7),
        lambda h: h["__metadata__"].update(hashes="{}"),
        lambda h: h["__metadata__"].update(hashes=h["__metadata__"]["hashes"].replace("const.t", "const.u")),
        lambda h: h["code"].update(data_offsets=[0]),
        lambda h: h["code"].update(data_offsets=[5, 3]),
        lambda h: h["code"].update(data_offsets=[False, True]),
        lambda h: h["code"].update(shape=[1, 32]),
        lambda h: h["code"].update(dtype="U7"),
        lambda h: h["const.t"].update(data_offsets=[0, 13]),
        lambda h: h["const.t"].update(shape=[-13]),
        lambda h: h["const.t"].update(shape=[10**400]),
        lambda h: h["const.t"].update(shape=[13.0]),
        lambda h: h.pop("const.t"),
        lambda h: h.update({"const.t": 7}),
    ],
)
def test_a_header_that_contradicts_itself_is_damage(saved: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    rewrite(saved, edit)
    with pytest.raises(ArtifactError, match="is damaged"):
        load(saved)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"code":{', '"code":{"dtype":"U8",', "the name 'dtype' occurs twice"),
        ('"code":{', '"code":{"more":NaN,', "NaN is not a JSON number"),
        ('"code":{', '"code":{"more":-Infinity,', "-Infinity is not a JSON number"),
        ('"code":{', '"code":{"more":1e999,', "the number 1e999 is too large"),
        ('"code":{', '"code":{"more":9' + "9" * 30 + ",", "a number is too large"),
        ('"code":{', '"code":{"more":"\\ud800",', "surrogates not allowed"),
        ('"code":{', '"code":{"\\udc00":1,', "surrogates not allowed"),
        ('"code":{', '"code":{"more":"\ud800",', "can't decode"),
        ('"code":{', '"code":{"more":' + "[" * 70 + "]" * 70 + ",", "it is nested too deeply"),
        ('"code":{', '"code":{"more":' + "[" * 90_000 + "]" * 90_000 + ",", "it is nested too deeply"),
        ('"code":{', '"code":{"more":' + "9" * 5000 + ",", "Exceeds the limit"),
        ('"code":{', '"code"{', "delimiter"),
    ],
)
def test_a_header_says_one_thing_only(saved: Path, old: str, new: str, why: str) -> None:
    content = saved.read_bytes()
    start = header_bytes(content)
    text = content[8:start].decode()
    assert text.count(old) == 1
    write_header(saved, text.replace(old, new), content[start:])
    with pytest.raises(ArtifactError, match="is damaged: its header is not as it was written") as caught:
        load(saved)
    assert why in str(caught.value)


def test_a_section_of_a_later_version_is_refused(saved: Path) -> None:
    rewrite(saved, lambda header: header["__metadata__"].update(mesh="{}"))
    with pytest.raises(ArtifactError) as caught:
        load(saved)
    assert str(caught.value) == (
        f"{saved}: has a section that this version of ppuc does not know: 'mesh'\n"
        "  hint: use the version of ppuc that wrote the file, or a later one"
    )


def test_sections_that_are_not_needed_take_no_byte(tmp_path: Path, saved: Path, little: Path) -> None:
    assert b'"shared"' not in saved.read_bytes()
    assert b'"shared"' in little.read_bytes()
    assert load(little).host == {"step0": b"an ONNX model, say"}
    np.testing.assert_array_equal(load(little).constant("b2"), load(little).constant("b"))


def test_a_program_that_breaks_the_rules(tmp_path: Path) -> None:
    artifact = sample()
    first = replace(artifact.program.tensors[0], role="something")
    broken = replace(artifact, program=replace(artifact.program, tensors=(first, *artifact.program.tensors[1:])))
    save(broken, tmp_path / "p.ppu")
    load(tmp_path / "p.ppu")
    with pytest.raises(ArtifactError, match=r"holds a program that breaks the rules of the IR\n  got: .*P7"):
        check(tmp_path / "p.ppu")


def test_types_of_inputs_survive(little: Path) -> None:
    assert load(little).inputs == (IOSpec("X", "a", TensorType(DType.F32, (16, 8))),)

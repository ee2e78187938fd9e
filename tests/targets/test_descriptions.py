"""Target descriptions: the builtin machines, strict loading, and overrides, with the exact text of their errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tomllib
from pathlib import Path

import pytest

import ppuc.targets.description as description
from ppuc.ir.errors import TargetError
from ppuc.ir.types import DType
from ppuc.targets.description import Target, builtin_targets, default_target, load_target, override, validation_targets
from ppuc.targets.schema import MARKS, TENSOR_DTYPES, AttentionLibrary, SoftmaxLibrary

FOLDER = Path(description.__file__).parent


@pytest.fixture
def m890() -> Target:
    return load_target("zhenwu-m890")


def edited(folder: Path, *edits: tuple[str, str]) -> Path:
    """A copy of the tiny machine's file with text replaced."""
    text = (FOLDER / "ppu-tiny.toml").read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / "ppu-tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def line_of(key: str, section: str = "") -> str:
    """The line of `key` (the first one of that name, or in `section`) in the tiny machine's file."""
    text = (FOLDER / "ppu-tiny.toml").read_text(encoding="utf-8")
    body = text[text.index(f"[{section}]") :] if section else text
    return next(line for line in body.split("\n") if line.startswith(f"{key} = "))


# The builtin machines.


def test_builtin_targets() -> None:
    assert builtin_targets() == ["ppu-edge", "ppu-tiny", "zhenwu-810e", "zhenwu-m890"]
    gpus = {f"{name}-class" for name in ("a100", "h100", "h200", "b200", "gb200", "b300", "gb300", "l40s", "h20")}
    assert set(validation_targets()) == gpus | {"tpuv3-core", "tpuv5e-core", "tpuv6e-core", "systolic-128"}
    assert default_target() in builtin_targets()


@pytest.mark.parametrize("name", [*builtin_targets(), *validation_targets()])
def test_every_number_has_unit_mark_and_source(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert {leaf.mark for leaf in target.leaves()} <= set(MARKS)
    for leaf in target.leaves():
        assert leaf.unit, leaf
        assert len(leaf.source) >= 7, leaf


@pytest.mark.parametrize("name", [*builtin_targets(), *validation_targets()])
def test_leaves_are_the_numbers_of_the_target(name: str) -> None:
    target = load_target(name)
    for leaf in target.leaves():
        if leaf.path.startswith("peak_tops."):
            assert target.peak_tops(leaf.path.partition(".")[2]) == pytest.approx(leaf.value, rel=0.02)
            continue
        value = target
        for part in leaf.path.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        assert value == leaf.value, leaf


@pytest.mark.parametrize("name", builtin_targets())
def test_a_path_loads_the_same_machine(name: str) -> None:
    assert load_target(FOLDER / f"{name}.toml") == load_target(name)
    assert load_target(FOLDER / f"{name}.toml").hash == load_target(name).hash


@pytest.mark.parametrize(
    ("name", "dtype", "tops"),
    [
        # Published or fitted peaks of the parts, from the formula 2 x units x lanes x m n k / interval x clock.
        ("zhenwu-810e", DType.BF16, 148.5),
        ("zhenwu-810e", DType.I8, 297.0),
        ("zhenwu-m890", DType.BF16, 445.6),
        ("zhenwu-m890", DType.F8E4M3, 891.0),
        ("zhenwu-m890", DType.F8E5M2, 891.0),
        ("zhenwu-m890", DType.F4E2M1, 1782.0),
        ("ppu-edge", DType.BF16, 39.3),
        ("ppu-tiny", DType.BF16, 0.256),
        ("h20-class", DType.F8E4M3, 292.3),
    ],
)
def test_peaks(name: str, dtype: DType, tops: float) -> None:
    assert load_target(name).peak_tops(dtype) == pytest.approx(tops, rel=0.002)
    assert load_target(name).peak_tops(dtype.value) == load_target(name).peak_tops(dtype)


def test_derived_numbers(m890: Target) -> None:
    assert m890.peak_macs_per_clk("bf16") == 64 * 8 * 16 * 16 * 16 / 16
    assert m890.peak_macs_per_clk(DType.F32) == m890.peak_macs_per_clk("bf16") / 4
    assert m890.clk_ns == pytest.approx(1 / 1.7)
    assert m890.ces == 16


def test_supported_dtypes() -> None:
    tensor = load_target("zhenwu-810e").tensor
    assert tensor.supports("f32")
    assert tensor.supports(DType.BF16)
    assert not tensor.supports(DType.F8E4M3)
    assert not tensor.supports(DType.I64)
    assert set(load_target("zhenwu-m890").tensor.ii_clk) == set(TENSOR_DTYPES)
    assert not load_target("h20-class").tensor.supports("f4e2m1")


def test_a_busy_810e_stays_near_its_power_limit() -> None:
    """All engines at peak on bf16: static, tensor, vector at a quarter, l1 and l2 at half, hbm. About 350 of 400 W."""
    t = load_target("zhenwu-810e")
    clk = t.clock.max_mhz * 1e6
    watts = t.power.idle_w
    watts += t.peak_macs_per_clk("bf16") * clk * t.energy.mac_pj["bf16"] * 1e-12
    watts += t.cu * t.vector.lanes / 4 * clk * t.energy.vector_op_pj * 1e-12
    watts += t.cu * t.l1.bytes_per_clk / 2 * clk * t.energy.l1_pj_per_byte * 1e-12
    watts += t.l2.bytes_per_clk_total / 2 * clk * t.energy.l2_pj_per_byte * 1e-12
    watts += t.hbm.gbs * t.hbm.efficiency * 1e9 * t.energy.hbm_pj_per_byte * 1e-12
    assert 300 < watts < 400


def test_targets_are_values(m890: Target) -> None:
    assert copy.deepcopy(m890) == m890
    assert pickle.loads(pickle.dumps(m890)) == m890
    assert len({m890, load_target("zhenwu-810e"), copy.deepcopy(m890)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        m890.cu = 3  # type: ignore[misc]


def test_hash_covers_the_machine_and_not_its_words(tmp_path: Path) -> None:
    same = edited(tmp_path, ('description = "', 'description = "Renamed. '), ('"chosen small"', '"set by hand"'))
    assert load_target(same).hash == load_target("ppu-tiny").hash
    hashes = {load_target(name).hash for name in builtin_targets()}
    assert len(hashes) == len(builtin_targets())
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)


# Strict loading.


def test_unknown_names() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("zhenwu-m980")
    assert str(caught.value) == (
        "target 'zhenwu-m980': no target has this name\n"
        f"  expected: one of {', '.join([*builtin_targets(), *validation_targets()])}, or the path of a .toml file\n"
        "  hint: did you mean 'zhenwu-m890'?"
    )


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [("bytes_per_clk_total", "bytes_per_clk_totall")],
            "l2.bytes_per_clk_totall: is not a key of the schema\n  hint: did you mean 'l2.bytes_per_clk_total'?\n"
            "{file}: l2.bytes_per_clk_total: is missing\n"
            '  expected: { value = 64, unit = "B/clk", mark = "E", source = "..." }',
        ),
        ([('unit = "CU"', 'unit = "cores"')], "cu: has the wrong unit\n  got: cores\n  expected: CU"),
        (
            [('mark = "D"', 'mark = "X"')],
            'cu: has an unknown mark\n  got: "X"\n  expected: F, M, E, E-cal, D',
        ),
        (
            [('mark = "D"', "mark = { a = 1 }")],
            'cu: has an unknown mark\n  got: {"a": 1}\n  expected: F, M, E, E-cal, D',
        ),
        ([("value = 2,", "value = -2,")], "cu: must be above 0\n  got: -2"),
        ([("value = 2,", "value = 0,")], "cu: must be above 0\n  got: 0"),
        ([("value = 2,", "value = 2.5,")], "cu: has the wrong type\n  got: 2.5\n  expected: an integer in CU"),
        ([("value = 2,", "value = true,")], "cu: has the wrong type\n  got: true\n  expected: an integer in CU"),
        (
            [("value = 1000,", "value = inf,")],
            "clock.max_mhz: must be above 0\n  got: Infinity",
        ),
        (
            [("native_mx = { value = true", "native_mx = { value = 1")],
            "tensor.native_mx: has the wrong type\n  got: 1\n  expected: true or false in flag",
        ),
        (
            [("lane_grid = { value = [1, 1]", "lane_grid = { value = [1]")],
            "tensor.lane_grid: has the wrong type\n  got: [1]\n  expected: 2 integers in rows,cols",
        ),
        (
            [(line_of("issue_clk"), "issue_clk = 8")],
            "issue_clk: is not a number with its provenance\n  got: 8\n"
            '  expected: { value = 64, unit = "clk", mark = "E", source = "..." }',
        ),
        (
            [(line_of("issue_clk"), 'issue_clk = { value = 8, unit = "clk", mark = "E" }')],
            "issue_clk: is not a number with its provenance\n  got: value, unit, mark\n"
            '  expected: { value = 64, unit = "clk", mark = "E", source = "..." }',
        ),
        (
            [(line_of("issue_clk"), 'issue_clk = { value = 8, unit = "clk", mark = "E", source = " " }')],
            'issue_clk: has no source\n  got: " "\n  expected: a sentence saying where it is from',
        ),
        (
            [("ii_clk]\nf32 = { value = 128", "ii_clk]\nfp32 = { value = 128")],
            "tensor.ii_clk.fp32: is not a key of the schema\n  hint: did you mean 'tensor.ii_clk.f32'?\n"
            "{file}: tensor.ii_clk.f32: is missing\n"
            '  expected: { value = 64, unit = "clk", mark = "E", source = "..." }',
        ),
        (
            [("bf16 = { value = 64,", "bf16 = { value = 65,")],
            None,
        ),
        (
            [("bf16 = { value = 64,", "bf16 = { value = 96,")],
            "peak_tops.bf16: disagrees with the tensor engine's timing\n  got: 0.256\n"
            "  expected: 0.1707 within 2 % (2 x cu x lanes x m x n x k / ii_clk x max_mhz)",
        ),
        (
            [("cu_per_ce = { value = 2", "cu_per_ce = { value = 3")],
            "cu_per_ce: does not divide cu\n  got: 2 units in groups of 3",
        ),
        (
            [('"lanes"', '"lane"')],
            'tensor.organisation: is not one of the choices\n  got: "lane"\n  expected: lanes or systolic',
        ),
        (
            [('"lanes"', '"systolic"')],
            "tensor.fragment.f32: is not one step of a systolic array\n  got: [16, 16, 8]\n  expected: [R, C, 1]",
        ),
        (
            [('dataflow = { value = "output"', 'dataflow = { value = "weight"')],
            "tensor.dataflow: must be output for lanes: they keep the accumulator\n  got: weight\n  expected: output",
        ),
        (
            [("sustained = { value = 1.0", "sustained = { value = 1.1")],
            "clock.sustained: must be at most 1\n  got: 1.1",
        ),
        (
            [("native_fp8 = { value = true", "native_fp8 = { value = false")],
            "tensor.native_fp8: disagrees with tensor.ii_clk.f8e4m3\n  got: false, listed",
        ),
        (
            [("bytes_per_clk_total = { value = 16", "bytes_per_clk_total = { value = 17")],
            "l2.bytes_per_clk_total: is more than the slices give\n  got: 17\n"
            "  expected: at most 16 (slices x bytes_per_clk_per_slice)",
        ),
        (
            [("efficiency = { value = 0.9", "efficiency = { value = 1.1")],
            "hbm.efficiency: must be at most 1\n  got: 1.1",
        ),
        (
            [("alignment_bytes = { value = 32", "alignment_bytes = { value = 24")],
            "alignment_bytes: must be a power of two\n  got: 24",
        ),
        (
            [("instruction_bytes = { value = 32", "instruction_bytes = { value = 16")],
            "instruction_bytes: must be the width of the only encoding\n  got: 16\n  expected: 32",
        ),
        (
            [("hw_slow_c = { value = 92", "hw_slow_c = { value = 99")],
            "temperature: must ascend from ambient to sw_limit, hw_slow and shutdown\n  got: (35.0, 85.0, 99.0, 95.0)",
        ),
        (
            [("idle_w = { value = 0.1", "idle_w = { value = 7")],
            "power.idle_w: is above power.tdp_w\n  got: 7.0\n  expected: at most 1.0",
        ),
    ],
)
def test_a_file_must_fit_the_schema(tmp_path: Path, edits: list[tuple[str, str]], message: str | None) -> None:
    path = edited(tmp_path, *edits)
    if message is None:
        load_target(path)
        return
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert str(caught.value).startswith(f"{path}: {message.replace('{file}', str(path))}")


def test_a_file_must_be_readable_toml(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"missing\.toml: cannot be read\n  got: No such file or directory"):
        load_target(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("cu = = 3\n")
    with pytest.raises(TargetError, match=r"bad\.toml: is not TOML\n  got: Invalid value \(at line 1, column 6\)"):
        load_target(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xff'\n")
    with pytest.raises(TargetError, match=r"latin\.toml: is not UTF-8 text"):
        load_target(tmp_path / "latin.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(TargetError, match=r"empty\.toml: name: is missing\n  expected: a string"):
        load_target(tmp_path / "empty.toml")


def test_a_name_need_not_be_the_name_of_the_file(tmp_path: Path) -> None:
    assert load_target(edited(tmp_path, ('name = "ppu-tiny"', 'name = "ppu-huge"'))).name == "ppu-huge"


def differing(folder: Path, name: str, like: str, *lines: str) -> Path:
    """A file that states how its machine differs from another one."""
    path = folder / f"{name}.toml"
    path.write_text("\n".join([f'name = "{name}"', 'description = "another"', f'like = "{like}"', *lines]) + "\n")
    return path


FASTER = '[hbm]\ngbs = { value = 5000, unit = "GB/s", mark = "F", source = "a datasheet" }'


def test_a_file_may_state_only_what_differs_from_another_machine(tmp_path: Path) -> None:
    m890 = load_target("zhenwu-m890")
    mine = load_target(differing(tmp_path, "mine", "zhenwu-m890", FASTER))
    assert mine.hash == override(m890, "hbm.gbs=5000").hash
    paths = [leaf.path for leaf in m890.leaves() if not leaf.path.startswith("peak_tops.")]
    assert [leaf.path for leaf in mine.leaves()] == paths
    changed = [leaf for leaf, old in zip(mine.leaves(), m890.leaves(), strict=False) if leaf != old]
    assert [(leaf.path, leaf.mark, leaf.source) for leaf in changed] == [("hbm.gbs", "F", "a datasheet")]
    beside = load_target(differing(tmp_path, "third", "./mine.toml"))
    assert (beside.name, beside.hash) == ("third", mine.hash)


def test_a_feature_that_a_file_leaves_out_is_one_that_the_machine_lacks(tmp_path: Path) -> None:
    tiny = load_target(edited(tmp_path))
    assert "[attention]" not in (tmp_path / "ppu-tiny.toml").read_text(encoding="utf-8")
    assert tiny.attention == AttentionLibrary(
        kernels_before=(0, 0), block_us=0.0, blocks=(1, 1, 1), group=1, reread=1.0, score_passes=0
    )
    assert tiny.softmax == SoftmaxLibrary(held=0, rows=1)
    assert not tiny.vector.sfu_beside_lanes
    assert override(tiny, "softmax.held=0").hash == tiny.hash != override(tiny, "softmax.held=64").hash
    assert override(tiny, "attention.block_us=3").attention.block_us == 3
    like = load_target(differing(tmp_path, "mine", "h100-class", FASTER))
    assert like.attention == load_target("h100-class").attention != tiny.attention
    with pytest.raises(TargetError, match=r"attention\.blocks: is not a number with its provenance"):
        load_target(differing(tmp_path, "wrong", "ppu-tiny", "[attention]", "blocks = 3"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("softmax.rows=0", "must be above 0\n  got: 0"),
        ("softmax.held=1.5", "has the wrong type\n  got: 1.5\n  expected: an integer in element"),
        ("hbm.layout_tile=0,128", "must be above 0\n  got: [0, 128]"),
        ("hbm.layout_tile=8", "has the wrong type\n  got: 8\n  expected: 2 integers in rows,columns"),
        ("attention.score_passes=-1", "must be at least 0\n  got: -1"),
        ("attention.reread=0", "must be above 0\n  got: 0"),
        ("attention.reread=1.5", "must be at most 1\n  got: 1.5"),
    ],
)
def test_what_a_library_cannot_do_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        override(load_target("ppu-tiny"), assignment)
    assert str(caught.value) == f"--set {assignment}: {assignment.partition('=')[0]}: {message}"


def test_an_element_type_that_a_file_adds_needs_all_its_numbers(tmp_path: Path) -> None:
    line = '[tensor.ii_clk]\nf8e4m3 = { value = 48, unit = "clk", mark = "E", source = "an estimate" }'
    with pytest.raises(TargetError) as caught:
        load_target(differing(tmp_path, "mine", "zhenwu-810e", line))
    named = {d.where.rpartition(": ")[2] for d in caught.value.diagnostics}
    assert named == {"tensor.fragment.f8e4m3", "energy.mac_pj.f8e4m3"}


def test_what_a_file_is_like_must_exist_and_end(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"mine\.toml: like = .zhenwu-m980.: no target has this name"):
        load_target(differing(tmp_path, "mine", "zhenwu-m980"))
    with pytest.raises(TargetError, match=r"other\.toml: cannot be read"):
        load_target(differing(tmp_path, "mine", "./other.toml"))
    first, second = (differing(tmp_path, a, f"{b}.toml") for a, b in (("first", "second"), ("second", "first")))
    for path in (first, second):
        with pytest.raises(TargetError, match=r"like: leads back to the file itself"):
            load_target(path)


def test_every_missing_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text('name = "bare"\ndescription = "nothing"\n')
    with pytest.raises(TargetError) as caught:
        load_target(tmp_path / "bare.toml")
    named = {d.where.rpartition(": ")[2] for d in caught.value.diagnostics}
    tiny = tomllib.loads((FOLDER / "ppu-tiny.toml").read_text(encoding="utf-8"))
    assert {"cu", "l2.bytes", "tensor.ii_clk.bf16", "energy.mac_pj.bf16"} <= named
    assert set(tiny["l2"]) == {name.partition(".")[2] for name in named if name.startswith("l2.")}


# Overrides.


@pytest.mark.parametrize("key", ["tensor.ii_clk.bf16", "tensor.ii.bf16"])
def test_override_one_number(m890: Target, key: str) -> None:
    slower = override(m890, f"{key}=32")
    assert slower.tensor.ii_clk == {**m890.tensor.ii_clk, "bf16": 32}
    assert slower.peak_tops("bf16") == m890.peak_tops("bf16") / 2
    assert slower.name == m890.name
    assert slower.hash != m890.hash
    assert override(slower, f"{key}=16").hash == m890.hash
    leaf = next(leaf for leaf in slower.leaves() if leaf.path == "tensor.ii_clk.bf16")
    assert (leaf.value, leaf.unit, leaf.mark, leaf.source) == (32, "clk", "D", "override of 16")
    peaks = {leaf.path for leaf in slower.leaves() if leaf.path.startswith("peak_tops.")}
    assert "peak_tops.bf16" not in peaks
    assert "peak_tops.i8" in peaks


def test_override_of_other_types(m890: Target) -> None:
    changed = override(
        m890, "hbm.gbs = 5e3", "tensor.lanes=4", "tensor.lane_grid=2,2", "noc.kind=crossbar", "clock.max=1800"
    )
    assert changed.hbm.gbs == 5000.0
    assert (changed.tensor.lanes, changed.tensor.lane_grid) == (4, (2, 2))
    assert changed.noc.kind == "crossbar"
    assert changed.clock.max_mhz == 1800
    assert override(m890) == m890


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "tensor.ii_clk.bf17=32",
            "--set tensor.ii_clk.bf17=32: the target has no such key\n  got: tensor.ii_clk.bf17\n"
            "  hint: did you mean 'tensor.ii_clk.bf16'?",
        ),
        (
            "l2.bytes_per=3",
            "--set l2.bytes_per=3: the key is ambiguous\n  got: l2.bytes_per\n"
            "  expected: one of l2.bytes_per_clk_per_cu, l2.bytes_per_clk_per_slice, l2.bytes_per_clk_total",
        ),
        (
            "cu",
            "--set cu: is not an assignment\n  expected: KEY=VALUE, as in tensor.ii_clk.bf16=32",
        ),
        ("cu=", "--set cu=: is not an assignment\n  expected: KEY=VALUE, as in tensor.ii_clk.bf16=32"),
        ("cu=many", '--set cu=many: cu: has the wrong type\n  got: "many"\n  expected: an integer in CU'),
        ("cu=-1", "--set cu=-1: cu: must be above 0\n  got: -1"),
        (
            "tensor.lane_grid=2,2",
            "--set tensor.lane_grid=2,2: tensor.lane_grid: does not multiply to tensor.lanes\n"
            "  got: (2, 2)\n  expected: 8",
        ),
        (
            "peak_tops.bf16=133",
            "--set peak_tops.bf16=133: peaks follow from other numbers\n  hint: set tensor.ii_clk.bf16=54 for 132 TOPS",
        ),
        (
            "peak_tops.f64=1",
            "--set peak_tops.f64=1: peaks follow from other numbers\n"
            "  hint: set tensor.ii_clk.<dtype>, tensor.lanes, cu or clock.max_mhz instead",
        ),
        (
            "clock.max=100",
            "--set clock.max=100: clock: must ascend from min to base to max\n  got: (200.0, 900.0, 100.0)",
        ),
    ],
)
def test_override_errors(m890: Target, assignment: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        override(m890, assignment)
    assert str(caught.value) == message

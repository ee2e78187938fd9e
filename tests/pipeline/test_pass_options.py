"""Specs of passes, such as `tile{tries=8}`: printing, parsing, and the errors of invalid ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppuc.compiler.passes.grouping.split_n import SplitN
from ppuc.compiler.passes.normalise.decompose import Decompose
from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.passes.normalise.legalise import Legalise
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.pass_options import build_pass, build_passes, describe_options, spec_of
from ppuc.compiler.pipeline.registry import PASSES
from ppuc.ir.errors import UsageError
from ppuc.ir.module import Module
from ppuc.targets.description import Target


@dataclass(frozen=True)
class Everything:
    """Has an option of every type."""

    flag: bool = False
    count: int = 3
    share: float = 0.5
    word: str = "a"
    words: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None
    name: ClassVar[str] = "all-of.them"

    def run(self, module: Module, target: Target) -> Module:
        return module


@dataclass(frozen=True)
class Needing:
    """Has an option that must be given."""

    count: int
    name: ClassVar[str] = "needing"

    def run(self, module: Module, target: Target) -> Module:
        return module


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Everything, Needing):
        monkeypatch.setitem(PASSES, kind.name, kind)


steps = st.builds(
    Everything,
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
    st.lists(st.integers(-9, 9), max_size=20).map(tuple),
    st.none() | st.integers(),
)


@given(st.lists(steps, max_size=3))
def test_specs_build_the_passes_they_came_from(chosen: list[Everything]) -> None:
    specs = [spec_of(step) for step in chosen]
    assert [build_pass(spec) for spec in specs] == chosen
    assert build_passes(",".join(specs)) == tuple(chosen)
    assert [spec_of(step) for step in build_passes(" , ".join(specs))] == specs


def test_specs_leave_defaults_out_and_keep_the_order_of_fields() -> None:
    assert spec_of(Fold()) == "fold"
    assert spec_of(Tile(1)) == "tile"
    assert spec_of(Tile(8)) == "tile{tries=8}"
    assert spec_of(Legalise(narrow=False)) == "legalise{narrow=false}"
    assert spec_of(SplitN(share=0.25)) == "split-n{share=0.25}"
    assert spec_of(Decompose(keep=("attention",))) == 'decompose{keep=["attention"]}'
    assert spec_of(build_pass("all-of.them{ count = 4, flag = true, share=0.5 }")) == "all-of.them{flag=true, count=4}"
    assert spec_of(Needing(3)) == "needing{count=3}"


def test_every_step_of_the_pipeline_is_built_from_its_spec() -> None:
    assert build_passes(",".join(map(spec_of, PIPELINE))) == PIPELINE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fould", "-p: there is no pass 'fould'"),
        ("fold:speed=3", "-p: cannot be read as passes at column 5: unexpected text\n  got: ':'"),
        ("fold{speed=3}", "-p: pass 'fold' has no option 'speed'\n  expected: a pass without options"),
        ("tile{tries=3", "-p: cannot be read as passes at column 13: the line ends too early"),
        (
            "tile{tries=many}",
            "-p: option 'tries' of pass 'tile' has the wrong type\n  got: many\n  expected: an integer",
        ),
        ("tile{tries=1.5}", "-p: option 'tries' of pass 'tile' has the wrong type\n  got: 1.5\n  expected: an integer"),
        ("tile{tries=1, tries=2}", "-p: option 'tries' of pass 'tile' is given twice"),
        (
            "legalise{narrow=0}",
            "-p: option 'narrow' of pass 'legalise' has the wrong type\n  got: 0\n  expected: true or",
        ),
        ("needing", "-p: pass 'needing' needs option 'count'"),
        ("fold,,tile", "-p: cannot be read as passes at column 6: unexpected text\n  got: ','"),
    ],
)
def test_what_is_no_list_of_passes(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_passes(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["", " ", "fold,tile"])
def test_a_spec_is_one_pass(text: str) -> None:
    with pytest.raises(UsageError, match="net: names "):
        build_pass(text, "net")


def test_options_are_described_in_the_words_of_specs() -> None:
    known: dict[str, Any] = {o["name"]: (o["type"], o["default"]) for o in describe_options(Everything)}
    assert known["flag"] == ("bool", "false")
    assert known["sizes"] == ("tuple[int, ...]", "[1, 2]")
    assert known["word"] == ("str", '"a"')
    assert describe_options(Needing)[0]["default"] is None

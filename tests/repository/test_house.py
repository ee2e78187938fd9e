"""Layering: no upward imports, no import cycles, no module outside a room; and each violation is detected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import ROOMS, ROOT, Room, floors, modules, problems, room_of, survey

LOW = Room("low", ("ir",), (), "")
HIGH = Room("high", ("targets", "compiler"), ("low",), "")
INNER = Room("inner", ("targets.inner",), (), "")


def built(root: Path, files: dict[str, str]) -> None:
    """Write modules below `root`, by their paths without `.py`."""
    for name, text in files.items():
        file = root / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_the_house_stands() -> None:
    done = subprocess.run([sys.executable, "-m", "tools.house"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "\nfloor 0\n  ir " in done.stdout


def test_every_room_is_inhabited() -> None:
    found = {room.name for module in modules(ROOT) if (room := room_of(module)) is not None}
    assert found == {room.name for room in ROOMS}
    for room in ROOMS:
        assert room.why
        for named in room.modules:
            assert any(m == named or m.startswith(f"{named}.") for m in modules(ROOT)), f"{room.name}: no {named}"


def test_an_upward_arrow_is_found_wherever_it_is(tmp_path: Path) -> None:
    built(
        tmp_path,
        {
            "ir/a": "from ppuc.targets import b\n",
            "ir/c": "def f():\n    import ppuc.targets.b\n",
            "ir/d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ppuc.targets.b import x\n",
            "ir/e": "LATER = 'ppuc.targets.b'\n",
            "ir/f": "import ppuc\n",
            "targets/b": "from ppuc.ir.a import y\n",
            "compiler/api": "",
        },
    )
    assert problems(survey(tmp_path), [LOW, HIGH])[:5] == [
        "ir/a.py:1: low does not stand on high, and imports targets.b",
        "ir/c.py:2: low does not stand on high, and imports targets.b",
        "ir/d.py:3: low does not stand on high, and imports targets.b",
        "ir/e.py:1: low does not stand on high, and imports targets.b",
        "ir/f.py:1: low does not stand on high, and imports compiler.api",
    ]


def test_circles_are_found_through_functions_but_not_through_types(tmp_path: Path) -> None:
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ppuc.ir.a import x\n"
    built(tmp_path, {"ir/a": "from ppuc.ir.b import x\n", "ir/b": typed})
    assert problems(survey(tmp_path), [LOW]) == []
    built(tmp_path, {"ir/b": "def f():\n    from ppuc.ir.c import x\n", "ir/c": "import ppuc.ir.a\n"})
    assert problems(survey(tmp_path), [LOW]) == [
        "modules import each other: ir/a.py:1 imports ir.b, ir/b.py:2 imports ir.c, ir/c.py:1 imports ir.a"
    ]


def test_a_module_runs_the_packages_that_it_is_in(tmp_path: Path) -> None:
    """What imports one module of a package imports what the package does; a module of the package does not."""
    built(
        tmp_path,
        {
            "ir/p/__init__": "from ppuc.ir.p import one, two\n",
            "ir/p/one": "from ppuc.ir.p.two import x\n",
            "ir/p/two": "",
            "ir/out": "from ppuc.ir.p.two import x\n",
        },
    )
    assert problems(survey(tmp_path), [LOW]) == []
    built(tmp_path, {"ir/p/one": "from ppuc.ir.out import x\n"})
    assert problems(survey(tmp_path), [LOW]) == [
        "modules import each other: ir/out.py:1 imports ir.p, ir/p/__init__.py:1 imports ir.p.one, "
        "ir/p/one.py:1 imports ir.out"
    ]


def test_the_closest_name_gives_a_module_its_room(tmp_path: Path) -> None:
    built(
        tmp_path,
        {
            "ir/a": "",
            "targets/inner/a": "",
            "targets/inner_too": "from ppuc.targets.inner.a import x\n",
            "compiler/a": "",
        },
    )
    assert problems(survey(tmp_path), [LOW, Room("high", ("targets",), ("low",), ""), INNER]) == [
        "compiler/a.py: no room in tools/house.py names compiler.a",
        "targets/inner_too.py:1: high does not stand on inner, and imports targets.inner.a",
    ]


def test_rooms_that_cannot_stand() -> None:
    assert [[room.name for room in row] for row in floors([HIGH, LOW, INNER])] == [["low", "inner"], ["high"]]
    with pytest.raises(ValueError, match="no rooms, but stood on: low"):
        floors([HIGH])
    with pytest.raises(ValueError, match="rooms stand on each other: high, low"):
        floors([HIGH, Room("low", ("ir",), ("high",), "")])

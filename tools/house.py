"""Checks the layering of the code: rooms (groups of modules), the floors that they are on, and the imports between
them.

    python -m tools.house

A room is a package or a group of related modules. ROOMS declares the rooms that each room may import; a room is one
floor above the highest of those. The exit code is 1 if a module imports from a room that its own may not import (an
upward import), if modules import each other in a cycle, or if a module belongs to no room.

Imports inside functions count like those at the top of a module, and so does a module's name in a string, by which it
is imported lazily (names computed at run time are not detected). Imports under `if TYPE_CHECKING` count for layering,
but not for cycles: two modules may refer to each other's types.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parent.parent
PACKAGE = "ppuc"
"""The import name that is mapped onto the folders (pyproject.toml)."""
FACE = "compiler.api"
"""The module that is the package itself."""
FOLDERS = ("ir", "targets", "compiler")


@dataclass(frozen=True, slots=True)
class Room:
    """`modules` are module names, or prefixes of them, without the package's name: a module belongs to the room with
    the longest match. Modules of a room may import each other and, transitively, modules of the rooms in `over`."""

    name: str
    modules: tuple[str, ...]
    over: tuple[str, ...]
    why: str


ROOMS = (
    Room("ir", ("ir",), (), "the IR at every level; no ONNX, no numbers of a machine"),
    Room(
        "targets",
        ("targets",),
        ("ir",),
        "machines, simulator and program files; independent of how programs are compiled",
    ),
    Room("simulator", ("targets.simulator",), ("targets",), "executes programs; independent of graphs"),
    Room(
        "basics",
        ("compiler.version", "compiler.precisions", "compiler.alias", "compiler.inputs"),
        ("ir",),
        "terms that the whole compiler shares: precisions, inputs and their aliases",
    ),
    Room(
        "options",
        (
            "compiler.options",
            "compiler.quantization.batches",
            "compiler.quantization.criteria",
            "compiler.quantization.data",
            "compiler.quantization.folders",
            "compiler.quantization.images",
        ),
        ("basics", "targets"),
        "the options of a compilation, and samples",
    ),
    Room("forms", ("compiler.engines", "compiler.blocks"), ("ir",), "op classes that importers and passes share"),
    Room("frontend", ("compiler.frontend",), ("forms",), "ONNX to graphs; independent of passes, kernels and machines"),
    Room(
        "lowering", ("compiler.lowering",), ("basics", "simulator"), "groups of ops to kernels; independent of passes"
    ),
    Room("passes", ("compiler.passes",), ("forms", "lowering"), "module to module; independent of ONNX and the driver"),
    Room(
        "validation",
        ("compiler.validation",),
        ("basics", "frontend"),
        "expected results from the model alone: no pass, no kernel, no simulator",
    ),
    Room("simplify", ("compiler.simplify",), ("validation",), "ONNX to ONNX; compiles nothing"),
    Room("pipeline", ("compiler.pipeline",), ("options", "passes", "validation"), "runs and checks passes"),
    Room("profile", ("compiler.report.profile", "compiler.report.waterfall"), ("simulator",), "a run as a record"),
    Room("metrics", ("compiler.metrics",), ("ir",), "task metrics: of outputs alone, however they were computed"),
    Room(
        "quantization",
        ("compiler.quantization",),
        ("pipeline", "profile", "metrics"),
        "8-bit plans for imported graphs, and their accuracy",
    ),
    Room("host", ("compiler.host",), ("quantization",), "host steps and deferred steps; the compiler is passed in"),
    Room("driver", ("compiler.driver",), ("host",), "compiles a model to an artifact"),
    Room(
        "program",
        ("compiler.program",),
        ("driver",),
        "compiled programs: save, load, run",
    ),
    Room(
        "verification",
        ("compiler.verification", "compiler.comparing", "compiler.host.verify", "compiler.evaluation"),
        ("program",),
        "comparison of programs with the oracle",
    ),
    Room("page", ("compiler.report.page",), ("ir",), "one HTML file that shows a record; knows its JSON alone"),
    Room("report", ("compiler.report",), ("program",), "reports on compilations and runs"),
    Room("recording", ("compiler.recording",), ("report",), "what a command found about a model, as one record"),
    Room("api", (FACE, "compiler.entry", "compiler.onnx_backend"), ("verification",), "the package's face"),
    Room("predict", ("compiler.predict",), ("api", "report"), "times of single operators, from their sizes"),
    Room(
        "commands",
        ("compiler.cli", "compiler.commands"),
        ("predict", "simplify", "recording", "page"),
        "nothing imports them",
    ),
)


@dataclass(frozen=True, slots=True)
class Import:
    """Module `source` imports module `target` in `line`; `typing`: only type checkers do."""

    source: str
    target: str
    line: int
    typing: bool


def modules(root: Path) -> dict[str, Path]:
    """Module name (without the package's) -> file, for all modules below `root`. Packages that contain only a docstring
    are left out."""
    found = {}
    for file in sorted(f for folder in FOLDERS for f in (root / folder).rglob("*.py")):
        name = file.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        if not name.endswith(".__init__"):
            found[name] = file
        elif any(not isinstance(node, ast.Expr) for node in ast.parse(file.read_text(encoding="utf-8")).body):
            found[name.removesuffix(".__init__")] = file
    return found


def imports(name: str, file: Path, known: Mapping[str, Path]) -> Iterator[Import]:
    """The imports of a module. Importing a module also runs the packages that contain it, unless they contain the
    importer; a string that is a package's name refers to its files."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {id(node) for test in ast.walk(tree) if _is_type_checking(test) for node in _below(test)}
    for node in ast.walk(tree):
        for target in _targets(node, known):
            parts = target.split(".")
            for reached in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
                around = name.startswith(f"{reached}.") and (reached != target or isinstance(node, ast.Constant))
                if reached in known and reached != name and not around:
                    yield Import(name, reached, getattr(node, "lineno", 0), id(node) in typing)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _below(node: ast.AST) -> Iterator[ast.AST]:
    assert isinstance(node, ast.If)
    for child in node.body:
        yield from ast.walk(child)


def _targets(node: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules (without the package's name) that an import or a string refers to."""
    own = f"{PACKAGE}."
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        yield from (FACE if name == PACKAGE else name.removeprefix(own) for name in names if f"{name}.".startswith(own))
    elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
        yield FACE
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(own):
        module = (node.module or "").removeprefix(own)
        yield from {f"{module}.{a.name}" if f"{module}.{a.name}" in known else module for a in node.names}
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(own):
        yield node.value.removeprefix(own)


# -- rooms and floors ------------------------------------------------------------------------------------------------


def room_of(module: str, rooms: Sequence[Room] = ROOMS) -> Room | None:
    """The room with the longest match of the module's name."""
    named = [(len(m), room) for room in rooms for m in room.modules if module == m or module.startswith(f"{m}.")]
    return max(named, key=lambda found: found[0])[1] if named else None


def below(rooms: Sequence[Room] = ROOMS) -> dict[str, frozenset[str]]:
    """Room -> all rooms below it. Raises ValueError for an unknown room and for a cycle."""
    graph = nx.DiGraph([(room.name, other) for room in rooms for other in room.over])
    graph.add_nodes_from(room.name for room in rooms)
    strange = set(graph) - {room.name for room in rooms}
    if strange:
        raise ValueError(f"no rooms, but stood on: {', '.join(sorted(strange))}")
    if not nx.is_directed_acyclic_graph(graph):
        raise ValueError(f"rooms stand on each other: {', '.join(a for a, _ in nx.find_cycle(graph))}")
    return {name: frozenset(nx.descendants(graph, name)) for name in graph}


def floors(rooms: Sequence[Room] = ROOMS) -> list[list[Room]]:
    """The rooms by floor, the lowest first: each is one floor above the highest room that it may import."""
    at: dict[str, int] = {}
    stands_on, by_name = below(rooms), {room.name: room for room in rooms}
    for room in sorted(rooms, key=lambda r: len(stands_on[r.name])):
        at[room.name] = 1 + max((at[name] for name in stands_on[room.name]), default=-1)
    return [[by_name[n] for n in by_name if at[n] == floor] for floor in range(1 + max(at.values(), default=-1))]


@dataclass(frozen=True, slots=True)
class House:
    """The modules below `root` by name, and all their imports of each other."""

    root: Path
    files: Mapping[str, Path]
    arrows: Sequence[Import]


def survey(root: Path) -> House:
    """The modules and imports below `root`."""
    files = modules(root)
    return House(root, files, [found for name, file in files.items() for found in imports(name, file, files)])


# -- what is wrong ---------------------------------------------------------------------------------------------------


def problems(house: House, rooms: Sequence[Room] = ROOMS) -> list[str]:
    """Modules without a room, upward imports and cycles, one line each."""
    homeless = [
        f"{_place(house, m)}: no room in tools/house.py names {m}" for m in house.files if room_of(m, rooms) is None
    ]
    return [*homeless, *_upward(house, rooms), *_circles(house)]


def _upward(house: House, rooms: Sequence[Room]) -> list[str]:
    stands_on, found = below(rooms), []
    for arrow in house.arrows:
        source, target = room_of(arrow.source, rooms), room_of(arrow.target, rooms)
        if source is None or target is None or source is target or target.name in stands_on[source.name]:
            continue
        where = _place(house, arrow.source, arrow.line)
        found.append(f"{where}: {source.name} does not stand on {target.name}, and imports {arrow.target}")
    return found


def _circles(house: House) -> list[str]:
    graph = nx.DiGraph()
    for arrow in house.arrows:
        if not arrow.typing:
            graph.add_edge(arrow.source, arrow.target, line=arrow.line)
    found = []
    for group in nx.strongly_connected_components(graph):
        if len(group) > 1:
            circle = nx.find_cycle(graph.subgraph(group), min(group))
            steps = [f"{_place(house, a, graph.edges[a, b]['line'])} imports {b}" for a, b in circle]
            found.append("modules import each other: " + ", ".join(steps))
    return sorted(found)


def _place(house: House, module: str, line: int = 0) -> str:
    return f"{house.files[module].relative_to(house.root).as_posix()}{f':{line}' if line else ''}"


# -- printing --------------------------------------------------------------------------------------------------------


def report(house: House, rooms: Sequence[Room] = ROOMS) -> Iterator[str]:
    """The floors from the top down; each room with its files and lines, and the number of its files that import from
    each other room."""
    files: dict[str, list[Path]] = {room.name: [] for room in rooms}
    for module, file in house.files.items():
        room = room_of(module, rooms)
        if room is not None:
            files[room.name].append(file)
    pairs = {(arrow.source, room_of(arrow.source, rooms), room_of(arrow.target, rooms)) for arrow in house.arrows}
    leads = Counter((a.name, b.name) for _, a, b in pairs if a is not None and b is not None and a is not b)
    for floor, row in reversed(list(enumerate(floors(rooms)))):
        yield f"floor {floor}"
        for room in row:
            lines = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files[room.name])
            yield f"  {room.name:<13} {len(files[room.name]):>3} files {lines:>7,} lines   {room.why}"
            found = ", ".join(f"{b} {count}" for (a, b), count in sorted(leads.items()) if a == room.name)
            if found:
                yield f"{'':<16}-> {found}"


def main() -> int:
    """Print the rooms and all problems; returns 1 if there are any."""
    house = survey(ROOT)
    print(*report(house), sep="\n")
    wrong = problems(house)
    if wrong:
        print("\nwrong:", *wrong, sep="\n  ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

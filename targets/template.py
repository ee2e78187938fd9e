"""The template of a target file: numbers from datasheets first, all others as comments to be uncommented.

Invariant: the file describes a target equal to its base, before and after uncommenting any key.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from ppuc.targets.schema import MARKS, PEAKS, Leaf, Target

_WIDTH = 118

_DATASHEET = {
    "cu": "compute units: multiprocessors of a GPU, cores of an NPU",
    "clock.max_mhz": "the boost clock, at which the peaks hold",
    "tensor.lanes": "tensor engines of a unit; together with fragment and ii_clk they give the peak (below)",
    "tensor.lane_grid": "how they lie: rows share one operand, columns the other",
    "tensor.fragment.*": "what one engine multiplies at a time: m, n, k",
    "tensor.ii_clk.*": "cycles until it takes the next fragment",
    "vector.lanes": "32-bit operations a cycle and unit; a fused multiply-add is two",
    "vector.sfu_per_clk": "exponentials, roots and the like a cycle and unit",
    "l1.bytes": "scratchpad or shared memory of a unit",
    "acc.bytes": "accumulators or register file of a unit",
    "l2.bytes": "memory that all units share",
    "l2.managed": "whether a program or a cache decides what it holds",
    "hbm.bytes": "device memory",
    "hbm.gbs": "its nameplate rate",
    "hbm.kind": "",
    "host.gbs_per_dir": "the link to the host, each way",
    "power.tdp_w": "board power",
}
"""Numbers in datasheets, and what to look for."""

_TIMES = (
    "launch.kernel_us",
    "segment_launch_us",
    "clock.sustained",
    "hbm.efficiency",
    "hbm.latency_ns",
    "l2.latency_ns",
    "l2.bytes_per_clk_total",
    "l2.bytes_per_clk_per_cu",
    "l1.bytes_per_clk",
    "issue_clk",
    "tensor.fill_clk",
)
"""Further numbers with a large effect, from a few measurements."""


def template(name: str, like: Target, reference: str) -> str:
    """The file of a target called `name` with base `like`, which its `like` key calls `reference`."""
    leaves = {leaf.path: leaf for leaf in like.leaves() if not leaf.path.startswith(PEAKS)}
    first = [path for path in leaves if _generic(path) in _DATASHEET]
    second = [path for path in _TIMES if path in leaves]
    rest = [path for path in leaves if path not in (*first, *second)]
    lines = [
        *_comment(
            f"{name} begins as {like.name}: a number that is not stated here is that machine's. Replace values with "
            "those of your machine, and say with each how well it is known (mark) and where it is from (source). "
            "Marks: " + "; ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items()) + "."
        ),
        *_comment(f"Check the file with: ppuc targets {name}.toml"),
        "",
        f"name = {json.dumps(name)}",
        f"description = {json.dumps(f'A machine that begins as {like.name}; say here what it is')}",
        f"like = {json.dumps(reference)}",
        "",
        *_heading("1. What a datasheet gives"),
        *_stated(like, leaves, first),
        "",
        *_comment(
            "Published peaks are checked against the machine, to 2 %: 2 x cu x lanes x m x n x k / ii_clk x max_mhz. "
            f"{like.name} has:"
        ),
        *(
            _line(Leaf(f"{PEAKS}.{dtype}", round(like.peak_tops(dtype), 3), "TOPS", "F", "datasheet"), "# ")
            for dtype in like.tensor.ii_clk
        ),
        "",
        *_heading("2. What measurements of a few kernels and copies give"),
        *(_line(leaves[path], "# ") for path in second),
        "",
        *_heading("3. How the machine is built, and what is seldom published"),
        *list(_by_table(leaves, rest))[1:],
    ]
    return "\n".join(lines) + "\n"


def _generic(path: str) -> str:
    head, _, last = path.rpartition(".")
    return path if path in _DATASHEET else f"{head}.*" if last else path


def _stated(like: Target, leaves: dict[str, Leaf], paths: Sequence[str]) -> Iterator[str]:
    """The active lines, with each number explained once."""
    told = set()
    for path in paths:
        meaning = _DATASHEET[_generic(path)]
        if meaning and meaning not in told:
            told.add(meaning)
            yield f"# {meaning}"
        leaf = leaves[path]
        yield _line(Leaf(path, leaf.value, leaf.unit, "E", f"as {like.name}; replace it with the datasheet's"))


def _by_table(leaves: dict[str, Leaf], paths: Sequence[str]) -> Iterator[str]:
    """The commented lines, under the schema's descriptions of their tables."""
    about = dict(_tables(Target, ""))
    table = None
    for path in paths:
        described = about.get(path) or about[path.rpartition(".")[0]]
        if described != table:
            table = described
            yield ""
            yield from _comment(table)
        yield _line(leaves[path], "# ")


def _tables(record: type, above: str) -> Iterator[tuple[str, str]]:
    """Dotted path of each leaf -> the docstring of its record."""
    text = " ".join((record.__doc__ or "").split()).replace("`", "")
    hints = get_type_hints(record)
    for item in fields(record):
        kind: Any = hints[item.name]
        if is_dataclass(kind):
            yield from _tables(kind, f"{above}{item.name}.")  # type: ignore[arg-type]
        elif item.metadata:
            yield above + item.name, text if above else "The chip as a whole."


def _line(leaf: Leaf, before: str = "") -> str:
    value = json.dumps(list(leaf.value) if isinstance(leaf.value, tuple) else leaf.value)
    source = json.dumps(leaf.source, ensure_ascii=False)
    return f'{before}{leaf.path} = {{ value = {value}, unit = "{leaf.unit}", mark = "{leaf.mark}", source = {source} }}'


def _heading(text: str) -> list[str]:
    return [f"# -- {text} ".ljust(_WIDTH, "-"), ""]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")

"""What passes said, for people: which remarks are shown, and in which order.

Invariant: remarks are read from where a compilation left them; no pass runs to explain another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.passes.remarks import Remark
from ppuc.ir.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

ALL = "all"
"""The filter that keeps everything."""

SHOWN = 40
"""Rows of the table."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the passes said of one compilation."""

    target: str
    precision: str
    remarks: tuple[Remark, ...]


def said_in(path: Path, dims: Mapping[str, int]) -> Said:
    """What the passes said of a program (of one that has several variants, the one of these sizes), in a dump, or up to
    a dumped text. Raises ArtifactError, TextError and UsageError; also when nobody listened."""
    said = _said_of_program(path, dims) if path.suffix == ".ppu" else _said_in_dump(path)
    if not said.remarks:
        hint = "compile it again: `ppuc compile` keeps remarks in the program, and in a dump's manifest"
        raise UsageError.of(str(path), "holds no remarks of the compiler", hint=hint)
    return said


def _said_of_program(path: Path, dims: Mapping[str, int]) -> Said:
    from ppuc.compiler.pipeline.packed_remarks import remarks_of
    from ppuc.compiler.program.variants import unbundle
    from ppuc.targets.artifact import load

    artifact = load(path)
    variants = unbundle(artifact)
    if variants is not None:
        artifact = variants.of_sizes(dims, str(path)).artifact
    elif dims:
        what, expected = "has no variant of these sizes", "none: the program has fixed sizes"
        raise UsageError.of(str(path), what, got=dict(dims), expected=expected)
    return Said(artifact.program.target, artifact.meta.get("precision", "model"), remarks_of(artifact))


def _said_in_dump(path: Path) -> Said:
    from ppuc.compiler.pipeline.dump import later_segments, read_manifest

    manifest = read_manifest(path if path.is_dir() else path.parent)
    if manifest is None:
        return Said("", "", ())
    remarks = manifest.said("" if path.is_dir() else path.name)
    if path.is_dir():
        for number, folder in later_segments(path):
            later = read_manifest(folder)
            remarks += tuple(replace(r, segment=number) for r in later.said()) if later is not None else ()
    return Said(manifest.target, manifest.precision, remarks)


def settled(remarks: Sequence[Remark]) -> list[Remark]:
    """The remarks, those of fusion as later passes left their edges: the tensor in the type in which it is stored, and
    fused when a concatenation in place or a cascade made it part of a kernel."""
    later: dict[tuple[int, str], list[Remark]] = {}
    for remark in remarks:
        if remark.decision in ("stored-narrow", "part-in-place", "cascaded", "not-cascaded"):
            later.setdefault((remark.segment, remark.entity), []).append(remark)
    return [
        _settled(r, later.get((r.segment, r.entity), ())) if r.decision in ("fused", "not-fused", "copied") else r
        for r in remarks
    ]


def _settled(remark: Remark, later: Sequence[Remark]) -> Remark:
    details = dict(remark.details)
    for other in later:
        if other.decision == "stored-narrow":
            share = float(other.details["bytes"]) / max(float(details["bytes"]), 1.0)
            details |= {"bytes": other.details["bytes"]}
            details |= {"lost_clk": round(share * float(details["lost_clk"]), 1)} if "lost_clk" in details else {}
        elif remark.decision == "not-fused" and remark.nodes[-1] in other.nodes:
            if other.kind == "applied":
                details.pop("lost_clk", None)
                remark = replace(remark, kind="applied", decision="fused", reason="")
            else:
                remark = replace(remark, reason=other.reason)
    return replace(remark, details=details)


def chosen(remarks: Sequence[Remark], filter: str) -> tuple[Remark, ...]:
    """The remarks that all words of `filter` (separated by commas) fit: the pass, the kind, the decision, or a part of
    the entity's name or of a node's."""
    words = [word.strip() for word in filter.split(",") if word.strip() not in ("", ALL)]
    return tuple(r for r in remarks if all(_fits(r, word) for word in words))


def _fits(remark: Remark, word: str) -> bool:
    codes = (remark.pass_name, remark.kind, remark.decision)
    return word in codes or any(word in name for name in (remark.entity, *remark.nodes))


def ranked(remarks: Sequence[Remark]) -> list[Remark]:
    """Refusals first, those that cost most before others; then what was done, by what it gains; then the rest, as it
    was said."""
    return sorted(remarks, key=lambda r: (-r.lost_clk, -r.gained_clk, r.kind == "note"))


def remarks_record(remarks: Sequence[Remark], filter: str) -> dict[str, Any]:
    """The remarks that fit `filter` as they turned out, in the order of a report."""
    return {"kind": "remarks", "remarks": [remark.record() for remark in ranked(chosen(settled(remarks), filter))]}


def show(out: Console, record: dict[str, Any]) -> None:
    """Print how many decisions of each kind there are, and the remarks that matter most."""
    from ppuc.compiler.report.tables import quantity, shortened, table

    remarks = [Remark.of(r) for r in record["remarks"]]
    counts: dict[str, Counter[str]] = {}
    for remark in remarks:
        counts.setdefault(remark.pass_name, Counter())[remark.decision] += int(remark.details.get("count", 1))
    for name, decisions in counts.items():
        out.print(f"{name}: " + ", ".join(f"{count} {decision}" for decision, count in decisions.items()))
    more = f" (the first {SHOWN} of {len(remarks)})" if len(remarks) > SHOWN else ""
    rows = []
    for r in remarks[:SHOWN]:
        node = " .. ".join(shortened(n, 26) for n in dict.fromkeys((r.nodes[0], r.nodes[-1]))) if r.nodes else ""
        prices = (f"{price:,.0f}" if price is not None else "" for price in (r.before_clk, r.after_clk))
        size = quantity(float(r.details["bytes"]), "B") if "bytes" in r.details else ""
        lost = f"{r.lost_clk:,.0f}" if r.lost_clk else ""
        rows.append((r.pass_name, r.decision, shortened(r.entity, 26), node, *prices, lost, size, r.reason))
    columns = ("pass", "decision", "entity", "nodes", "before", "after", "costs", "bytes", "reason")
    table(out, f"\nremarks; prices in cycles{more}" if rows else "no remark fits", columns, rows, left=(0, 1, 2, 3, 8))

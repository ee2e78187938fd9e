"""Shows passes' remarks: selection and order.

Invariant: remarks are read from a compilation's output; no pass runs to explain another.
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
class RecordedRemarks:
    """The remarks of one compilation."""

    target: str
    precision: str
    remarks: tuple[Remark, ...]


def recorded_remarks(path: Path, dims: Mapping[str, int]) -> RecordedRemarks:
    """The remarks in a program (with several variants, of the one with these sizes), in a dump, or up to a dumped text.
    Raises ArtifactError, TextError and UsageError; also if remarks were not collected."""
    found = _remarks_of_program(path, dims) if path.suffix == ".ppu" else _remarks_of_dump(path)
    if not found.remarks:
        hint = "compile it again: `ppuc compile` keeps remarks in the program, and in a dump's manifest"
        raise UsageError.of(str(path), "holds no remarks of the compiler", hint=hint)
    return found


def _remarks_of_program(path: Path, dims: Mapping[str, int]) -> RecordedRemarks:
    from ppuc.compiler.pipeline.packed_remarks import remarks_of
    from ppuc.compiler.program.variants import unbundle
    from ppuc.targets.artifact import load

    artifact = load(path)
    variants = unbundle(artifact)
    if variants is not None:
        artifact = variants.of_sizes(dims, str(path)).artifact
    elif dims:
        what, expected = "has no variant with these sizes", "none: the program has fixed sizes"
        raise UsageError.of(str(path), what, got=dict(dims), expected=expected)
    return RecordedRemarks(artifact.program.target, artifact.meta.get("precision", "model"), remarks_of(artifact))


def _remarks_of_dump(path: Path) -> RecordedRemarks:
    from ppuc.compiler.pipeline.dump import later_segments, read_manifest

    manifest = read_manifest(path if path.is_dir() else path.parent)
    if manifest is None:
        return RecordedRemarks("", "", ())
    remarks = manifest.remarks_until("" if path.is_dir() else path.name)
    if path.is_dir():
        for number, folder in later_segments(path):
            later = read_manifest(folder)
            remarks += tuple(replace(r, segment=number) for r in later.remarks_until()) if later is not None else ()
    return RecordedRemarks(manifest.target, manifest.precision, remarks)


def settled(remarks: Sequence[Remark]) -> list[Remark]:
    """The remarks, with those of fusion updated by later passes: the tensor's storage type, and whether an in-place
    concatenation or a cascade fused the edge."""
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
    """The remarks that match all words of `filter` (separated by commas): the pass, the kind, the decision, or part of
    the entity's or a node's name."""
    words = [word.strip() for word in filter.split(",") if word.strip() not in ("", ALL)]
    return tuple(r for r in remarks if all(_fits(r, word) for word in words))


def _fits(remark: Remark, word: str) -> bool:
    codes = (remark.pass_name, remark.kind, remark.decision)
    return word in codes or any(word in name for name in (remark.entity, *remark.nodes))


def ranked(remarks: Sequence[Remark]) -> list[Remark]:
    """Refusals first, by cost; then applied changes, by gain; then notes, in order."""
    return sorted(remarks, key=lambda r: (-r.lost_clk, -r.gained_clk, r.kind == "note"))


def remarks_record(remarks: Sequence[Remark], filter: str) -> dict[str, Any]:
    """The updated remarks that match `filter`, in report order."""
    return {"kind": "remarks", "remarks": [remark.record() for remark in ranked(chosen(settled(remarks), filter))]}


def show(out: Console, record: dict[str, Any]) -> None:
    """Print the number of decisions of each kind, and the most important remarks."""
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
    table(
        out, f"\nremarks; prices in cycles{more}" if rows else "no remark matches", columns, rows, left=(0, 1, 2, 3, 8)
    )

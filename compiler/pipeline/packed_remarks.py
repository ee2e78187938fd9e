"""Compact encoding of remarks for the artifact: a string table and rows of numbers, as JSON.

    {"texts": ["fuse", "fused", "conv_1", ...],
     "rows": [[segment, pass, kind, decision, entity, [node, ...], reason, before, after, [name, value, ...]], ...]}

Strings are indices into the table (kinds are indices into `KINDS`); string values of details are `[index]`.

Invariants: `unpacked(packed(remarks)) == remarks`; equal remarks give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ppuc.compiler.passes.remarks import KINDS, Detail, Remark
from ppuc.ir.errors import ArtifactError
from ppuc.targets.artifact import Artifact

NOTE = "remarks"
"""The artifact's note that holds the remarks."""


def packed(remarks: Sequence[Remark]) -> bytes:
    """Encode `remarks`."""
    table: dict[str, int] = {}

    def place(text: str) -> int:
        return table.setdefault(text, len(table))

    def value(detail: Detail) -> object:
        return [place(detail)] if isinstance(detail, str) else detail

    rows = [
        [
            r.segment,
            place(r.pass_name),
            KINDS.index(r.kind),
            place(r.decision),
            place(r.entity),
            [place(node) for node in r.nodes],
            place(r.reason),
            r.before_clk,
            r.after_clk,
            [part for name, detail in r.details.items() for part in (place(name), value(detail))],
        ]
        for r in remarks
    ]
    return json.dumps({"texts": list(table), "rows": rows}, separators=(",", ":"), ensure_ascii=False).encode()


def unpacked(data: bytes) -> tuple[Remark, ...]:
    """Decode the output of `packed`. Raises ValueError for malformed bytes."""
    try:
        record = json.loads(data)
        texts = record["texts"]
        found = []
        for segment, name, kind, decision, entity, nodes, reason, before, after, details in record["rows"]:
            pairs = zip(details[::2], details[1::2], strict=True)
            values = {texts[k]: texts[v[0]] if isinstance(v, list) else v for k, v in pairs}
            facts = (texts[decision], texts[entity], tuple(texts[n] for n in nodes), texts[reason])
            found.append(Remark(texts[name], KINDS[kind], *facts, before, after, values, segment))
    except (KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"no remarks: {error}") from error
    return tuple(found)


def with_remarks(artifact: Artifact, remarks: Sequence[Remark]) -> Artifact:
    """`artifact` with `remarks` attached; the same object when there are none."""
    return replace(artifact, notes={**artifact.notes, NOTE: packed(remarks)}) if remarks else artifact


def remarks_of(artifact: Artifact) -> tuple[Remark, ...]:
    """The remarks stored in `artifact`; () when they were not collected. Raises ArtifactError for a damaged note."""
    data = artifact.notes.get(NOTE)
    try:
        return unpacked(data) if data is not None else ()
    except ValueError as error:
        raise ArtifactError.of(artifact.program.name, "holds remarks that cannot be read", got=error) from error

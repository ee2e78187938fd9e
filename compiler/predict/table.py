"""Tables of operators, optionally with measured times: CSV files with a header.

Columns `m,n,k`, or `batch,heads,kv_heads,query,key,dim` with optional `causal`, or `n,h,w,c,k,r,stride,pad` give the
sizes; `dtype` and `measured_us` are optional. Other columns are ignored. Lines starting with # are comments.

Invariant: rows keep the file's order; errors name line and column.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppuc.compiler.predict.case import ATTENTION, CONV, GEMM, Case, attention, conv, dtype_of, gemm, size_of
from ppuc.ir.errors import UsageError
from ppuc.ir.files import read_text

MEASURED = "measured_us"
_KINDS = {"attention": ATTENTION, "conv": CONV, "gemm": GEMM}
_MAKERS = {"attention": attention, "conv": conv, "gemm": gemm}


@dataclass(frozen=True, slots=True)
class Row:
    """A case, its measured time in microseconds (None if not measured), and its location `where`."""

    case: Case
    measured_us: float | None
    where: str


def read_table(path: Path, dtype: str) -> list[Row]:
    """The rows of a file; `dtype` is the default. Raises UsageError."""
    text = read_text(path, UsageError, "a CSV file")
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise UsageError.of(str(path), "holds no rows", expected="a header and a row a line")
    numbers = [number for number, _ in lines]
    reader = csv.reader([line for _, line in lines])
    header = [name.strip().lower().removeprefix("\ufeff") for name in next(reader)]
    kind = _kind(header, f"{path}:{numbers[0]}")
    return [
        _row(cells, header, kind, dtype, f"{path}:{number}") for cells, number in _records(reader, numbers[1:], path)
    ]


def _records(reader: Iterator[list[str]], numbers: Sequence[int], path: Path) -> Iterator[tuple[list[str], int]]:
    try:
        yield from zip(reader, numbers, strict=False)
    except csv.Error as error:
        raise UsageError.of(str(path), "is no CSV file", got=str(error)) from None


def _kind(header: Sequence[str], where: str) -> str:
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError.of(where, "names a column twice", got=twice)
    for kind, columns in _KINDS.items():
        if set(columns) <= set(header):
            return kind
    expected = ", or ".join(",".join(columns) for columns in reversed(_KINDS.values()))
    raise UsageError.of(where, "lacks columns of sizes", got=",".join(header), expected=expected)


def _row(cells: Sequence[str], header: Sequence[str], kind: str, dtype: str, where: str) -> Row:
    if len(cells) != len(header):
        raise UsageError.of(
            where, "has a different number of cells than the header", got=len(cells), expected=len(header)
        )
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    columns = _KINDS[kind]
    for name in columns:
        size_of(row[name], name, f"{where}: column {name}")
    own = dtype_of(row["dtype"], f"{where}: column dtype") if row.get("dtype") else dtype
    sizes = ",".join(row[name] for name in columns)
    causal = ":causal" if kind == "attention" and _flag(row, "causal", where) else ""
    return Row(_MAKERS[kind](sizes + causal, own, where), _measured(row, where), where)


def _flag(row: Mapping[str, str], name: str, where: str) -> bool:
    text = row.get(name, "").lower()
    if text not in ("", "0", "1", "true", "false"):
        raise UsageError.of(f"{where}: column {name}", "is neither 0 nor 1", got=text)
    return text in ("1", "true")


def _measured(row: Mapping[str, str], where: str) -> float | None:
    text = row.get(MEASURED, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError.of(f"{where}: column {MEASURED}", "is no time", got=text, expected="microseconds, above 0")
    return value

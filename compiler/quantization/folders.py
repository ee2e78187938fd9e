"""Samples in folders: a file each, or a folder for each input and each label (docs/data.md).

Invariant: samples come in the order of their names, the same on every pass.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ppuc.compiler.inputs import read_npy, read_npz
from ppuc.compiler.quantization.batches import Stack
from ppuc.compiler.quantization.images import SUFFIXES, Preprocessing, picture_size, read_image, read_label_map
from ppuc.ir.errors import InputError, UsageError

LABELS = "labels.csv"
CLASSES = ".classes"
"""Suffix of the name of the classes of labelled boxes."""
PADDED = re.compile(r"[-+]?0\d")
"""Digits with leading zeros."""


def samples_of(
    folder: Path, names: Sequence[str], how: Preprocessing | None, *, labels: bool = False
) -> Iterator[Stack]:
    """The stacks of a folder for a model with inputs `names`; with `labels`, those beside the inputs too. Raises
    InputError, and UsageError for images without preprocessing."""
    parts = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
    if set(parts) & set(names):
        yield from _of_parts(folder, parts, names, how, labels)
        return
    files = _files(folder)
    if not files:
        raise InputError.of(str(folder), "holds no samples", expected=".npz, .npy or image files")
    table = _table(folder, files, names) if labels else {}
    for file in files:
        if file.suffix == ".npz":
            yield read_npz(file)
            continue
        if len(names) != 1:
            raise InputError.of(
                str(file),
                "does not say which input it is for",
                expected=f"an .npz with {', '.join(names)}, or a folder for each input",
            )
        array = read_npy(file) if file.suffix == ".npy" else _image(file, names[0], how)[None]
        yield {names[0]: array, **{name: column[file.stem] for name, column in table.items()}}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".npz", ".npy", *SUFFIXES))


def _image(file: Path, name: str, how: Preprocessing | None) -> np.ndarray:
    return read_image(file, _declared(file, how).of(name))


def _declared(file: Path, how: Preprocessing | None) -> Preprocessing:
    if how is None:
        raise UsageError.of(
            str(file),
            "is an image, and nothing says how the model wants it",
            hint="describe size, scale and layout in a TOML file and give it with --preprocess",
        )
    return how


def _of_parts(
    folder: Path, parts: Mapping[str, Path], names: Sequence[str], how: Preprocessing | None, labels: bool
) -> Iterator[Stack]:
    """The samples of a folder with a folder for each input or label: files of the same name form a sample."""
    used = {name: part for name, part in parts.items() if labels or name in names}
    files = {name: {f.stem: f for f in sorted(part.iterdir()) if f.is_file()} for name, part in used.items()}
    given = [name for name in files if name in names]
    first = files[given[0]]
    if not first:
        raise InputError.of(str(parts[given[0]]), "holds no samples", expected=".npy or image files")
    for name, own in files.items():
        if differing := sorted(own.keys() ^ first.keys()):
            home = parts[given[0]] if differing[0] in own else parts[name]
            raise InputError.of(str(home), f"has no file '{differing[0]}'", hint="files of a sample have the same name")
    table = _table(folder, list(first.values()), names) if labels else {}
    for stem in first:
        found: dict[str, np.ndarray] = {}
        picture = next((files[n][stem] for n in given if files[n][stem].suffix.lower() in SUFFIXES), None)
        for name, own in files.items():
            file = own[stem]
            if name in given:
                found[name] = read_npy(file) if file.suffix == ".npy" else _image(file, name, how)[None]
            else:
                found |= _label(file, name, picture, how)
        yield {**found, **{name: column[stem] for name, column in table.items()}}


def _label(file: Path, name: str, picture: Path | None, how: Preprocessing | None) -> dict[str, np.ndarray]:
    """A label of one sample: an array, a map of class numbers, or boxes of the sample's `picture`."""
    if file.suffix == ".npy":
        return {name: read_npy(file)[None]}
    if file.suffix.lower() in SUFFIXES:
        return {name: read_label_map(file, _declared(file, how))[None]}
    if file.suffix == ".txt" and picture is not None:
        boxes, classes = _boxes(file, picture, _declared(picture, how))
        return {name: boxes[None], name + CLASSES: classes[None]}
    raise InputError.of(str(file), "is no label", expected=".npy, .png with class numbers, or .txt with boxes")


def _boxes(file: Path, picture: Path, how: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Boxes f64[n, 4] in pixels of the input, and their classes; lines are `class cx cy w h` in shares of the
    picture."""
    try:
        rows = np.array([line.split() for line in file.read_text().splitlines() if line.strip()], float).reshape(-1, 5)
    except ValueError:
        rows = np.full((1, 5), np.nan)
    if not np.isfinite(rows).all() or (rows[:, 0] != np.round(rows[:, 0])).any():
        what = "is not a list of boxes"
        raise InputError.of(str(file), what, expected="class cx cy w h in each line, shares of the picture")
    width, height = picture_size(picture)
    place = how.placed(width, height)
    pixels = np.array([width * place.scale[0], height * place.scale[1]])
    centre, half = rows[:, 1:3] * pixels + place.offset, rows[:, 3:5] * pixels / 2
    return np.concatenate([centre - half, centre + half], 1), rows[:, 0].astype(np.int64)


def _table(folder: Path, files: Sequence[Path], inputs: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """The columns of `labels.csv` by name, each with an array of one row for each file's stem."""
    path = folder / LABELS
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            head, *rows = [row for row in csv.reader(text) if row] or [[]]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError.of(str(path), "cannot be read", got=str(error), expected="CSV in UTF-8") from None
    if len(head) < 2 or any(len(row) != len(head) for row in rows):
        raise InputError.of(
            str(path), "is not a table", expected="a line `file,NAME,...`, and such a line for each file"
        )
    if given := sorted(set(head[1:]) & set(inputs)):
        raise InputError.of(str(path), f"its column '{given[0]}' is called like an input of the model")
    by_stem: dict[str, list[str]] = {}
    for row in rows:
        if by_stem.setdefault(Path(row[0]).stem, row) is not row:
            raise InputError.of(str(path), f"has several lines for '{Path(row[0]).stem}'")
    if missing := [f.name for f in files if f.stem not in by_stem]:
        raise InputError.of(str(path), f"has no line for '{missing[0]}'")
    return {name: _column({stem: row[i] for stem, row in by_stem.items()}) for i, name in enumerate(head) if i}


def _column(texts: Mapping[str, str]) -> dict[str, np.ndarray]:
    """A column as integers, numbers or texts: the first that all of it is. 0042 is a text: its zeros matter."""
    for kind in (np.int64, np.float64) if not any(PADDED.match(text) for text in texts.values()) else ():
        try:
            return {stem: np.array([text]).astype(kind) for stem, text in texts.items()}
        except (ValueError, OverflowError):
            continue
    return {stem: np.array([text]) for stem, text in texts.items()}

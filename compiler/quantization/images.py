"""Image preprocessing for a model, declared in a small TOML file:

    size = [224, 224]            # rows, columns
    resize = "stretch"           # or "crop": the shorter side to size, then the centre
    colour = "rgb"               # or "bgr", "grey"
    scale = 0.00392156862745098  # multiplies the bytes
    mean = [0.485, 0.456, 0.406] # subtracted after scaling
    std = [0.229, 0.224, 0.225]  # divides after that
    layout = "chw"               # or "hwc"

Invariant: the same file and declaration give the same array.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ppuc.ir.errors import InputError, UsageError
from ppuc.ir.strict_toml import read_toml

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_CHOICES = {"resize": ("stretch", "crop"), "colour": ("rgb", "bgr", "grey"), "layout": ("chw", "hwc")}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From bytes to the model's numbers: ((byte * scale) - mean) / std, a colour at a time."""

    size: tuple[int, int]
    resize: str = "stretch"
    colour: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "chw"


def read_preprocessing(path: Path) -> Preprocessing:
    """The declaration in a TOML file. Raises UsageError for what it does not understand."""
    table = read_toml(path, UsageError)
    known = {f.name for f in fields(Preprocessing)}
    if unknown := sorted(set(table) - known):
        raise UsageError.of(str(path), f"unknown key '{unknown[0]}'", expected=", ".join(sorted(known)))
    for key, choices in _CHOICES.items():
        if table.get(key, choices[0]) not in choices:
            raise UsageError.of(str(path), f"'{key}' is unknown", got=table[key], expected=" or ".join(choices))
    size = table.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise UsageError.of(str(path), "'size' must be [rows, columns]", got=size)
    for key in ("mean", "std"):
        if key in table:
            given = table[key] if isinstance(table[key], list) else [table[key]]
            if not all(isinstance(n, int | float) for n in given) or (key == "std" and not all(given)):
                raise UsageError.of(str(path), f"'{key}' must be numbers, one per colour", got=table[key])
            table[key] = tuple(map(float, given))
    return Preprocessing(**{**table, "size": (size[0], size[1])})


def read_image(path: Path, how: Preprocessing) -> np.ndarray:
    """The image as f32 in the declared layout. Raises InputError if the file is not an image, UsageError if Pillow is
    missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError.of(str(path), "reading images needs Pillow", hint="pip install 'ppuc[demo]'") from error
    try:
        with Image.open(path) as file:
            image = file.convert("L" if how.colour == "grey" else "RGB")
    except (OSError, ValueError) as error:
        raise InputError.of(str(path), "cannot be read as an image", got=str(error)) from error
    rows, columns = how.size
    if how.resize == "crop":
        ratio = max(rows / image.height, columns / image.width)
        image = image.resize((max(columns, round(image.width * ratio)), max(rows, round(image.height * ratio))))
        left, top = (image.width - columns) // 2, (image.height - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    else:
        image = image.resize((columns, rows))
    array = np.asarray(image, np.float32).reshape(rows, columns, -1)
    array = array[:, :, ::-1] if how.colour == "bgr" else array
    mean, std = (np.asarray(n, np.float32) for n in (how.mean, how.std))
    scaled = (array * np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1) if how.layout == "chw" else scaled, np.float32)

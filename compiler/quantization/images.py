"""Image preprocessing for a model, declared in a small TOML file (docs/data.md):

    size = [224, 224]            # rows, columns
    resize = "stretch"           # or "crop": the shorter side to size, then the centre; "letterbox": the longer side
    align = "centre"             # or "top-left": where a letterboxed picture lies
    pad = 114                    # the bytes around it, one or one per colour
    interpolation = "bicubic"    # or "nearest", "bilinear", "lanczos", "box"; shrinking takes means, as Pillow does
    colour = "rgb"               # or "bgr", "grey"
    scale = 0.00392156862745098  # multiplies the bytes
    mean = [0.485, 0.456, 0.406] # subtracted after scaling
    std = [0.229, 0.224, 0.225]  # divides after that
    layout = "chw"               # or "hwc"
    dtype = "f32"                # or "u8": the bytes as they are

    [inputs.right]               # what differs for one of several inputs
    colour = "grey"

Invariant: the same file and declaration give the same array.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.errors import InputError, UsageError
from ppuc.ir.strict_toml import read_toml

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_CHOICES = {
    "resize": ("stretch", "crop", "letterbox"),
    "align": ("centre", "top-left"),
    "interpolation": ("bicubic", "nearest", "bilinear", "lanczos", "box"),
    "colour": ("rgb", "bgr", "grey"),
    "layout": ("chw", "hwc"),
    "dtype": ("f32", "u8"),
}
_OF_F32 = ("scale", "mean", "std")
_OF_LETTERBOX = ("align", "pad")
IGNORED = 255
"""The class of pixels of a label map that lie outside the picture."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies in a model's input: x there is x in the picture times `scale[0]`, plus `offset[0]`."""

    scale: tuple[float, float]
    offset: tuple[int, int]
    size: tuple[int, int]
    """Width and height of the resized picture."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From bytes to the model's numbers: ((byte * scale) - mean) / std, a colour at a time; with `dtype` u8 the bytes.
    `inputs` are those of inputs that differ, `where` is the file that declares it."""

    size: tuple[int, int]
    resize: str = "stretch"
    align: str = "centre"
    pad: tuple[int, ...] = (114,)
    interpolation: str = "bicubic"
    colour: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "chw"
    dtype: str = "f32"
    where: str = field(default="--preprocess", compare=False)
    inputs: Mapping[str, Preprocessing] = field(default_factory=dict)

    def of(self, name: str) -> Preprocessing:
        """The preprocessing of one input."""
        return self.inputs.get(name, self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image."""
        channels = 1 if self.colour == "grey" else 3
        return (channels, *self.size) if self.layout == "chw" else (*self.size, channels)

    def placed(self, width: int, height: int) -> Placement:
        """Where a picture of this size lies."""
        rows, columns = self.size
        if self.resize == "stretch":
            return Placement((columns / width, rows / height), (0, 0), (columns, rows))
        if self.resize == "crop":
            ratio = max(rows / height, columns / width)
            size = max(columns, round(width * ratio)), max(rows, round(height * ratio))
            return Placement((ratio, ratio), (-((size[0] - columns) // 2), -((size[1] - rows) // 2)), size)
        ratio = min(rows / height, columns / width)
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        centred = self.align == "centre"
        offset = ((columns - size[0]) // 2, (rows - size[1]) // 2) if centred else (0, 0)
        return Placement((ratio, ratio), offset, size)

    def check_fits(self, name: str, declared: Sequence[int | str | None], dtype: str = "") -> None:
        """Raise UsageError, naming the key, if an input `name` of shape `declared` (batch first) and type `dtype` ("":
        unknown) does not take what this makes."""
        if len(declared) != 4:
            return
        wanted = [n if isinstance(n, int) else None for n in declared[1:]]
        if all(w in (None, own) for w, own in zip(wanted, self.shape, strict=True)):
            known = {"f32": "f32", "u8": "u8"}.get(dtype, "")
            if known and known != self.dtype:
                raise self._misfit("dtype", self.dtype, f"{dtype} of input '{name}'")
            return
        takes = f"input '{name}': [{', '.join(str(n) for n in declared)}]"
        other = replace(self, layout="hwc" if self.layout == "chw" else "chw")
        if all(w in (None, own) for w, own in zip(wanted, other.shape, strict=True)):
            raise self._misfit("layout", self.layout, takes)
        channels = wanted[0] if self.layout == "chw" else wanted[2]
        if channels not in (None, 1 if self.colour == "grey" else 3):
            raise self._misfit("colour", self.colour, takes)
        raise self._misfit("size", list(self.size), takes)

    def _misfit(self, key: str, got: object, takes: str) -> UsageError:
        what = f"'{key}' does not fit the model"
        error = UsageError.of(self.where, what, got=f"{key} = {got!r}".replace("'", '"'), expected=takes)
        assert isinstance(error, UsageError)
        return error


def read_preprocessing(path: Path) -> Preprocessing:
    """The declaration in a TOML file. Raises UsageError for what it does not understand."""
    table = read_toml(path, UsageError)
    inputs = table.pop("inputs", {})
    if not isinstance(inputs, dict) or not all(isinstance(own, dict) for own in inputs.values()):
        raise UsageError.of(str(path), "'inputs' holds a table for each input", hint="[inputs.NAME]")
    own = {name: _declared({**table, **changes}, str(path)) for name, changes in inputs.items()}
    if inputs and "size" not in table:
        return replace(next(iter(own.values())), inputs=own)
    return replace(_declared(table, str(path)), inputs=own)


def _declared(table: dict[str, Any], where: str) -> Preprocessing:
    known = {f.name for f in fields(Preprocessing)} - {"where", "inputs"}
    if unknown := sorted(set(table) - known):
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean '{close[0]}'?" if close else None
        raise UsageError.of(where, f"unknown key '{unknown[0]}'", expected=", ".join(sorted(known)), hint=hint)
    for key, choices in _CHOICES.items():
        if table.get(key, choices[0]) not in choices:
            raise UsageError.of(where, f"'{key}' is unknown", got=table[key], expected=" or ".join(choices))
    for keys, key, value in ((_OF_F32, "dtype", "u8"), (_OF_LETTERBOX, "resize", None)):
        given = [k for k in keys if k in table]
        if given and (table.get(key) == value if value else table.get(key) != "letterbox"):
            what = f"'{given[0]}' has no effect with {key} = \"{table.get(key, _CHOICES[key][0])}\""
            raise UsageError.of(where, what)
    size = table.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise UsageError.of(where, "'size' must be [rows, columns]", got=size)
    made = dict(table)
    for key in ("mean", "std", "pad"):
        if key in table:
            made[key] = _numbers(table[key], key, where, 1 if table.get("colour") == "grey" else 3)
    if "scale" in table and (isinstance(table["scale"], bool) or not isinstance(table["scale"], int | float)):
        raise UsageError.of(where, "'scale' must be a number", got=table["scale"])
    return Preprocessing(**{**made, "size": (size[0], size[1]), "where": where})


def _numbers(value: object, key: str, where: str, colours: int) -> tuple[float, ...]:
    given = value if isinstance(value, list) else [value]
    fits = all(isinstance(n, int | float) and not isinstance(n, bool) for n in given)
    if not fits or len(given) not in (1, colours) or (key == "std" and not all(given)):
        raise UsageError.of(where, f"'{key}' must be numbers, one or one per colour", got=value)
    if key == "pad":
        if not all(isinstance(n, int) and 0 <= n <= 255 for n in given):
            raise UsageError.of(where, "'pad' must be bytes, 0 to 255", got=value)
        return tuple(given)
    return tuple(map(float, given))


def read_image(path: Path, how: Preprocessing) -> np.ndarray:
    """The image in the declared layout and type. Raises InputError if the file is not an image, UsageError if Pillow is
    missing."""
    image = opened(path).convert("L" if how.colour == "grey" else "RGB")
    pad = how.pad * 3 if len(how.pad) == 1 else how.pad
    fill: Any = pad[0] if how.colour == "grey" else pad[::-1] if how.colour == "bgr" else pad
    placed = _moved(image, how, how.interpolation, fill)
    array: np.ndarray = np.asarray(placed, np.uint8).reshape(*how.size, -1)
    array = array[:, :, ::-1] if how.colour == "bgr" else array
    if how.dtype == "f32":
        mean, std = (np.asarray(n, np.float32) for n in (how.mean, how.std))
        array = (array.astype(np.float32) * np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(array.transpose(2, 0, 1) if how.layout == "chw" else array)


def read_label_map(path: Path, how: Preprocessing) -> np.ndarray:
    """i64[rows, columns]: a map of class numbers, moved and resized as its picture is; pixels outside the picture are
    IGNORED. Raises InputError if the file is not an image of one channel."""
    image = opened(path)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise InputError.of(
            str(path), "is not a map of class numbers", got=f"mode {image.mode}", expected="grey or palette"
        )
    numbers = image if image.mode in ("L", "P") else image.convert("L" if image.mode == "1" else "I")
    numbers = numbers.point(lambda byte: byte // 255) if image.mode == "1" else numbers  # one bit: classes 0 and 1
    return np.asarray(_moved(numbers, how, "nearest", IGNORED), np.int64)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture. Raises InputError."""
    size: tuple[int, int] = opened(path).size
    return size


def _moved(image: Image.Image, how: Preprocessing, interpolation: str, fill: Any) -> Image.Image:
    from PIL import Image

    place = how.placed(*image.size)
    resized = image.resize(place.size, Image.Resampling[interpolation.upper()])
    if place.offset == (0, 0) and place.size == how.size[::-1]:
        return resized
    canvas = Image.new(image.mode, how.size[::-1], fill)
    canvas.paste(resized, place.offset)
    return canvas


def opened(path: Path) -> Image.Image:
    """The picture in a file. Raises InputError if it is none, UsageError if Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError.of(str(path), "reading images needs Pillow", hint="pip install 'ppuc[demo]'") from error
    try:
        with Image.open(path) as file:
            file.load()
            return file
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError.of(str(path), "cannot be read as an image", got=str(error)) from error

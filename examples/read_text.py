"""A simulated PPU reads a line of text.

    python examples/read_text.py [--text "any Latin line"] [--target NAME] [--precision bf16] [--keep FOLDER]

The model is PP-OCRv4 recognition (trained, Chinese and Latin script), taken from the registry package
`rapidocr-onnxruntime`. The line is drawn with Pillow's own font, compiled for a PPU, run on the simulator and, as a
reference, on ONNX Runtime. Both outputs are scores of shape [1, 40, 6625]: 40 steps along the line, one class for
"nothing", one for each of 6,623 characters and one for the space.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

import ppuc
from ppuc.compiler.report.profile import profile_record
from ppuc.compiler.validation.oracle import Oracle

PACKAGE = "rapidocr-onnxruntime"
HEIGHT, WIDTH = 48, 320
"""Pixels of the image that the network reads."""


def main() -> None:
    """Draw, compile, run twice, compare, and say where the time went."""
    options = arguments()
    model = model_file()
    image = draw(options.text)
    preview(image)
    inputs = {"x": normalised(image)}
    if options.keep:
        keep(model, inputs, options.keep)

    began = time.perf_counter()
    note(f"compiling {model.name} for {options.target} ...")
    dims = {"x:0": 1, "x:2": HEIGHT, "x:3": WIDTH}
    program = ppuc.compile(model, target=options.target, precision=options.precision, dims=dims)
    note(f"compiled in {time.perf_counter() - began:.1f} s; simulating ...")
    began = time.perf_counter()
    result = program.run(inputs)
    note(f"simulated in {time.perf_counter() - began:.1f} s; asking ONNX Runtime ...")
    expected = Oracle(model).run(inputs)

    ((name, scores),) = result.outputs.items()
    alphabet = characters(model)
    read, reference = decoded(scores, alphabet), decoded(expected[name], alphabet)
    print(f"\nthe simulated PPU read:  {read}")
    print(f"ONNX Runtime read:       {reference}")
    print(f"error between them:      {error_text(scores, expected[name])}")
    print_profile(program, result)
    if read != reference or result.profile.hazards:
        sys.exit(1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A simulated PPU reads a line of text.")
    parser.add_argument("--text", default="Hello from a PPU, 2025", help="a line in Latin script")
    parser.add_argument("--target", default="zhenwu-m890", help="the machine, as in `ppuc targets`")
    parser.add_argument("--precision", default="model", help="model, fp32, bf16 or fp16")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy model.onnx and inputs.npz here, for `ppuc`")
    return parser.parse_args()


def note(text: str) -> None:
    """Tell what happens next, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def model_file() -> Path:
    """The recogniser's .onnx inside the installed package."""
    try:
        found = [f for f in files(PACKAGE) or () if f.match("*rec_infer.onnx")]
    except PackageNotFoundError:
        found = []
    if not found:
        sys.exit(f"the package with the trained model is missing: pip install --no-deps {PACKAGE}==1.4.4")
    return Path(str(found[0].locate()))


def keep(model: Path, inputs: dict[str, np.ndarray], folder: Path) -> None:
    """Leave what this example runs where `ppuc` can take it up."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, folder / "model.onnx")
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type] # the stub takes keywords for its own option


def draw(text: str) -> Image.Image:
    """`text`, black on white, at the network's height; narrowed when it is wider than the network's image."""
    font = ImageFont.load_default(size=34)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (round(right - left) + 24, HEIGHT), "white")
    centred = (12 - left, (HEIGHT - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(centred, text, fill="black", font=font)
    return image.resize((min(image.width, WIDTH), HEIGHT), Image.Resampling.BILINEAR)


def normalised(image: Image.Image) -> np.ndarray:
    """f32[1, 3, 48, 320] in -1 .. 1, the part right of the text zero, as the model was trained."""
    pixels = (np.asarray(image, np.float32) / 255 - 0.5) / 0.5
    padded = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    padded[0, :, :, : image.width] = pixels.transpose(2, 0, 1)
    return padded


def preview(image: Image.Image) -> None:
    """The image on the terminal, a third of its size and two rows of it in a line."""
    if "utf" not in (sys.stdout.encoding or "").lower():
        return
    ink = np.asarray(image.convert("L").reduce(3)) < 150
    ink = ink[ink.any(axis=1)]
    ink = np.pad(ink, ((0, len(ink) % 2), (0, 0)))
    for upper, lower in zip(ink[0::2], ink[1::2], strict=True):
        print("  " + "".join(" ▄▀█"[2 * int(u) + int(v)] for u, v in zip(upper, lower, strict=True)).rstrip())


def characters(model: Path) -> list[str]:
    """The character of each class: nothing first, then the model's own list, then the space."""
    metadata = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def decoded(scores: np.ndarray, alphabet: list[str]) -> str:
    """CTC decoding of scores [1, steps, classes]: the best class of each step, repetitions merged, nothing left out."""
    best = scores[0].argmax(axis=-1)
    return "".join(alphabet[c] for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1])).strip()


def error_text(got: np.ndarray, want: np.ndarray) -> str:
    """Largest absolute error, and signal to noise in dB."""
    error = got.astype(np.float64) - want
    largest = np.abs(error).max()
    if not largest:
        return "none"
    return f"{largest:.2g} at most, {10 * np.log10(np.square(want).sum() / np.square(error).sum()):.0f} dB SQNR"


def print_profile(program: ppuc.CompiledProgram, result: ppuc.ProgramResult) -> None:
    """Simulated time and the five costliest layers."""
    record = profile_record(result.profile, program.target, program.nodes)
    time_us, cycles = record["seconds"] * 1e6, record["cycles"]
    print(f"simulated time:          {time_us:.1f} us ({cycles:,.0f} cycles) on {record['target']}")
    print(f"hazards:                 {len(record['hazards']) or 'none'}")
    print(f"\nthe five costliest of {len(record['kernels'])} layers:")
    print(f"  {'ONNX nodes':44}{'kernel':26}{'cycles':>8}{'share':>7}  bound by")
    for row in sorted(record["kernels"], key=lambda r: -r["cycles"])[:5]:
        others = [name for name in row["loc"] if name != row["node"]]
        nodes = " .. ".join([row["node"], *others[-1:]])
        print(f"  {nodes:44}{row['kernel']:26}{row['cycles']:8,.0f}{row['share']:7.1%}  {row['bound_by']}")


if __name__ == "__main__":
    main()

"""Labelled lines of text, and how many of them a recogniser reads right: data and metric for `ppuc quantize`.

    python examples/lines.py FILE.npz [--count 48]
    ppuc quantize model.onnx --calibrate FILE.npz --metric examples/lines.py

FILE.npz holds x f32[count, 3, 48, 320], lines that `read_text.py` draws, and text, what they say. Every line is random
words and numbers, moved, dimmed and blurred a little, so that some are hard to read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import ImageEnhance, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent))

from read_text import characters, decoded, draw, model_file, normalised

WORDS = [
    "tensor",
    "vector",
    "queue",
    "memory",
    "total",
    "amount",
    "invoice",
    "number",
    "street",
    "garden",
    "winter",
    "orange",
    "seven",
    "device",
    "Monday",
    "Berlin",
    "engine",
    "signal",
    "paper",
    "river",
    "window",
    "yellow",
    "market",
    "London",
    "silver",
    "bridge",
    "system",
    "camera",
    "object",
    "figure",
]


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description="Draw labelled lines of text.")
    parser.add_argument("file", type=Path, help="the .npz to write")
    parser.add_argument("--count", type=int, default=48, help="lines")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    texts = [line_of_text(rng) for _ in range(given.count)]
    given.file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(given.file, x=np.concatenate([picture(text, rng) for text in texts]), text=np.array(texts))
    print(f"{given.file}: {given.count} lines, such as: {' | '.join(texts[:3])}")


def line_of_text(rng: np.random.Generator) -> str:
    """Two words and a number."""
    first, second = rng.choice(WORDS, 2, replace=False)
    return f"{first} {rng.integers(10, 10000)} {second}"


def picture(text: str, rng: np.random.Generator) -> np.ndarray:
    """f32[1, 3, 48, 320] of a line that is not quite clean."""
    image = draw(text)
    image = image.rotate(float(rng.uniform(-1.5, 1.5)), fillcolor="white")
    image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.1, 1.0)))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 2.6))))
    return normalised(image)


def metric(outputs: Sequence[Mapping[str, np.ndarray]], inputs: Sequence[Mapping[str, np.ndarray]]) -> float:
    """The share of lines that are read right."""
    alphabet = characters(model_file())
    read = [decoded(next(iter(scores.values())), alphabet) for scores in outputs]
    return float(np.mean([got == str(line["text"][0]) for got, line in zip(read, inputs, strict=True)]))


if __name__ == "__main__":
    main()

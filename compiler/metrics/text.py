"""Metrics of texts that CTC outputs spell: exact lines, characters, words.

Decoding takes the best path: the likeliest symbol of each step, repetitions merged, blanks dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ppuc.compiler.metrics.base import ByLabels, Sample, label_of, metric, numbered, output_of
from ppuc.ir.errors import UsageError


@metric("ctc")
@dataclass(frozen=True, slots=True)
class Ctc(ByLabels):
    """Text of a CTC output: the share of lines read exactly, or 1 less the error rate of characters or words
    (insertions, deletions and substitutions over the length of the true text). The output is [N, steps, symbols];
    `time_major`: [steps, N, symbols]. `alphabet` is a file with a symbol a line, in the order of the classes without
    `blank`, and `space` adds one at the end; without it each class is a symbol of its own, and words are what lies
    between symbols of the class `separator`. The truth are strings in the data, `labels`, or else what the model
    spells in f32."""

    measure: Literal["lines", "cer", "wer"] = "cer"
    output: str = ""
    blank: int = 0
    alphabet: Path | None = None
    space: bool = False
    separator: int = -1
    time_major: bool = False
    labels: str = ""

    def __call__(self, outputs: Sequence[Sample], samples: Sequence[Sample], exact: Sequence[Sample]) -> float:
        symbols = self._symbols()
        errors = length = right = lines = 0
        for number, (output, sample, reference) in numbered(outputs, samples, exact):
            mine = self._texts(output, symbols)
            true = self._labels(sample) if self.labels else self._texts(reference, symbols)
            if len(mine) != len(true):
                raise UsageError.of("ctc", f"sample {number} has {len(true)} labels for {len(mine)} lines")
            for read, meant in zip(mine, true, strict=True):
                units = [self._words(text) if self.measure == "wer" else list(text) for text in (read, meant)]
                errors += distance(*units)
                length += len(units[1])
                right += read == meant
                lines += 1
        return right / max(lines, 1) if self.measure == "lines" else 1.0 - errors / max(length, 1)

    def _symbols(self) -> list[str] | None:
        if self.alphabet is None:
            if self.labels:
                raise UsageError.of("ctc", "labels are texts", expected="'alphabet', to spell the output with")
            return None
        try:
            found = self.alphabet.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # U+2028 may be a symbol
        except (OSError, UnicodeError) as error:
            raise UsageError.of(str(self.alphabet), "cannot be read", got=str(error)) from error
        found += [" "] if self.space else []
        blank = self.blank % (len(found) + 1)
        return [*found[:blank], "", *found[blank:]]

    def _texts(self, sample: Sample, symbols: list[str] | None) -> list[str]:
        scores = output_of(sample, self.output, "ctc")
        if scores.ndim != 3:
            raise UsageError.of("ctc", "the output is not [N, steps, symbols]", got=list(scores.shape))
        scores = scores.transpose(1, 0, 2) if self.time_major else scores
        count = scores.shape[2]
        if symbols is not None and count != len(symbols):
            what = f"the output has {count} classes, the alphabet {len(symbols)} with the blank"
            raise UsageError.of(str(self.alphabet), what, hint="`space = true` adds a space at its end")
        if not -count <= self.blank < count:
            raise UsageError.of("ctc", f"'blank' is not one of the {count} classes", got=self.blank)
        symbols = symbols or [chr(0x4E00 + i) for i in range(count)]
        return ["".join(symbols[i] for i in path) for path in best_paths(scores, self.blank % count)]

    def _labels(self, sample: Sample) -> list[str]:
        labels = label_of(sample, self.labels, "ctc").reshape(-1)
        return [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in labels]

    def _words(self, text: str) -> list[str]:
        return text.split(chr(0x4E00 + self.separator) if self.alphabet is None and self.separator >= 0 else None)


def best_paths(scores: np.ndarray, blank: int) -> list[list[int]]:
    """The symbols of each line of scores[N, steps, symbols] along its best path."""
    found = []
    for path in scores.argmax(2):
        kept = path[np.diff(path, prepend=-1) != 0]
        found.append([int(symbol) for symbol in kept if symbol != blank])
    return found


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The edit distance (Levenshtein) of two sequences."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]

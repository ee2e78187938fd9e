"""Damages files: flips bits, and removes, duplicates or exchanges parts or lines. Invariant: what a generator yields
differs from its input.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

SIGNS = b'0123456789.-+[]{}()"%@,:= \n\\x\x00'
"""What texts are made of, and what they never hold."""


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit the other way."""
    at = bit // 8
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]


def bit_flips(data: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """`count` copies with one bit flipped, anywhere."""
    for _ in range(count):
        yield flipped(data, rng.randrange(8 * len(data)))


def cuts(data: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """`count` copies of which parts are missing, zero, there twice, or exchanged."""
    while count:
        first, last = sorted(rng.sample(range(len(data) + 1), 2))
        other = rng.randrange(len(data))
        part = data[first:last]
        changed = rng.choice(
            (
                data[:first],
                data[last:],
                data[:first] + data[last:],
                data[:first] + bytes(len(part)) + data[last:],
                data[:last] + part + data[last:],
                data[:other] + part + data[other + len(part) :],
                data + part,
            )
        )
        if changed != data:
            count -= 1
            yield changed


def text_mutations(text: str, count: int, rng: random.Random) -> Iterator[bytes]:
    """`count` copies of a text with a bit flipped, characters changed, or lines gone, doubled or exchanged."""
    data, lines = text.encode(), text.splitlines(keepends=True)
    while count:
        i, j = (rng.randrange(len(lines)) for _ in range(2))
        at = rng.randrange(len(data))
        kind = rng.randrange(7)
        if kind == 0:
            changed = flipped(data, rng.randrange(8 * len(data)))
        elif kind == 1:
            changed = data[:at] + data[at + rng.randint(1, 4) :]
        elif kind == 2:
            changed = data[:at] + bytes(rng.choices(SIGNS, k=2)) + data[at:]
        else:
            kept = list(lines)
            if kind == 3:
                del kept[i]
            elif kind == 4:
                kept.insert(j, kept[i])
            elif kind == 5:
                kept[i], kept[j] = kept[j], kept[i]
            else:
                del kept[min(i, j) : max(i, j)]
            changed = "".join(kept).encode()
        if changed != data:
            count -= 1
            yield changed

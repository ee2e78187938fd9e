"""Checksums of stored bytes: XXH3-128, against damage and not against forgery. Hashes at the speed of memory."""

from __future__ import annotations

import xxhash

DIGITS = 32
"""Hexadecimal digits of a checksum."""


def checksum(*parts: bytes | memoryview) -> str:
    """The checksum of `parts`, one after another, as hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()

"""Checksums of stored bytes: XXH3-128, which detects damage, not forgery, at memory speed."""

from __future__ import annotations

import xxhash

DIGITS = 32
"""Hexadecimal digits of a checksum."""


def checksum(*parts: bytes | memoryview) -> str:
    """The checksum of the concatenated `parts`, as hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()

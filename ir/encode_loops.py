"""The loops of encode.py.

To nearest, ties to even, by integer arithmetic on the bits (IEEE 754-2019, 4.3.1; OCP 8-bit Floating Point
Specification, 5.2): adding half of the last kept place, less one when that place is even, carries into it exactly when
the number rounds up. Below the smallest normal number the addition of a power of two whose last place is that of the
subnormals does the same.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import entry


@entry
def e4m3(values: np.ndarray, codes: np.ndarray, saturate: bool) -> None:
    bits = values.view(np.uint32)
    over = np.uint32(0x7E if saturate else 0x7F)
    for i in range(bits.size):
        sign = (bits[i] >> np.uint32(24)) & np.uint32(0x80)
        a = bits[i] & np.uint32(0x7FFFFFFF)
        normal = ((a + np.uint32(0x7FFFF) + ((a >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - np.uint32(960)
        # 2**14 has the last place 2**-9, the step of the subnormals.
        small = np.uint32(np.rint(np.float32(abs(values[i]) * np.float32(512.0)))) if a < 0x3C800000 else np.uint32(0)
        code = small if a < np.uint32(0x3C800000) else normal
        code = over if a > np.uint32(0x43E80000) else code
        code = np.uint32(0x7F) if a > np.uint32(0x7F800000) else code
        codes[i] = sign | code


@entry
def e5m2(values: np.ndarray, codes: np.ndarray, saturate: bool) -> None:
    bits = values.view(np.uint32)
    over = np.uint32(0x7B if saturate else 0x7C)
    for i in range(bits.size):
        sign = (bits[i] >> np.uint32(24)) & np.uint32(0x80)
        a = bits[i] & np.uint32(0x7FFFFFFF)
        normal = ((a + np.uint32(0xFFFFF) + ((a >> np.uint32(21)) & np.uint32(1))) >> np.uint32(21)) - np.uint32(448)
        small = np.uint32(np.rint(np.float32(abs(values[i]) * np.float32(65536.0)))) if a < 0x38800000 else np.uint32(0)
        code = small if a < np.uint32(0x38800000) else normal
        code = over if a >= np.uint32(0x47700000) else code
        code = np.uint32(0x7E) if a > np.uint32(0x7F800000) else code
        codes[i] = sign | code

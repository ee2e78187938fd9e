"""Compiles the loops of the simulator and the compiler, so that no later run has to.

    python -m tools.build_loops

Calls every entry point (ppuc.ir.jit) as ppuc itself does: a small program is simulated, with values and hazards,
buffers that need the exact search are placed, and arrays are encoded. What is in the store already is not compiled
again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import ppuc
from examples import dense
from ppuc.compiler.passes.memory import minimalloc, placement_search
from ppuc.compiler.passes.memory.ranges import Range
from ppuc.ir import encode, encode_loops
from ppuc.ir.jit.decorators import key_of
from ppuc.ir.jit.store import announced, file_name
from ppuc.targets.simulator import event_loop, hazard_check, value_loop

ENTRIES: tuple[Any, ...] = (
    event_loop.run,
    hazard_check.run,
    value_loop.run,
    placement_search.search,
    encode_loops.e4m3,
    encode_loops.e5m2,
)
SEARCHED = ((3, 0, 1), (2, 2, 3), (2, 2, 2), (3, 1, 2))
"""Bytes, first and last step of buffers that fit 7 bytes in no greedy order."""


def main() -> None:
    """Build, and tell what is being done if it takes long."""
    with announced(print):
        build()


def build() -> list[str]:
    """Compile what is not in the store. Returns the names of the files that hold the entry points."""
    ppuc.compile(dense.model(), target="ppu-tiny").run({"x": np.zeros((64, 32), np.float32)})
    minimalloc.plan([Range(str(i), *buffer) for i, buffer in enumerate(SEARCHED)], capacity=7)
    for dtype in encode.ENCODED:
        encode.encode(np.zeros(1, np.float32), dtype, saturate=False)
    files = [_files(entry) for entry in ENTRIES]
    assert all(files), "an entry point was not called"
    return [name for names in files for name in names]


def _files(entry: Any) -> list[str]:
    function = entry.py_func
    name = f"{function.__module__}.{function.__name__}"
    return [file_name(name, key_of(function, signature)) for signature in entry.signatures]


if __name__ == "__main__":
    main()

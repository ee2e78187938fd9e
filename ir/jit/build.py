"""Compiles entry points in a process of its own: `python -m ppuc.ir.jit.build`.

Numba reads the processor that it compiles for from the environment when it is imported, once for a process, and a
caller's process may use numba for its own functions. So the child is started with SETTINGS, reads a module, the name of
an entry point in it and the types of its arguments from stdin, and writes the compiled entry point to stdout.

Measured on an x86-64 processor with AVX-512, level 1 for the baseline against level 3 for that processor: the event
loop takes 10 to 19 % longer, the hazard checker as long, an encoder 0.9 ns more a number, and compiling two thirds of
the time.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from ppuc.ir.errors import InternalError

SETTINGS = {
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
    "NUMBA_OPT": "1",
    "NUMBA_DISABLE_INTEL_SVML": "1",
}
"""Environment of the compiling process; of other variables of numba's, none applies."""


def compiled(module: str, name: str, signature: Sequence[Any]) -> bytes:
    """The entry point `name` of `module` for arguments of the types `signature`: numba's own serialized form. Raises
    InternalError with what the child process wrote."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")} | SETTINGS
    command = [sys.executable, "-P", "-m", "ppuc.ir.jit.build"]
    request = _serialized((module, name, tuple(signature)))
    done = subprocess.run(command, input=request, capture_output=True, env=environment, check=False)
    if done.returncode:
        raise InternalError(f"cannot compile {module}.{name}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def _serialized(value: object) -> bytes:
    from numba.core import serialize

    dumps: Callable[[object], bytes] = serialize.dumps
    return dumps(value)


def _main() -> None:
    from numba.core.caching import NullCache

    class Captured(NullCache):
        def save_overload(self, sig: Any, cres: Any) -> None:
            self.code = _serialized(cres._reduce())

    output = sys.stdout.buffer
    sys.stdout = sys.stderr
    module, name, signature = pickle.load(sys.stdin.buffer)
    dispatcher = getattr(import_module(module), name)
    dispatcher._cache = cache = Captured()
    dispatcher.compile(signature)
    output.write(cache.code)


if __name__ == "__main__":
    _main()

"""Decorators of functions that are compiled to machine code.

`helper` functions are compiled into the entry point that calls them. Reference counting of arrays is off (`_nrt`): the
loops allocate nothing, callers own all arrays, and counting made the loops fifty times slower.

Entry points are never compiled in the calling process: on the first call, their machine code is read from the store
(store.py), or compiled by a process of its own (build.py), whose numba is set to the baseline of the processor family.
The same code thus runs on every computer of that family, and sums in vector registers have the same order on each.

Invariant: the key of stored code covers all that determines it: the bytecode of the entry point and of every function
that it reaches, the global constants that these read, the types of the arguments, the settings of the compiler, and the
versions of Python and numba. Positions in files, comments and modification times are not part of it.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any, TypeVar, cast

import llvmlite
import numba
import numpy as np
from llvmlite.binding import get_process_triple
from numba import njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.core.types import unliteral

from ppuc.ir.jit import build, store

F = TypeVar("F", bound=Callable[..., Any])

_COMMON: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
_HELPER: dict[str, Any] = _COMMON | {"forceinline": True, "no_cpython_wrapper": True}
_ENTRY: dict[str, Any] = _COMMON | {"nogil": True}


def helper(function: F) -> F:
    """Inline-compile `function` into every caller."""
    return _inlined(function)


def array_helper(function: F) -> F:
    """A helper whose loops over arrays are vectorised: it may assume that no NaN arises and ignore the sign of zero,
    which changes no other value."""
    return _inlined(function, fastmath={"nnan", "nsz"})


def sum_helper(function: F) -> F:
    """An array helper that may also add in any order: for sums that need not be exact."""
    return _inlined(function, fastmath={"nnan", "nsz", "reassoc"})


def _inlined(function: F, **options: Any) -> F:
    """A helper that numba compiles once for each type of its arguments, not for each constant too: constants reach the
    inlined code anyway, and every fourth compilation is saved."""
    compiled: Any = njit(**_HELPER, **options)(function)
    template, general_type = compiled.get_call_template, cast(Any, unliteral)

    def general(args: Sequence[Any], kws: Mapping[str, Any]) -> Any:
        return template([general_type(arg) for arg in args], {name: general_type(kws[name]) for name in kws})

    compiled.get_call_template = general
    return cast(F, compiled)


def entry(function: F) -> F:
    """Compile `function`, a module's global, together with its helpers, and keep the result in the store. Other threads
    run meanwhile (`nogil`)."""
    compiled: Any = njit(**_ENTRY)(function)
    compiled._cache = _Stored(function)
    return cast(F, compiled)


class _Stored(NullCache):
    """What numba asks for machine code before it would compile an entry point, which it thus never does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled entry point for arguments of the types `sig`."""
        target_context.refresh()
        name, key = f"{self._function.__module__}.{self._function.__name__}", key_of(self._function, sig)
        code = store.load(name, key)
        if code is None:
            store.announce_compilation()
            code = build.compiled(self._function.__module__, self._function.__name__, sig)
            store.save(name, key, code)
        rebuild: Callable[..., Any] = CompileResult._rebuild
        return rebuild(target_context, *pickle.loads(code))


def key_of(function: Callable[..., Any], signature: Any) -> str:
    """The key of the machine code of `function` for arguments of the types `signature`, 64 hexadecimal digits."""
    versions = (numba.__version__, llvmlite.__version__, sys.implementation.cache_tag, getattr(sys, "abiflags", ""))
    settings = (get_process_triple(), build.SETTINGS, _ENTRY)
    digest = hashlib.sha256(repr((versions, settings, str(signature))).encode())
    for part in _parts(function, {}):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _parts(function: Callable[..., Any], seen: dict[int, int]) -> Iterator[str]:
    """Texts that determine what a function computes. Functions are numbered in `seen`, in the order of their visit."""
    if id(function) in seen:
        yield f"function {seen[id(function)]}"
        return
    seen[id(function)] = len(seen)
    yield _code_text(function.__code__)
    yield from (_text(cell.cell_contents) for cell in function.__closure__ or ())
    for name, value in _globals(function):
        if isinstance(value, Dispatcher):
            yield f"{name} {_text(value.targetoptions)}"
            yield from _parts(value.py_func, seen)
        elif isinstance(value, _Intrinsic):
            yield name
            yield from _parts(value._defn, seen)
        else:
            yield f"{name} = {_text(value)}"


def _globals(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """The global names that a function reads, with their values; of modules, the attributes that it reads."""
    names = function.__code__.co_names
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            yield from ((f"{name}.{n}", vars(value)[n]) for n in names if n in vars(value))
        elif name in function.__globals__:
            yield name, value


def _text(value: object) -> str:
    """A text that tells constants apart, the same in every process."""
    if isinstance(value, CodeType):
        return _code_text(value)
    if isinstance(value, dict):
        return _text(tuple(value.items()))
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    if isinstance(value, int | float | complex | str | bytes | np.generic | np.dtype) or value is None:
        return repr(value)
    return f"{type(value).__name__} {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _code_text(code: CodeType) -> str:
    constants = ", ".join(map(_text, code.co_consts))
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_argcount} ({constants})"


__all__ = ["array_helper", "entry", "helper", "key_of", "sum_helper"]

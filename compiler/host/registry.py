"""Registry of Python functions for custom ops, which neither ppuc nor ONNX Runtime supports.

    import ppuc

    @ppuc.host_op("com.example::Swirl")
    def swirl(x, angle=0.0):            # inputs as arrays, attributes by name
        return np.roll(x, int(angle))   # an array, or a tuple of them

A file of such functions is given with --host-ops. Invariant: an op has one function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ppuc.ir.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_OPS: dict[tuple[str, str], Callable[..., Any]] = {}


def host_op(name: str) -> Callable[[F], F]:
    """Register the decorated function for the op `domain::OpType`. Raises UsageError if the name is malformed or
    taken."""
    domain, separator, op_type = name.rpartition("::")
    if not separator or not op_type:
        raise UsageError.of("host op", "is not named 'domain::OpType'", got=name)

    def register(function: F) -> F:
        if (domain, op_type) in _OPS:
            raise UsageError.of("host op", "is registered twice", got=name)
        _OPS[domain, op_type] = function
        return function

    return register


def registered() -> dict[tuple[str, str], Callable[..., Any]]:
    """(domain, op type) -> function."""
    return dict(_OPS)

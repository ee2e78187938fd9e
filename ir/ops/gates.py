"""The activation functions of recurrent cells, each with one formula for two evaluators.

A formula uses an Algebra, which computes on numpy arrays or appends ops on a Builder's values. The reference of a cell
and its decomposition therefore agree by construction.

Invariant: formulas use elementwise ops of one operand dtype only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops.elementwise import evaluate

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


class Algebra(Protocol):
    """Applies elementwise ops. Operands are arrays or Values, never both."""

    def __call__(self, name: str, *operands: Any) -> Any:
        """Op `name` on `operands`; a Python number is a constant in the dtype of the others."""
        ...


class OnArrays:
    """Computes on numpy arrays."""

    def __call__(self, name: str, *operands: np.ndarray | float) -> np.ndarray:
        dtype = next(o.dtype for o in reversed(operands) if isinstance(o, np.ndarray))
        return evaluate(name, *(o if isinstance(o, np.ndarray) else dtype.type(o) for o in operands))


class OnValues:
    """Appends ops to a Builder."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def __call__(self, name: str, *operands: Value | float) -> Value:
        dtype = next(o.type.dtype for o in reversed(operands) if isinstance(o, Value))
        return self.builder(name, *(o if isinstance(o, Value) else self.builder.scalar(o, dtype) for o in operands))


@dataclass(frozen=True, slots=True)
class Gate:
    """`formula(algebra, x, alpha, beta)`; the defaults are None where the function has no such parameter."""

    formula: Callable[[Algebra, Any, float, float], Any]
    alpha: float | None = None
    beta: float | None = None


def _line(a: Algebra, x: Any, alpha: float, beta: float) -> Any:
    return a("add", a("mul", x, alpha), beta)


GATES: dict[str, Gate] = {
    "affine": Gate(_line, 1.0, 0.0),
    "elu": Gate(lambda a, x, alpha, _: a("add", a("relu", x), a("mul", a("expm1", a("min", x, 0.0)), alpha)), 1.0),
    "hardsigmoid": Gate(lambda a, x, al, be: a("min", a("max", _line(a, x, al, be), 0.0), 1.0), 0.2, 0.5),
    "leakyrelu": Gate(lambda a, x, alpha, _: a("select", a("lt", x, 0.0), a("mul", x, alpha), x), 0.01),
    "relu": Gate(lambda a, x, *_: a("relu", x)),
    "scaledtanh": Gate(lambda a, x, alpha, beta: a("mul", a("tanh", a("mul", x, beta)), alpha), 1.0, 1.0),
    "sigmoid": Gate(lambda a, x, *_: a("sigmoid", x)),
    "softplus": Gate(lambda a, x, *_: a("add", a("relu", x), a("log1p", a("exp", a("neg", a("abs", x)))))),
    "softsign": Gate(lambda a, x, *_: a("div", x, a("add", a("abs", x), 1.0))),
    "tanh": Gate(lambda a, x, *_: a("tanh", x)),
    "thresholdedrelu": Gate(lambda a, x, alpha, _: a("select", a("gt", x, alpha), x, 0.0), 1.0),
}
"""Lower-case ONNX name -> function, as the ONNX RNN, GRU and LSTM operators list them."""

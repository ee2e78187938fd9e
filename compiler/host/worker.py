"""The process that runs host models: ONNX Runtime first, onnx.reference where it cannot.

`ppuc.compiler.host.client` starts it, sends it requests over a socket and kills it when a request times out. Crashes of
ONNX Runtime in this process do not affect the compiler.

Invariant: one answer per request, `("ok", result)` or `("error", one line)`; loaded models stay loaded.
"""

from __future__ import annotations

import ctypes
import resource
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
from onnx.reference.op_run import OpRun

from ppuc.compiler.host.registry import registered

FATAL_ONLY = 4
PR_SET_PDEATHSIG = 1
RANDOM = ("Bernoulli", "Dropout", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
"""Ops whose results follow a seed: onnx.reference gives the numbers that ONNX's tests expect."""
NAMELESS = ("bfloat16", "float8", "float4", "int4", "int2")
"""Types without numpy arrays in ONNX Runtime."""
Evaluate = Callable[[Mapping[str, Any]], Sequence[Any]]


class Models:
    """Loaded models by key."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[str, Evaluate]] = {}

    def load(self, key: str, data: bytes) -> str:
        """Load a model; returns its evaluator. Raises an exception if neither can load it."""
        if key not in self._models:
            try:
                self._models[key] = ("onnxruntime", _native(data))
            except Exception as refused:  # the binding raises unexported exception types
                self._models[key] = ("onnx.reference", _reference(data, refused))
        return self._models[key][0]

    def run(self, key: str, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs of a loaded model. If one evaluator refuses to compute them, the other is not tried: it may be
        less strict."""
        return [_plain(x) for x in self._models[key][1](feeds)]


ABORTING = ["QDQPropagationTransformer"]
"""A rewrite that ends the process where the body of a loop or branch reads a dequantized tensor behind a reshape."""


def _native(data: bytes) -> Evaluate:
    if any(n.op_type in RANDOM for n in onnx.ModelProto.FromString(data).graph.node):
        raise TypeError("its random numbers are its own")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturated sums of 8-bit products
    session = onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=ABORTING
    )
    kinds = [i.type for i in (*session.get_inputs(), *session.get_outputs())]
    foreign = [kind for kind in kinds if any(name in kind for name in NAMELESS)]
    if foreign:
        raise TypeError(f"numpy has no {foreign[0]}")
    return lambda feeds: session.run(None, dict(feeds))


def _reference(data: bytes, refused: Exception) -> Evaluate:
    model = onnx.ModelProto.FromString(data)
    custom = registered()
    wanted = {(n.domain, n.op_type) for n in model.graph.node} & custom.keys()
    try:
        evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=[_op(*key, custom[key]) for key in sorted(wanted)])
    except Exception as error:
        raise RuntimeError(_both(refused, error)) from None
    return lambda feeds: list(evaluator.run(None, dict(feeds)))


def _op(domain: str, name: str, function: Callable[..., Any]) -> type[OpRun]:
    """Wrap a function of arrays and attributes as an op of the reference evaluator."""

    def run(self: OpRun, *arrays: Any, **_: Any) -> tuple[Any, ...]:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in self.onnx_node.attribute}
        plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
        results = function(*arrays, **plain)
        return tuple(map(np.asarray, results)) if isinstance(results, list | tuple) else (np.asarray(results),)

    return type(name, (OpRun,), {"op_domain": domain, "_run": run})


def _both(refused: Exception, error: Exception) -> str:
    return f"ONNX Runtime: {line_of(refused)}; onnx.reference: {line_of(error)}"


def _plain(value: Any) -> Any:
    """Arrays, lists of arrays, None."""
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return np.asarray(value) if isinstance(value, np.generic) else value


def line_of(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def serve(connection: Connection) -> None:
    """Answer requests until the connection closes."""
    models = Models()
    while True:
        try:
            kind, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("ok", models.load(*arguments) if kind == "load" else models.run(*arguments)))
        except BaseException as error:
            connection.send(("error", line_of(error)))


def end_with_parent() -> None:
    """Let the kernel end this process when the compiler exits, even if it is killed during a request. Linux only;
    elsewhere the process ends at its next socket read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(bytes: int) -> None:
    """Hold this process to an address space of `bytes`, or to what it has been held to already if that is less."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    room = bytes if most == resource.RLIM_INFINITY else min(bytes, most)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def main() -> None:
    """`worker FD BYTES [FILE.py ...]`: serve on a socket, within an address space, with the ops of Python files."""
    end_with_parent()
    descriptor, limit, *files = sys.argv[1:]
    limit_memory(int(limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.filterwarnings("ignore")
    connection = Connection(int(descriptor))
    try:
        for file in files:
            runpy.run_path(file)
        connection.send(("ok", sorted(registered())))
    except BaseException as error:
        connection.send(("error", line_of(error)))
        return
    serve(connection)


if __name__ == "__main__":
    main()

"""The compiler's end of the host worker: one process, started when first needed, replaced when it dies.

Invariant: a worker that crashes, hangs or runs out of memory causes one HostError; the next request gets a new worker.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.ir.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx

    from ppuc.compiler.frontend.offload.hosting import HostNode

START_SECONDS = 60.0


def physical_bytes() -> int:
    """Physical memory of this computer, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Limits of a request: wall time, and the worker's address space."""

    seconds: float = 120.0
    bytes: int = field(default_factory=lambda: min(16 << 30, physical_bytes() * 3 // 4))


class HostError(ModelError):
    """The host failed to compute its part."""


class HostWorker:
    """A worker process with the custom ops of `files`."""

    def __init__(self, files: tuple[str, ...] = (), limits: HostLimits | None = None) -> None:
        self.files, self.limits = files, limits or HostLimits()
        self.custom: frozenset[tuple[str, str]] = frozenset()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._loaded: set[str] = set()

    def load(self, model: bytes, where: str) -> str:
        """Load a host model; returns the evaluator, "onnxruntime" or "onnx.reference". Raises HostError."""
        key = hashlib.sha256(model).hexdigest()
        found = self._ask(where, "load", key, model)
        self._loaded.add(key)
        return str(found)

    def run(self, model: bytes, feeds: Mapping[str, Any], where: str) -> list[Any]:
        """The outputs of a host model. Raises HostError."""
        key = hashlib.sha256(model).hexdigest()
        if key not in self._loaded or self._process is None:
            self.load(model, where)
        return list(self._ask(where, "run", key, dict(feeds)))

    def types_of(self, node: HostNode, functions: Sequence[onnx.FunctionProto]) -> dict[str, onnx.TypeProto]:
        """Result types of a node without shape inference, found by running it on sample inputs; none if that fails."""
        from ppuc.compiler.frontend.offload.probe import probed_types

        return probed_types(node, functions, lambda model, feeds: self.run(model, feeds, node.label))

    def refusal_of(self, node: HostNode, functions: Sequence[onnx.FunctionProto]) -> str:
        """Why a node fails on all sample inputs; "" if it runs on some, or if that is unknown."""
        from ppuc.compiler.frontend.offload.probe import refusal

        return refusal(node, functions, lambda model, feeds: self.run(model, feeds, node.label))

    def start(self) -> None:
        """Start the process unless it runs. Raises UsageError if a file of ops fails."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "ppuc.compiler.host.worker", str(theirs.fileno()), str(self.limits.bytes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, *self.files], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._connection, self._loaded = Connection(ours.detach()), set()
        kind, found = self._receive("host worker", START_SECONDS)
        if kind == "error":
            self.stop()
            raise UsageError.of(
                "--host-ops", "a file of host ops fails", got=found, hint="run it with python to find the error"
            )
        self.custom = frozenset((domain, op) for domain, op in found)

    def stop(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _ask(self, where: str, *request: Any) -> Any:
        self.start()
        assert self._connection is not None
        try:
            self._connection.send(request)
        except OSError:
            raise self._died(where) from None
        kind, found = self._receive(where, self.limits.seconds)
        if kind == "error":
            raise HostError.of(where, "the host cannot compute it", got=found)
        return found

    def _receive(self, where: str, seconds: float) -> tuple[str, Any]:
        assert self._connection is not None
        try:
            if not self._connection.poll(seconds):
                self.stop()
                raise HostError.of(where, "the host took too long", got=f"more than {seconds:.0f} s")
            kind, found = self._connection.recv()
        except (EOFError, OSError):
            raise self._died(where) from None
        return kind, found

    def _died(self, where: str) -> Exception:
        assert self._process is not None
        try:
            code: object = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = "still running"
        self.stop()
        return HostError.of(
            where, "the host's process died", got=f"exit code {code}", hint="it may have run out of memory"
        )


_WORKERS: dict[tuple[str, ...], HostWorker] = {}


def worker(files: Sequence[str | Path] = ()) -> HostWorker:
    """The worker of this process with the ops of `files`."""
    key = tuple(str(Path(f).resolve()) for f in files)
    if key not in _WORKERS:
        if not _WORKERS:
            atexit.register(_stop_all)
        _WORKERS[key] = HostWorker(key)
    return _WORKERS[key]


def _stop_all() -> None:
    for each in _WORKERS.values():
        each.stop()

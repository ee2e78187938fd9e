"""Runs a list of passes: verifies, dumps, times and checks after each.

Invariant: the artifact depends only on the imported module, the passes and the target. Dumping, checking and progress
reports change no byte of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ppuc.compiler.options import Progress
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.remarks import Remark, collecting, unheard
from ppuc.compiler.pipeline.chosen import recorded
from ppuc.compiler.pipeline.dump import DumpFolder
from ppuc.compiler.pipeline.link import link
from ppuc.compiler.pipeline.pass_options import options_text, spec_of, specs_of
from ppuc.ir.errors import InternalError, UsageError
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.ir.verify import Checked, verify_module
from ppuc.targets.description import Target
from ppuc.targets.limits import check_limits

if TYPE_CHECKING:
    from ppuc.compiler.pipeline.recheck import CheckedPass, Recheck
    from ppuc.targets.artifact import Artifact


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass that ran. `ops` counts the ops of the graph after it; `file` is its text in the dump ("" when the pass
    changed nothing, or without a dump); `remarks` is empty unless they are collected."""

    name: str
    options: str
    seconds: float
    changed: bool
    ops: Mapping[str, int]
    file: str = ""
    check: CheckedPass | None = None
    remarks: tuple[Remark, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "pass": self.name,
            "options": self.options,
            "ms": round(self.seconds * 1e3, 3),
            "changed": self.changed,
            "ops": dict(self.ops),
            "error": self.check.record() if self.check is not None else None,
            "file": self.file or None,
            "remarks": [remark.record() for remark in self.remarks],
        }


def all_remarks(passes: Sequence[PassRecord]) -> tuple[Remark, ...]:
    """The remarks of all passes."""
    return tuple(remark for record in passes for remark in record.remarks)


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """A module with a quantization plan in its graph. `simulated` is the same model in f32 with operands rounded to
    their formats and back, whose inputs and outputs are those of the module."""

    module: Module
    simulated: Module


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """The outcome of a compilation: the module at its last level (the first segment's if there are several, None if
    everything runs on the host; `modules` has all), the artifact, and a record of each pass. `quantized` is the initial
    module with its plan if layers are quantized and nothing runs on the host."""

    module: Module | None
    artifact: Artifact
    passes: tuple[PassRecord, ...] = ()
    modules: tuple[Module, ...] = ()
    quantized: QuantizedModule | None = None

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """The remarks of all passes."""
        return all_remarks(self.passes)


def op_counts(graph: Graph) -> dict[str, int]:
    """Number of ops by name, in name order; bodies of groups are included."""
    counts: Counter[str] = Counter()

    def walk(part: Graph) -> None:
        for op in part.ops:
            counts[op.name] += 1
            if op.body is not None:
                walk(op.body)

    walk(graph)
    return dict(sorted(counts.items()))


def _check_required(step: Pass, module: Module, target: Target) -> None:
    """Raise UsageError when `module` breaks a contract that the pass requires: other passes must run first."""
    for contract in step.requires:
        entity = contract.broken(module, target)
        if entity:
            raise UsageError.of(
                f"pass {step.name}",
                f"needs a module that is {contract.name}: {contract.rule}",
                got=entity,
                hint="run the passes before it in the pipeline first (`ppuc passes`)",
            )


def _check_ensured(step: Pass, module: Module, target: Target) -> None:
    """Raise InternalError when the pass breaks a contract that it ensures."""
    for contract in step.ensures:
        entity = contract.broken(module, target)
        if entity:
            raise InternalError(f"pass {step.name} breaks its contract {contract.name} ({contract.rule}) at {entity}")


class Run:
    """One run of a list of passes. Remarks are collected if `listening`. `prior` are the recorded steps between the
    import and the passes."""

    def __init__(
        self,
        target: Target,
        passes: Sequence[Pass],
        dump: DumpFolder | None = None,
        progress: Progress | None = None,
        listening: bool = False,
    ) -> None:
        self.target, self.passes, self.dump, self.listening = target, tuple(passes), dump, listening
        self.progress = progress or (lambda what, number, total: None)
        self.prior: tuple[Pass, ...] = ()
        self.recheck: Recheck | None = None
        self.seen: Callable[[str, Module], None] | None = None
        self.records: list[PassRecord] = []
        self._about: dict[str, Any] = {}
        self._checked = Checked()

    def before(self, name: str, make: Callable[[], Module], done: Sequence[Pass] = ()) -> Module:
        """The module that `make` gives as the outcome of the step `name` before the passes: it records what it is to go
        through, and the steps `done`. If the step fails, its remarks are kept if anything was dumped before it."""
        self.progress(name, 0, self._total)
        started = time.perf_counter()
        with self._remarks(name) as remarks:
            module = make()
        module = replace(module, pipeline=recorded((*self.prior, *self.passes)), done=specs_of(done))
        verify_module(module, self._checked)
        seconds, counts = time.perf_counter() - started, op_counts(module.graph)
        self._record(PassRecord(name, "", seconds, True, counts, remarks=remarks()), module)
        return module

    @contextmanager
    def _remarks(self, name: str, options: str = "") -> Iterator[Callable[[], tuple[Remark, ...]]]:
        """The remarks emitted inside the context, if they are collected; recorded for a step that fails as well, which
        the manifest then names."""
        started = time.perf_counter()
        with collecting(name) if self.listening else unheard() as collector:
            try:
                yield lambda: collector.remarks if collector is not None else ()
            except Exception as error:
                if self.records:
                    made = collector.remarks if collector is not None else ()
                    seconds = time.perf_counter() - started
                    self.records.append(PassRecord(name, options, seconds, False, {}, remarks=made))
                    self._write_manifest({"pass": name, "error": f"{type(error).__name__}: {error}"})
                raise

    def run(self, module: Module) -> Module:
        """Run every pass on `module`. On failure, the dump keeps what was written, and its manifest records the
        error."""
        for step in self.passes:
            self.progress(step.name, len(self.records), self._total)
            module = self._step(step, module)
        self._write_manifest(None)
        return module

    def to_end(self, module: Module) -> CompiledModel:
        """Run every pass and link the artifact."""
        module = self.run(module)
        self.progress("link", self._total - 1, self._total)
        artifact = link(module, self.target, all_remarks(self.records))
        return CompiledModel(module, artifact, tuple(self.records))

    @property
    def _total(self) -> int:
        return len(self.passes) + 2

    def _step(self, step: Pass, module: Module) -> Module:
        started = time.perf_counter()
        with self._remarks(step.name, options_text(step)) as remarks:
            _check_required(step, module, self.target)
            after = step.run(module, self.target)
            changed = after is not module
            after = replace(after, done=(*module.done, spec_of(step)))
            if changed:
                verify_module(after, self._checked)
                _check_ensured(step, after, self.target)
                if after.program is not None:
                    check_limits(after.program, self.target)
            seconds = time.perf_counter() - started
            recheck = self.recheck if changed else None
            checked = recheck.check(step.name, after, self.target) if recheck is not None else None
        counts, made = op_counts(after.graph), remarks()
        record = PassRecord(step.name, options_text(step), seconds, changed, counts, check=checked, remarks=made)
        self._record(record, after)
        return after

    def _record(self, record: PassRecord, module: Module) -> None:
        if self.dump is not None and record.changed:
            record = replace(record, file=self.dump.write_module(len(self.records), record.name, module))
        if self.seen is not None and record.changed:
            self.seen(record.name, module)
        self.records.append(record)
        self._about = {"options": dict(module.options), "target": module.target, "target_hash": module.target_hash}

    def _write_manifest(self, failed: dict[str, str] | None) -> None:
        if self.dump is not None:
            passes = [{"index": i, **r.record()} for i, r in enumerate(self.records)]
            self.dump.write_manifest({**self._about, "passes": passes, "failed": failed})

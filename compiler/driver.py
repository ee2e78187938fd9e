"""Running the pipeline: verify after each pass, dump, time, check, and resume from any dump.

Invariant: the artifact depends on nothing but the imported module, the passes and the target: dumping, checking and
progress change no byte of it, and a module read back from a dump ends in the same bytes as the one that was dumped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.alias import aliased
from ppuc.compiler.dump import DumpFolder, read_constants
from ppuc.compiler.host.request import HostedRequest
from ppuc.compiler.inputs import (
    FIXED,
    RANGE_OPTION,
    checked_inputs,
    fixed_text,
    generate_all,
    input_ranges,
    input_specs,
)
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.recheck import CheckedPass, Recheck
from ppuc.compiler.tolerance import PRECISIONS
from ppuc.ir.errors import Diagnostic, ModelError, PpucError, TextError, UsageError
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.targets.description import Target, load_target

if TYPE_CHECKING:
    import onnx

    from ppuc.compiler.frontend.hosting import HostNode
    from ppuc.compiler.frontend.load import ImportedModel
    from ppuc.compiler.quantization.quantize import Quantization
    from ppuc.targets.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Examination:
    """The graphs that the PPU would run, the host's nodes, those that are compiled when the program runs, those that
    nobody can run, and what else stands in the way."""

    graphs: tuple[Graph, ...] = ()
    host: tuple[HostNode, ...] = ()
    later: tuple[HostNode, ...] = ()
    refused: tuple[HostNode, ...] = ()
    problems: tuple[Diagnostic, ...] = ()


Progress = Callable[[str, int, int], None]
"""Called with what starts now, its number and how many there are."""


QUANTIZED = ("fp8", "int8", "mixed")
"""Precisions at which layers are quantized."""

PLACE = "place"
"""The pass before which the graph's fused groups are final and its outputs not yet given memory."""


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass that ran. `ops` counts the ops of the graph after it; `file` is its text in the dump ("" when the pass
    changed nothing, or nothing is dumped)."""

    name: str
    options: str
    seconds: float
    changed: bool
    ops: Mapping[str, int]
    file: str = ""
    check: CheckedPass | None = None

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
        }


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """The outcome of a compilation: the module at its last level (of the first segment when there are several, None
    when all is the host's), the artifact, and what each pass did."""

    module: Module | None
    artifact: Artifact
    target: Target
    passes: tuple[PassRecord, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Wall time of all passes, importing included."""
        return sum(p.seconds for p in self.passes)


def compile_model(
    source: str | Path | onnx.ModelProto,
    *,
    target: str | Target = "",
    precision: str = "model",
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dump: Path | None = None,
    check_passes: bool = False,
    inputs: Mapping[str, np.ndarray] | None = None,
    keep_layers: bool = False,
    quantization: Quantization | None = None,
    aliases: Mapping[str, str] | None = None,
    tune: int = 1,
    progress: Progress | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    host: bool = True,
    host_ops: Sequence[str | Path] = (),
) -> CompiledModel:
    """Compile an ONNX model. `quantization` says how layers are quantized at precisions fp8, int8 and mixed (None:
    all of them, activation scales computed at run time). `aliases` names, by input, the output that shares its memory.
    `tune` is how many tilings of each matmul and convolution are measured on the simulator. `check_passes` re-executes
    the module after every pass on `inputs` (by ONNX name; random ones when None). `keep_layers` makes the result of
    every kernel an output. `values` are those of inputs that may be fixed: the ones that sizes depend on are. What the
    PPU cannot run goes to the host, with `host`; `host_ops` are Python files with functions for ops that nobody else
    knows. Raises ModelError, UsageError, TargetError or CapacityError for what the caller can mend, DivergenceError
    when a pass changed the model's values."""
    from ppuc.compiler.frontend.walk import ExpansionError
    from ppuc.compiler.passes.tile import Tile
    from ppuc.compiler.pipeline import PIPELINE

    machine = resolve_target(target)
    check_precision(precision)
    passes = _with_layers_kept(PIPELINE) if keep_layers else PIPELINE
    if tune > 1:
        passes = tuple(replace(step, tries=tune) if isinstance(step, Tile) else step for step in passes)
    run = Run(machine, passes, DumpFolder(dump) if dump is not None else None, progress, quantization)
    try:
        module = run.imported(source, precision, dims, shapes, values, aliases)
        return _compiled(run, module, precision, check_passes, inputs)
    except ModelError as error:
        if not host or keep_layers or aliases or precision in QUANTIZED or isinstance(error, ExpansionError):
            raise
        request = HostedRequest(source, machine, precision, dims or {}, shapes or {}, values or {})
        return _hosted(request, error, passes, host_ops, dump, progress, check_passes)


def _compiled(
    run: Run, module: Module, precision: str, check_passes: bool, inputs: Mapping[str, np.ndarray] | None
) -> CompiledModel:
    if check_passes:
        specs = input_specs(module)
        arrays = checked_inputs(specs, inputs, "--inputs") if inputs is not None else generate_all(specs)
        run.recheck = Recheck(module, arrays, precision)
    return run.to_end(module)


def _hosted(
    request: HostedRequest,
    error: ModelError,
    passes: Sequence[Pass],
    host_ops: Sequence[str | Path],
    dump: Path | None,
    progress: Progress | None,
    check_passes: bool,
) -> CompiledModel:
    """The model with the help of the host; `error` is why it cannot do without."""
    from ppuc.compiler.host.client import worker
    from ppuc.compiler.host.compile import compile_hosted

    def compile_part(module: Module, number: int) -> CompiledModel:
        folder = dump if dump is None or number == 0 else dump / f"segment{number}"
        run = Run(request.target, passes, DumpFolder(folder) if folder is not None else None, progress)
        return _compiled(run, run.started(module), request.precision, check_passes, None)

    artifact, made = compile_hosted(request, error, worker(host_ops), compile_part)
    records = tuple(
        replace(p, name=f"segment {n}: {p.name}" if n else p.name) for n, m in enumerate(made) for p in m.passes
    )
    return CompiledModel(made[0].module if made else None, artifact, request.target, records)


def examine(request: HostedRequest, host_ops: Sequence[str | Path] = ()) -> Examination:
    """What compiling would meet, found by importing and running the passes before placing: everything short of whether
    tiles fit. Raises UsageError when sizes do not suit the model."""
    from ppuc.compiler.frontend.walk import ExpansionError
    from ppuc.compiler.host.client import worker
    from ppuc.compiler.host.compile import divided
    from ppuc.compiler.host.partition import HostPart
    from ppuc.compiler.pipeline import PIPELINE

    at = next(i for i, step in enumerate(PIPELINE) if step.name == PLACE)

    def passed(module: Module, number: int = 0) -> Graph:
        Run(request.target, PIPELINE[:at]).run(module)
        return module.graph

    try:
        try:
            first = Run(request.target, PIPELINE[:at])
            return Examination((passed(first.imported(*request.imports)),))
        except ModelError as error:
            if request.precision in QUANTIZED or isinstance(error, ExpansionError):
                raise
            _, parts, graphs = divided(request, error, worker(host_ops), passed, examining=True)
            nodes = [n for p in parts if isinstance(p, HostPart) for n in p.nodes]
            host = tuple(n for n in nodes if not n.later and not n.refused)
            later, refused = (tuple(n for n in nodes if getattr(n, kind)) for kind in ("later", "refused"))
            return Examination(tuple(graphs), host, later, refused)
    except PpucError as error:
        if isinstance(error, UsageError):
            raise
        return Examination(problems=error.diagnostics)


def _with_layers_kept(pipeline: Sequence[Pass]) -> tuple[Pass, ...]:
    """The pipeline with KeepLayers between fusing and placing."""
    from ppuc.compiler.layers import KeepLayers

    at = next(i for i, step in enumerate(pipeline) if step.name == PLACE)
    return (*pipeline[:at], KeepLayers(), *pipeline[at:])


def resolve_target(target: str | Target) -> Target:
    """The target of that name or file; the default one for ""."""
    if isinstance(target, Target):
        return target
    from ppuc.targets.description import default_target

    return load_target(target or default_target())


def check_precision(precision: str) -> None:
    """Raise UsageError for a precision that does not exist."""
    if precision not in PRECISIONS:
        raise UsageError.of("--precision", "is unknown", got=precision, expected=f"one of {', '.join(PRECISIONS)}")


def initial_module(imported: ImportedModel, target: Target, precision: str) -> Module:
    """The module that the first pass sees. Its options hold whatever later levels need to know of the model."""
    ranges = input_ranges(imported.graph)
    options = {"model": imported.name, "model_sha256": imported.digest(), "precision": precision}
    options |= {RANGE_OPTION + name: str(ranges[v.name]) for name, v in imported.inputs if v.name in ranges}
    options |= {FIXED + name: fixed_text(array) for name, array in imported.fixed.items()}
    return Module(
        target=target.name,
        target_hash=target.hash,
        options=tuple(sorted(options.items())),
        inputs=tuple((name, value.name) for name, value in imported.inputs),
        outputs=tuple((name, value.name) for name, value in imported.outputs),
        graph=imported.graph,
    )


def op_counts(graph: Graph) -> dict[str, int]:
    """Ops by name, bodies of groups included, names in order."""
    counts: Counter[str] = Counter()

    def walk(part: Graph) -> None:
        for op in part.ops:
            counts[op.name] += 1
            if op.body is not None:
                walk(op.body)

    walk(graph)
    return dict(sorted(counts.items()))


def pass_options(step: Pass) -> str:
    """The options of a pass that differ from their defaults, as `name=value, ...`."""
    shown = []
    for option in fields(step):  # type: ignore[arg-type]
        value = getattr(step, option.name)
        if value != option.default:
            shown.append(f"{option.name}={value}")
    return ", ".join(shown)


class Run:
    """One walk down a list of passes."""

    def __init__(
        self,
        target: Target,
        passes: Sequence[Pass],
        dump: DumpFolder | None = None,
        progress: Progress | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.target, self.passes, self.dump = target, tuple(passes), dump
        self.quantization = quantization
        self.progress = progress or (lambda what, number, total: None)
        self.recheck: Recheck | None = None
        self.records: list[PassRecord] = []
        self._about: dict[str, Any] = {}

    def imported(
        self,
        source: str | Path | onnx.ModelProto,
        precision: str,
        dims: Mapping[str, int] | None,
        shapes: Mapping[str, Sequence[int]] | None,
        values: Mapping[str, np.ndarray] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> Module:
        """Import `source` as the first module; recorded as the pass `import`. At a precision that quantizes, the
        quantized graph is the first module: recorded as `quantize`."""
        from ppuc.compiler.frontend.load import load_model

        self.progress("import", 0, self._total)
        started = time.perf_counter()
        if self.quantization is not None:
            shapes = {**self.quantization.shapes(source, dims or {}), **(shapes or {})}
        imported = load_model(source, dims=dims, shapes=shapes, values=values)
        module = initial_module(imported, self.target, precision)
        if precision not in QUANTIZED:
            module = aliased(module, aliases or {})
        module = self.started(module, started)
        return self._quantized(module, aliases or {}) if precision in QUANTIZED else module

    def started(self, module: Module, since: float | None = None) -> Module:
        """Take `module` as the first one, imported since then."""
        from ppuc.ir.verify import verify_module

        since = time.perf_counter() if since is None else since
        verify_module(module)
        self._record("import", "", time.perf_counter() - since, True, module)
        return module

    def _quantized(self, module: Module, aliases: Mapping[str, str]) -> Module:
        from ppuc.compiler.quantization.quantize import quantized_module
        from ppuc.ir.verify import verify_module

        started = time.perf_counter()
        self.progress("quantize", 0, self._total)
        module = aliased(quantized_module(module, self.target, self.quantization), aliases)
        verify_module(module)
        self._record("quantize", "", time.perf_counter() - started, True, module)
        return module

    def run(self, module: Module) -> Module:
        """Run every pass on `module`. What was dumped before a failure stays, and the manifest names the failure."""
        for step in self.passes:
            self.progress(step.name, len(self.records), self._total)
            try:
                module = self._step(step, module)
            except Exception as error:
                self._write_manifest({"pass": step.name, "error": f"{type(error).__name__}: {error}"})
                raise
        self._write_manifest(None)
        return module

    def to_end(self, module: Module) -> CompiledModel:
        """Run every pass and link the artifact."""
        from ppuc.compiler.link import link

        module = self.run(module)
        self.progress("link", self._total - 1, self._total)
        return CompiledModel(module, link(module, self.target), self.target, tuple(self.records))

    @property
    def _total(self) -> int:
        return len(self.passes) + 2

    def _step(self, step: Pass, module: Module) -> Module:
        from ppuc.ir.verify import verify_module

        started = time.perf_counter()
        after = step.run(module, self.target)
        changed = after is not module
        after = replace(after, done=(*module.done, step.name))
        if changed:
            verify_module(after)
        seconds = time.perf_counter() - started
        checked = self.recheck.check(step.name, after, self.target) if self.recheck is not None and changed else None
        self._record(step.name, pass_options(step), seconds, changed, after, checked)
        return after

    def _record(
        self, name: str, options: str, seconds: float, changed: bool, module: Module, check: CheckedPass | None = None
    ) -> None:
        file = self.dump.write_module(len(self.records), name, module) if self.dump is not None and changed else ""
        self.records.append(PassRecord(name, options, seconds, changed, op_counts(module.graph), file, check))
        self._about = {"options": dict(module.options), "target": module.target, "target_hash": module.target_hash}

    def _write_manifest(self, failed: dict[str, str] | None) -> None:
        if self.dump is not None:
            passes = [{"index": i, **r.record()} for i, r in enumerate(self.records)]
            self.dump.write_manifest({**self._about, "passes": passes, "failed": failed})


def read_module(path: str | Path) -> Module:
    """Parse and verify a `.ppir` file, its constants taken from the `constants` folder beside it. Raises TextError."""
    from ppuc.ir.text import parse_module
    from ppuc.ir.verify import VerificationError, verify_module

    file = Path(path)
    if not file.is_file():
        raise TextError.of(str(file), "no such file" if not file.exists() else "is not a file", expected="a .ppir text")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError.of(str(file), "is not text", got=str(error), expected="a .ppir text in UTF-8") from error
    module = parse_module(text, read_constants(file.parent), str(file))
    try:
        verify_module(module)
    except VerificationError as error:
        raise TextError.of(str(file), "breaks the rules of the IR", got=str(error)) from error
    return module


def remaining_passes(module: Module, where: str) -> tuple[Pass, ...]:
    """The part of the pipeline that `module` has not been through. Raises UsageError when what it has been through is
    not a beginning of the pipeline."""
    from ppuc.compiler.pipeline import PIPELINE

    names = tuple(p.name for p in PIPELINE)
    if names[: len(module.done)] != module.done:
        raise UsageError.of(
            where,
            "has been through other passes than the pipeline's, so there is no rest of it to run",
            got=", ".join(module.done),
            expected=", ".join(names[: len(module.done)]),
            hint="name the passes to run with -p",
        )
    return PIPELINE[len(module.done) :]


def check_target(module: Module, target: Target, where: str) -> None:
    """Raise UsageError when `module` was made for another machine than `target`."""
    if module.target_hash != target.hash:
        raise UsageError.of(
            where,
            "was made for another target",
            got=f"{module.target} {module.target_hash}",
            expected=f"{target.name} {target.hash}",
            hint="give the same --target and --set as when it was compiled",
        )


def named_passes(names: Sequence[str]) -> tuple[Pass, ...]:
    """Passes by name with their default options; `name:option=value` sets one. Raises UsageError for an unknown one."""
    from ppuc.compiler.pass_options import build_pass

    return tuple(build_pass(name) for name in names)


__all__ = [
    "CompiledModel",
    "PassRecord",
    "Run",
    "check_target",
    "compile_model",
    "input_specs",
    "named_passes",
    "read_module",
    "remaining_passes",
    "resolve_target",
]

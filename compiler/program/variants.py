"""Variants: one program per combination of sizes in one artifact, as for `--dim batch=1,8 --dim seq=128`.

A variant is a whole program. In the artifact, its names have a prefix; variants share stored weights. A run selects the
variant that matches its inputs' shapes. Along dimensions declared safe to pad (where results for a row do not depend on
later rows), it may select a larger one, pad inputs with zeros and crop the outputs.

Invariant: `unbundle(bundle(variants))` gives the same programs and the same bytes of weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.host.rename import renamed_segment
from ppuc.ir.errors import InputError, UsageError
from ppuc.ir.program import Program
from ppuc.ir.resource import Resource
from ppuc.ir.types import parse_type
from ppuc.targets.artifact import Artifact, IOSpec

if TYPE_CHECKING:
    from ppuc.compiler.pipeline.manager import PassRecord, QuantizedModule

VARIANTS = "variants"
"""Metadata key of an artifact with variants."""

MOST = 64
"""Maximum variants of one artifact."""

Axes = Mapping[str, tuple[str | None, ...]]
"""Input or output -> the symbol of each of its axes; None for axes without one."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A program and its sizes. If it was compiled in this process, `passes` records the compilation, `quantized` its
    initial module if layers are quantized."""

    dims: Mapping[str, int]
    artifact: Artifact
    passes: tuple[PassRecord, ...] = ()
    quantized: QuantizedModule | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.dims.items())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input -> shape."""
        return {s.name: s.type.dims for s in self.artifact.inputs}


@dataclass(frozen=True, slots=True)
class Variants:
    """All variants of a model. `pad` are the symbols along which inputs may be padded; `axes` locates them."""

    every: tuple[Variant, ...]
    pad: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)

    def choose(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[Variant, dict[str, int]]:
        """The variant for inputs of these shapes, and the inputs' sizes of padded symbols (empty for an exact match).
        Raises InputError if there is none."""
        for variant in self.every:
            if all(shapes.get(name, shape) == shape for name, shape in variant.shapes.items()):
                return variant, {}
        sizes = self._sizes(shapes)
        fitting = [v for v in self.every if sizes and self._fits(v, shapes, sizes)]
        if not fitting:
            got = ", ".join(f"{n}: {list(s)}" for n, s in shapes.items())
            known = "; ".join(map(str, self.every))
            hint = "also compile for these sizes: --dim takes several, as in --dim batch=1,8"
            raise InputError.of(where, "no program was compiled for these shapes", got=got, expected=known, hint=hint)
        return min(fitting, key=lambda v: sum(t.type.elements for t in v.artifact.inputs)), sizes

    def of_sizes(self, dims: Mapping[str, int], where: str) -> Variant:
        """The first variant with these sizes (all, or enough to identify it). Raises UsageError if there is none."""
        found = [v for v in self.every if dims.items() <= v.dims.items()]
        if not found:
            known = "; ".join(map(str, self.every))
            raise UsageError.of(where, "has no variant with these sizes", got=dict(dims), expected=known)
        return found[0]

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Sizes of the paddable symbols according to the shapes; {} if they contradict each other."""
        found: dict[str, set[int]] = {}
        for name, shape in shapes.items():
            for symbol, size in zip(self.axes.get(name, ()), shape, strict=False):
                if symbol in self.pad:
                    found.setdefault(str(symbol), set()).add(size)
        return {s: next(iter(n)) for s, n in found.items()} if all(len(n) == 1 for n in found.values()) else {}

    def _fits(self, variant: Variant, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> bool:
        if any(variant.dims.get(symbol, 0) < size for symbol, size in sizes.items()):
            return False
        padded = {n: self._padded(n, s, variant) for n, s in shapes.items()}
        return all(padded.get(name, shape) == shape for name, shape in variant.shapes.items())

    def _padded(self, name: str, shape: tuple[int, ...], variant: Variant) -> tuple[int, ...]:
        symbols = self.axes.get(name, (None,) * len(shape))
        pairs = zip(symbols, shape, strict=False)
        return tuple(variant.dims[s] if s in self.pad and s in variant.dims else n for s, n in pairs)

    def padded(self, inputs: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
        """`inputs` padded at the end with zeros to the variant's shapes."""
        found = dict(inputs)
        for name, array in inputs.items():
            shape = self._padded(name, np.shape(array), variant)
            if isinstance(array, np.ndarray) and shape != array.shape:
                grown = np.zeros(shape, array.dtype)
                grown[tuple(slice(n) for n in array.shape)] = array
                found[name] = grown
        return found

    def cut(self, outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """`outputs` cropped to the unpadded sizes."""
        found = dict(outputs)
        for name, symbols in self.axes.items():
            if isinstance(found.get(name), np.ndarray):
                found[name] = found[name][tuple(slice(sizes.get(str(s))) for s in symbols)]
        return found


def combinations(dims: Mapping[str, Sequence[int]]) -> tuple[dict[str, int], ...]:
    """Every combination of the sizes, in order. Raises UsageError if there are too many."""
    found: list[dict[str, int]] = [{}]
    for name, sizes in dims.items():
        found = [{**chosen, name: size} for chosen in found for size in dict.fromkeys(sizes)]
    if len(found) > MOST:
        raise UsageError.of("--dim", "gives too many combinations of sizes", got=len(found), expected=f"at most {MOST}")
    return tuple(found)


def bundle(variants: Variants) -> Artifact:
    """Pack all variants into one artifact."""
    first = variants.every[0].artifact
    tensors, segments, vectors = [], [], []
    constants: dict[str, np.ndarray | Resource] = {}
    host: dict[str, bytes] = {}
    notes: dict[str, bytes] = {}
    shared: dict[tuple[str, str], Resource] = {}
    for number, variant in enumerate(variants.every):
        part, rename = variant.artifact, partial(str.__add__, f"v{number}.")
        tensors += [replace(t, name=rename(t.name)) for t in part.program.tensors]
        segments += [renamed_segment(s, rename) for s in part.program.segments]
        vectors += [replace(v, name=rename(v.name)) for v in part.vectors]
        host |= {rename(name): data for name, data in part.host.items()}
        notes |= {rename(name): data for name, data in part.notes.items()}
        for name, value in part.constants.items():
            resource = value if isinstance(value, Resource) else Resource.of(value, name)
            constants[rename(name)] = shared.setdefault((str(resource.type), resource.key), resource)
    program = Program(
        first.program.name, first.program.target, first.program.target_hash, tuple(tensors), (), (), tuple(segments)
    )
    record = {
        "pad": list(variants.pad),
        "axes": {name: list(symbols) for name, symbols in variants.axes.items()},
        "every": [_record(v) for v in variants.every],
    }
    meta = {VARIANTS: json.dumps(record, sort_keys=True)}
    return Artifact(program, tuple(vectors), constants, (), (), meta, host, notes)


def _record(variant: Variant) -> dict[str, Any]:
    artifact = variant.artifact
    return {
        "dims": dict(variant.dims),
        "name": artifact.program.name,
        "segments": len(artifact.program.segments),
        "program_inputs": artifact.program.inputs,
        "program_outputs": artifact.program.outputs,
        "inputs": [{**asdict(s), "type": str(s.type)} for s in artifact.inputs],
        "outputs": [{**asdict(s), "type": str(s.type)} for s in artifact.outputs],
        "meta": dict(artifact.meta),
    }


def unbundle(artifact: Artifact) -> Variants | None:
    """The variants of an artifact; None for a single program."""
    text = artifact.meta.get(VARIANTS)
    if text is None:
        return None
    record = json.loads(text)
    found, at = [], 0
    for number, part in enumerate(record["every"]):
        found.append(Variant(part["dims"], _part(artifact, part, f"v{number}.", at)))
        at += part["segments"]
    axes = {name: tuple(symbols) for name, symbols in record["axes"].items()}
    return Variants(tuple(found), tuple(record["pad"]), axes)


def _part(artifact: Artifact, record: Mapping[str, Any], prefix: str, at: int) -> Artifact:
    """The program of one variant as before bundling."""

    def bare(name: str) -> str:
        return name.removeprefix(prefix)

    whole = artifact.program
    program = Program(
        record["name"],
        whole.target,
        whole.target_hash,
        tuple(replace(t, name=bare(t.name)) for t in whole.tensors if t.name.startswith(prefix)),
        tuple((a, b) for a, b in record["program_inputs"]),
        tuple((a, b) for a, b in record["program_outputs"]),
        tuple(renamed_segment(s, bare) for s in whole.segments[at : at + record["segments"]]),
    )
    return Artifact(
        program,
        tuple(replace(v, name=bare(v.name)) for v in artifact.vectors if v.name.startswith(prefix)),
        {bare(n): c for n, c in artifact.constants.items() if n.startswith(prefix)},
        _specs(record["inputs"]),
        _specs(record["outputs"]),
        record["meta"],
        {bare(n): data for n, data in artifact.host.items() if n.startswith(prefix)},
        {bare(n): data for n, data in artifact.notes.items() if n.startswith(prefix)},
    )


def _specs(records: Sequence[Mapping[str, str]]) -> tuple[IOSpec, ...]:
    return tuple(IOSpec(r["name"], r["tensor"], parse_type(r["type"])) for r in records)

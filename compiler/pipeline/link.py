"""Links a module that holds a program into an executable artifact.

Invariant: the artifact depends only on the module, the passes' remarks and the compiler's version, so a resumed dump
links to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ppuc.compiler.alias import declared_type
from ppuc.compiler.passes.remarks import Remark
from ppuc.compiler.pipeline.chosen import recorded_text
from ppuc.compiler.pipeline.execute import program_constants
from ppuc.compiler.pipeline.packed_remarks import with_remarks
from ppuc.compiler.version import VERSION
from ppuc.ir.errors import UsageError
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS, Kind, points
from ppuc.ir.types import TensorType
from ppuc.targets.artifact import Artifact, IOSpec
from ppuc.targets.description import Target

NODES = "nodes"
"""Metadata key: JSON object, kernel name -> the ONNX node that its time is attributed to."""


def link(module: Module, target: Target, remarks: Sequence[Remark] = ()) -> Artifact:
    """The artifact of a module that holds a program, with the passes' remarks. Raises UsageError for a module without a
    program."""
    program = module.program
    if program is None:
        raise UsageError.of(
            "module",
            "holds no program yet, so no .ppu file can be written",
            got=f"passes run: {', '.join(module.done) or 'none'}",
            hint="run the rest of the pipeline with --to-end",
        )
    types = {v.name: v.type for v in (*module.graph.params, *module.graph.results)}
    meta = {**dict(module.options), **recorded_text(module.pipeline), "compiler": VERSION}
    meta[NODES] = json.dumps(kernel_nodes(module.graph), sort_keys=True)
    artifact = Artifact(
        program=program,
        vectors=module.vectors,
        constants=program_constants(module),
        inputs=tuple(
            replace(s, type=declared_type(s.name, s.type, meta)) for s in _specs(module.inputs, program.inputs, types)
        ),
        outputs=_specs(module.outputs, program.outputs, types),
        meta=meta,
    )
    return with_remarks(artifact, remarks)


def _specs(
    values: tuple[tuple[str, str], ...], tensors: tuple[tuple[str, str], ...], types: Mapping[str, TensorType]
) -> tuple[IOSpec, ...]:
    """ONNX name, tensor name and type of each input or output."""
    place = dict(tensors)
    return tuple(IOSpec(name, place[name], types[value]) for name, value in values)


def kernel_nodes(graph: Graph) -> dict[str, str]:
    """Kernel name -> the ONNX node of the op that does most of its work: multiply-accumulates first, else elements."""
    found = {}
    for op in graph.ops:
        kernel = getattr(op.attrs, "kernel", "")
        if kernel and op.body is not None:
            candidates = [inner for inner in op.body.ops if inner.loc and inner.name != "const"]
            if candidates:
                found[kernel] = max(candidates, key=_work).loc[0]
    return found


def _work(op: Op) -> tuple[bool, int]:
    record = OPS[op.name]
    contracts = record.kind is Kind.CONTRACTION or op.name.startswith("attention")
    return contracts, points(op)

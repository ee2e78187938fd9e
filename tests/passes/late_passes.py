"""Runs the passes from `legalise-for-kernels` to `emit` on small graphs, checked at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.emit.streams import Emit
from ppuc.compiler.passes.grouping.fuse import Fuse
from ppuc.compiler.passes.grouping.storage_types import StorageTypes
from ppuc.compiler.passes.memory.allocate import Allocate
from ppuc.compiler.passes.memory.memory_space_assignment import MemorySpaceAssignment
from ppuc.compiler.passes.normalise.legalise_for_kernels import LegaliseForKernels
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import module_of
from tests.support.whole_pipeline import compiled

TINY = load_target("ppu-tiny")
LARGE = load_target("zhenwu-m890")
TO_GROUPS: tuple[Pass, ...] = (LegaliseForKernels(), Fuse())
TO_KERNELS: tuple[Pass, ...] = (*TO_GROUPS, StorageTypes(), MemorySpaceAssignment(), Tile())
TO_PROGRAM: tuple[Pass, ...] = (*TO_KERNELS, Allocate(), Emit())


def after(graph: Graph, passes: Sequence[Pass], target: Target = TINY, **options: str) -> Module:
    """The verified module after `passes`, none before them."""
    module = replace(module_of(graph, **options), target=target.name, target_hash=target.hash)
    return Run(target, passes).run(module)


def inputs_of(graph: Graph) -> dict[str, np.ndarray]:
    return {p.name: data(p.type, i) for i, p in enumerate(graph.params)}


def checked(graph: Graph, target: Target = TINY, passes: Sequence[Pass] | None = None, **options: str) -> Module:
    """The module after the pipeline (or `passes`), re-executed after every pass and simulated."""
    return compiled(module_of(graph, **options), target, inputs_of(graph), PIPELINE if passes is None else passes)


def groups(module: Module) -> list[Op]:
    return [op for op in module.graph.ops if op.name == "group"]


def kinds(module: Module) -> list[str]:
    return [op.attrs.kind for op in groups(module) if isinstance(op.attrs, GroupAttrs)]

"""What passes say about a graph."""

from __future__ import annotations

from dataclasses import replace

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.passes.remarks import Remark
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.pass_graphs import module_of

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")


def said_by(
    name: str, graph: Graph, target: Target = LARGE, precision: str = "bf16"
) -> tuple[list[Remark], Module, Module]:
    """What the first pass `name` of the pipeline says, and the module before and after it."""
    at = [p.name for p in PIPELINE].index(name)
    module = replace(module_of(graph, precision=precision), target=target.name, target_hash=target.hash)
    before = Run(target, PIPELINE[:at]).run(module)
    run = Run(target, PIPELINE[at : at + 1], listening=True)
    after = run.run(before)
    (record,) = run.records
    assert {r.pass_name for r in record.remarks} <= {name}
    return list(record.remarks), before, after


def one(remarks: list[Remark], decision: str) -> Remark:
    (found,) = [r for r in remarks if r.decision == decision]
    return found


def groups(module: Module) -> list[Op]:
    return [op for op in module.graph.ops if op.name == "group"]


def price(op: Op, target: Target = LARGE) -> float:
    return round(KernelCache(target).price(op), 1)


def node(value_or_op: object, graph: Graph) -> str:
    """The ONNX node of what computes a value of the sketch."""
    return next(op.loc[0] for op in graph.ops if op.results[0] == value_or_op)

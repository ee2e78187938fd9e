"""Texts of a two-layer network at the levels that people read in dumps, held against files.

A change of tile sizes, streams or syntax appears here as a diff to review before updating the files.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.module import Module
from ppuc.ir.text import print_graph, print_kernel, print_program, print_vector
from ppuc.targets.description import load_target
from tests.support.small_models import mlp


@pytest.fixture(scope="module")
def stages() -> dict[str, Module]:
    """The module after each pass, on the smallest machine, where everything must be cut into tiles."""
    target = load_target("ppu-tiny")
    module = initial_module(load_model(mlp(), dims={"N": 35}), CompileOptions(target, "bf16"))
    found = {}
    for step in PIPELINE:
        module = step.run(module, target)
        found[step.name] = module
    return found


def test_fused_graph(stages: dict[str, Module], golden: Callable[[str, str], None]) -> None:
    golden("mlp-fuse.txt", print_graph(stages["fuse"].graph))


def test_placed_graph(stages: dict[str, Module], golden: Callable[[str, str], None]) -> None:
    golden("mlp-memory.txt", print_graph(stages["memory-space-assignment"].graph))


def test_kernels(stages: dict[str, Module], golden: Callable[[str, str], None]) -> None:
    module = stages["tile"]
    golden("mlp-tile.txt", "\n".join([*map(print_kernel, module.kernels), *map(print_vector, module.vectors)]))


def test_program(stages: dict[str, Module], golden: Callable[[str, str], None]) -> None:
    program = stages["emit"].program
    assert program is not None
    text = print_program(program)
    golden("mlp-emit.txt", text.replace(program.target_hash, "TARGET"))

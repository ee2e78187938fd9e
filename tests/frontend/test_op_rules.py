"""What the operators' documentation allows compiles, and what it forbids is refused: the tables in `op_rules`."""

from __future__ import annotations

import onnx
import pytest

from ppuc.compiler.driver import compile_model, examine
from ppuc.compiler.frontend.conformance.check import conforming
from ppuc.compiler.options import CompileOptions
from ppuc.ir.errors import PpucError
from ppuc.targets.description import load_target
from tests.support.op_rules import Block, blocks, model_of_row

OPTIONS = CompileOptions(load_target("ppu-tiny"))
BLOCKS = tuple(blocks())


def checked(model: onnx.ModelProto) -> bool:
    """Whether `ppuc check` accepts the model."""
    try:
        examined = examine(conforming(model), OPTIONS)
    except PpucError:
        return False
    return not (*examined.refused, *examined.problems)


def compiled(model: onnx.ModelProto) -> bool:
    """Whether `ppuc compile` does."""
    try:
        compile_model(conforming(model), OPTIONS)
    except PpucError:
        return False
    return True


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_rows(block: Block) -> None:
    for nodes, fine in ((block.legal, True), (block.broken, False)):
        models = {node: model_of_row(block.declared, node, block.opset) for node in nodes}
        assert [node for node, model in models.items() if checked(model) != fine] == []
        assert [node for node, model in models.items() if compiled(model) != fine] == []

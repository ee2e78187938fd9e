"""The pass `storage-types`: storage formats of tensors between kernels."""

from __future__ import annotations

import pytest

from ppuc.compiler.passes.grouping.storage_types import StorageTypes
from ppuc.ir.types import DType
from tests.passes.late_passes import TINY, TO_GROUPS, after, checked
from tests.support.pass_graphs import BLOCKS, Sketch


def test_narrow_formats_start_at_contractions() -> None:
    """Operands and results of products are narrow; positions and results of the model are not."""
    s = Sketch()
    x, places = s.param(8, 16), s.param(8, 12)
    y = s.op("relu", s.matmul(x, s.weight(16, 12)))
    z = s.op("add", s.matmul(y, s.weight(12, 12)), s.op("floor", places))
    module = after(s.graph(z, s.op("floor", places)), (*TO_GROUPS, StorageTypes()), precision="bf16")
    types = {r.name: r.type.dtype for op in module.graph.ops for r in op.results}
    assert types[y.name] is DType.BF16
    assert types[z.name] is DType.F32
    assert all(op.attrs.value.type.dtype is DType.BF16 for op in module.graph.ops if op.name == "const")  # type: ignore[attr-defined]
    for precision in ("bf16", "fp16"):
        checked(s.graph(z, s.op("floor", places)), precision=precision)


@pytest.mark.parametrize("precision", ["model", "fp32"])
def test_wide_precisions_change_nothing(precision: str) -> None:
    s = Sketch()
    module = after(s.graph(s.matmul(s.param(8, 16), s.weight(16, 12))), TO_GROUPS, precision=precision)
    assert StorageTypes().run(module, TINY) is module


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("block", ["small_cnn", "mobilenet_block", "transformer_block"])
def test_blocks_in_narrow_formats(block: str, precision: str) -> None:
    checked(BLOCKS[block](), precision=precision)

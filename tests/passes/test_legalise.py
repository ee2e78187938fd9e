"""The pass `legalise`: formats of the tensor engine."""

from __future__ import annotations

import pytest

from ppuc.ir.errors import ModelError, UsageError
from ppuc.ir.graph import Graph
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.types import DType
from tests.passes.graph_passes import CANONICALISE, FOLD, LEGALISE, RECOGNISE, TARGET, assert_same, count, run
from tests.support.pass_graphs import BLOCKS, Sketch, module_of


class TestLegalise:
    def network(self) -> Graph:
        s = Sketch()
        x = s.param(2, 3, 8, 8)
        y = s.reshape(s.op("relu", s.conv(x, 4, 3)), 2, 4, 64)
        return s.graph(s.matmul(y, s.weight(64, 5)))

    @pytest.mark.parametrize(("precision", "dtype"), [("bf16", DType.BF16), ("fp16", DType.F16)])
    def test_contractions_multiply_the_chosen_format(self, precision: str, dtype: DType) -> None:
        module = module_of(self.network(), precision=precision)
        after = run(module, LEGALISE, FOLD)
        found = [op for op in after.graph.ops if op.name in ("conv", "matmul")]
        assert len(found) == 2
        for op in found:
            assert {v.type.dtype for v in op.operands} == {dtype}
            assert op.result.type.dtype is DType.F32
        assert count(after.graph)["cast"] == 2
        # Two operands rounded once each, and as much again from the layer before.
        assert_same(module, after, 4 * 2.0 ** -(8 if dtype is DType.BF16 else 11))

    @pytest.mark.parametrize("precision", ["model", "fp32"])
    def test_f32_stays(self, precision: str) -> None:
        module = module_of(self.network(), precision=precision)
        assert LEGALISE.run(module, TARGET) is module

    def test_results_keep_the_type_of_the_model(self) -> None:
        s = Sketch()
        y = s.matmul(s.param(2, 4, dtype=DType.F16), s.param(4, 3, dtype=DType.F16))
        module = module_of(s.graph(y), precision="model")
        after = run(module, LEGALISE)
        assert count(after.graph) == {"matmul": 1, "cast": 1}
        assert after.graph.results[0].type.dtype is DType.F16
        assert_same(module, after)

    def test_attention_is_cast_and_its_mask_is_not(self) -> None:
        module = run(module_of(BLOCKS["transformer_block"](), precision="bf16"), CANONICALISE, RECOGNISE, LEGALISE)
        (found,) = [op for op in module.graph.ops if op.name == "attention"]
        assert [v.type.dtype for v in found.operands] == [DType.BF16] * 3 + [DType.F32]

    def test_double_precision_is_refused_by_node(self) -> None:
        s = Sketch()
        y = s.op("exp", s.op("cast", s.param(3), attrs=CastAttrs(DType.F64)))
        with pytest.raises(ModelError) as error:
            LEGALISE.run(module_of(s.graph(y)), TARGET)
        assert str(error.value) == (
            "graph @test: the model computes in double precision, which no engine supports\n"
            "  got: node_0, node_1\n"
            "  expected: f32 or narrower\n"
            "  hint: convert these nodes to float32 before exporting the model"
        )

    def test_an_unknown_precision_names_the_known_ones(self) -> None:
        with pytest.raises(UsageError, match="unknown precision 'fp7'\n  expected: model, fp32, bf16, fp16"):
            LEGALISE.run(module_of(self.network(), precision="fp7"), TARGET)

    def test_a_format_without_hardware_is_refused(self) -> None:
        s = Sketch()
        attrs = ConvAttrs((1,), (0,), (0,), (1,))
        y = s.op("conv", s.param(1, 4, 9, dtype=DType.I32), s.param(2, 4, 3, dtype=DType.I32), attrs=attrs)
        with pytest.raises(UsageError, match="the tensor engine of ppu-tiny does not multiply i32"):
            LEGALISE.run(module_of(s.graph(y)), TARGET)

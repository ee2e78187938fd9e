"""Measured rows become cases with the right sizes and times, models of the measured operator, and figures."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.validation.figures import write_figures
from benchmarks.validation.measured import HERE, SETS, Case, Measured
from ppuc.compiler.predict.operators import model_of
from ppuc.targets.description import load_target


def cases(folder: Path, text: str, dtype: str = "bf16", **facts: float) -> list[Case]:
    (folder / "rows.csv").write_text("# where the rows are from\n" + text)
    found = Measured("a set", "a100-class", "rows.csv", dtype, **facts).cases((folder,))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_products_in_three_units(tmp_path: Path) -> None:
    assert cases(tmp_path, "m,n,k,us\n2,3,4,17.5\n") == [Case("gemm", (2, 3, 4), 17.5, "bf16")]
    assert cases(tmp_path, "m,n,k,latency_ms\n2,3,4,0.5\n") == [Case("gemm", (2, 3, 4), 500.0, "bf16")]
    text = "Workload,TPUv3\ngemm_256x128x64,1880\n"
    assert cases(tmp_path, text, clock_mhz=940) == [Case("gemm", (256, 64, 128), 2.0, "bf16")]
    text = "source,row,m,n,k,bf16_us,int8_us\nx,1,2,3,4,5.5,2.5\ny,1,2,3,4,,3.5\n"
    assert [c.us for c in cases(tmp_path, text)] == [5.5]
    assert [c.us for c in cases(tmp_path, text, "i8")] == [2.5, 3.5]


def test_other_operators(tmp_path: Path) -> None:
    text = "batch_size,num_heads,num_key_value_heads,query_length,key_length,head_dim,us\n"
    text += "2,8,4,16,16,64,9\n2,8,4,1,16,64,9\n"
    assert [c.dims for c in cases(tmp_path, text)] == [(2, 8, 4, 16, 16, 64, 1), (2, 8, 4, 1, 16, 64, 0)]
    text = "workload,dtype,latency_ns\nffn_gated_32x64x128,float16,2500\nattn_dec_32x8x1x1024x128,float16,9000\n"
    found = cases(tmp_path, text, "f16")
    assert [(c.kind, c.dims, c.us) for c in found] == [
        ("ffn", (32, 64, 128, 1), 2.5),
        ("attention", (1, 32, 8, 1, 1024, 128, 0), 9.0),
    ]
    text = "op,shape,measured_us\nsoftmax,4096x32,13\n"
    assert cases(tmp_path, text) == [Case("softmax", (4096, 32), 13.0, "bf16")]


def test_short_cases_are_left_out_and_a_missing_file_is_no_set(tmp_path: Path) -> None:
    assert [c.us for c in cases(tmp_path, "m,n,k,us\n2,3,4,9\n2,3,4,11\n", least_us=10)] == [11.0]
    assert Measured("a set", "a100-class", "none.csv", "bf16").cases((tmp_path,)) is None


@pytest.mark.parametrize("measured", SETS, ids=lambda s: s.name)
def test_sets_have_a_machine_and_models(measured: Measured) -> None:
    load_target(measured.target)
    for kind in {c.kind: c for c in measured.cases((HERE / "data",)) or ()}.values():
        onnx.checker.check_model(model_of(kind), full_check=True)


@pytest.mark.parametrize("dims", [(4, 8, 16, 0), (4, 8, 16, 1)])
def test_feed_forward_layers(dims: tuple[int, ...]) -> None:
    model = onnx.shape_inference.infer_shapes(model_of(Case("ffn", dims, 1.0, "f16")), strict_mode=True)
    products = sum(node.op_type == "MatMul" for node in model.graph.node)
    assert products == 2 + dims[3]


def test_figures_replace_only_their_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- figures: written by run.py --readme -->\nold\n<!-- end of figures -->\nafter\n")
    record = {
        "mape": 0.051,
        "goal": 0.08,
        "given": True,
        "classes": {"few rows": (1, 0.04)},
        "cases": [{}, {}],
    }
    write_figures(readme, {"a set": record})
    text = readme.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    assert "| a set * | 2 | 5.1% | 8.0% |\n| - few rows | 1 | 4.0% | |\n" in text
    readme.write_text("no table")
    with pytest.raises(ValueError, match="no place for figures"):
        write_figures(readme, {})

"""What a machine's library adds to an attention."""

from __future__ import annotations

import pytest

from ppuc.compiler.predict.case import Case
from ppuc.compiler.predict.library import ROWS, library_us
from ppuc.compiler.predict.prediction import Predictor
from ppuc.targets.cost import hbm_bytes_per_clk, l2_bytes_per_clk
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target

H100 = load_target("h100-class")
M890 = load_target("zhenwu-m890")


def attention(batch: int, heads: int, shared: int, queries: int, keys: int, size: int = 128) -> Case:
    return Case("attention", (batch, heads, shared, queries, keys, size, int(queries > 1)), "bf16")


class Others:
    """Predicts a microsecond more than a launch for every other kernel, and notes what they were."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.cases: list[Case] = []

    def __call__(self, case: Case) -> float:
        self.cases.append(case)
        return self.target.segment_launch_us + 1.0


def added(case: Case, us: float, target: Target = H100) -> tuple[float, list[Case]]:
    """(what the blocks of the attention kernel add, the other kernels)."""
    others = Others(target)
    total = library_us(case, us, target, others)
    return total - len(others.cases) * (1.0 + target.launch.kernel_us), others.cases


def test_machines_that_run_only_the_compilers_kernels_add_nothing() -> None:
    for name in ("ppu-tiny", "zhenwu-m890", "zhenwu-810e", "ppu-edge", "tpuv6e-core", "systolic-128"):
        for case in (attention(4, 128, 1, 64, 64), attention(2048, 128, 1, 1, 4096)):
            assert library_us(case, 10.0, load_target(name), Others(M890)) == 0


def test_a_prompt_is_rotated_and_cached_first() -> None:
    _, kernels = added(attention(3, 8, 2, 100, 100), 5.0)
    assert len(kernels) == H100.attention.kernels_before[0]
    assert kernels[0] == Case("pass", (3 * 100, (8 + 2 * 2) * 128), "bf16")
    assert {case.dims for case in kernels[1:]} == {(1, 8)}
    _, kernels = added(attention(3, 8, 2, 1, 100), 5.0)
    assert len(kernels) == H100.attention.kernels_before[1]
    assert kernels[0].dims == (3, 12 * 128)


@pytest.mark.parametrize(("batch", "queries", "blocks"), [(1, ROWS, 1), (1, ROWS + 1, 1), (33, 2 * ROWS, 4), (2, 1, 1)])
def test_blocks_of_a_prompt_add_to_their_work(batch: int, queries: int, blocks: int) -> None:
    """8 heads of `batch` sequences; two blocks share each of the 132 units."""
    time = H100.attention.block_us / 2 * blocks
    for us in (5.0, 5000.0):
        assert added(attention(batch, 8, 8, queries, queries), us)[0] == pytest.approx(time)


def test_blocks_of_a_token_start_while_others_load() -> None:
    one = H100.attention.block_us
    assert added(attention(132, 32, 4, 1, 64), 5.0)[0] == pytest.approx(4 * one - 5.0)  # 4 groups of 8 heads
    assert added(attention(132, 32, 4, 1, 64), 50.0)[0] == pytest.approx(0.0)
    assert added(attention(132, 32, 32, 1, 64), 5.0)[0] == pytest.approx(32 * one / 4 - 5.0)
    assert added(attention(132, 64, 1, 1, 2), 5.0)[0] == pytest.approx(64 * one / 4 - 5.0)


def test_large_groups_read_keys_once_a_head() -> None:
    moved = 2 * 4 * 128 * 32768 * 128 * 2
    us = moved / (0.66 * l2_bytes_per_clk(H100)) * H100.clk_ns / 1e3
    assert added(attention(4, 128, 2, 1, 32768), 60.0)[0] == pytest.approx(us - 60.0)
    assert added(attention(4, 128, 4, 1, 32768), 60.0)[0] == pytest.approx(0.0)


def test_scores_pass_device_memory_where_no_kernel_fuses_them() -> None:
    v3 = load_target("tpuv3-core")
    case = Case("attention", (2, 8, 4, 200, 300, 64, 0), "f32")
    scores, ends = 8 * 200 * 384, 2 * (8 * 200 + 4 * 300) * 64  # 300 keys are laid out in 384 columns
    us = 2 * 4 * (3 * scores + ends) / hbm_bytes_per_clk(v3) * v3.clk_ns / 1e3
    assert library_us(case, 10.0, v3, Others(v3)) == pytest.approx(us - 10.0)
    assert library_us(case, 2 * us, v3, Others(v3)) == 0


def test_predictions_name_the_librarys_part() -> None:
    row = Predictor(H100, intervals=True).predict(attention(1, 4, 2, 256, 256), "--attention")
    gap = H100.launch.kernel_us - H100.segment_launch_us
    assert row["library_us"] > H100.attention.block_us / 2 + 4 * (H100.launch.kernel_us - H100.segment_launch_us)
    assert row["us"] > row["library_us"] + H100.segment_launch_us
    low, high = row["interval_us"]
    assert row["library_us"] < low <= row["us"] <= high
    rotation = Predictor(H100, intervals=False).predict(Case("pass", (256, 8 * 128), "bf16"), "")["us"]
    assert rotation + gap < row["library_us"]

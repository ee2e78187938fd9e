"""What a machine's own library or compiler adds to an attention (`attention` in its description).

The simulator runs this compiler's attention kernel, which takes one tile after another without a pause, and nothing
else. A serving library runs other kernels first, the last of which rotates q and k and writes k and v to the cache; its
thread blocks take microseconds to start and to end; and heads beyond a group read the keys that they share one by one.
A compiler without a kernel for attention passes all scores through device memory.

Invariant: what is added depends on sizes and on numbers of the description only, and is 0 if these are.
"""

from __future__ import annotations

from collections.abc import Callable

from ppuc.compiler.predict.case import Case
from ppuc.ir.types import DType
from ppuc.targets.cost import hbm_bytes_per_clk, l2_bytes_per_clk, layout_weight
from ppuc.targets.schema import Target

ROWS = 128
"""Query rows that the blocks of a prompt take at a time (FlashAttention-3: Shah et al. 2024)."""


def library_us(case: Case, us: float, target: Target, predicted_us: Callable[[Case], float]) -> float:
    """Microseconds that the library adds to an attention simulated as `us`; `predicted_us` gives other operators'."""
    library = target.attention
    *_, queries, keys, _, _ = case.dims
    prompt = queries > 1 or queries == keys
    before = library.kernels_before[0 if prompt else 1]
    kernels = [_rotation(case)] * min(before, 1) + [Case("pass", (1, 8), "bf16")] * (before - 1)
    gap = target.launch.kernel_us - target.segment_launch_us
    blocks = _turnover_us(case, target, prompt)
    kernel = max(us, _scores_us(case, target))
    added = (kernel + blocks if prompt else max(blocks, _reread_us(case, target), kernel)) - us
    return added + sum(predicted_us(kernel) + gap for kernel in kernels)


def _rotation(case: Case) -> Case:
    """The pass over q, k and v."""
    batch, heads, shared, queries, _, size, _ = case.dims
    return Case("pass", (batch * queries, (heads + 2 * shared) * size), "f32" if case.dtype == "f32" else "bf16")


def _turnover_us(case: Case, target: Target, prompt: bool) -> float:
    """Time in which blocks start and end on the busiest unit. That of a prompt's blocks adds to their work, because
    they fill a unit; a token's blocks do so while others load."""
    batch, heads, shared, queries, *_ = case.dims
    library = target.attention
    if prompt:
        blocks, resident = batch * heads * -(-queries // ROWS), library.blocks[0]
    elif _grouped(case, target):
        blocks, resident = batch * shared, library.blocks[1]
    else:
        blocks, resident = batch * heads, library.blocks[2]
    return library.block_us / resident * -(-blocks // target.cu)


def _grouped(case: Case, target: Target) -> bool:
    """Whether one block takes all heads that share keys."""
    _, heads, shared, *_ = case.dims
    return 1 < heads // shared <= target.attention.group


def _reread_us(case: Case, target: Target) -> float:
    """Time of reading keys and values from l2 once for each head of groups that are too large for a block."""
    batch, heads, shared, _, keys, size, _ = case.dims
    if target.attention.block_us == 0 or heads // shared <= target.attention.group:
        return 0.0
    moved = 2 * batch * heads * keys * size * DType(case.dtype).bytes
    return moved / (l2_bytes_per_clk(target) * target.attention.reread) * target.clk_ns / 1e3


def _scores_us(case: Case, target: Target) -> float:
    """Time of device memory if scores pass it, beside the operands and the result."""
    batch, heads, shared, queries, keys, size, _ = case.dims
    passes = target.attention.score_passes
    if passes == 0:
        return 0.0
    scores = heads * queries * keys * layout_weight((queries, keys), (keys, 1), target)
    ends = 2 * (heads * queries + shared * keys) * size
    moved = batch * (passes * scores + ends) * DType(case.dtype).bytes
    return moved / hbm_bytes_per_clk(target) * target.clk_ns / 1e3

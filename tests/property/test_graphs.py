"""Random whole graphs agree with the graph interpreter after every pass, on both machines, without hazards.

More seeds: pytest --slow, or python -m benchmarks.fuzz --seeds A:B.
"""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.ir.errors import CapacityError
from ppuc.ir.interpret import run_graph
from ppuc.ir.verify import verify_graph
from ppuc.targets.description import load_target, override
from tests.property.graph_generator import generate, module_of_seed
from tests.support.whole_pipeline import compiled

TARGETS = ("ppu-tiny", "zhenwu-m890")
SEEDS = range(16)
EXPECTED = {
    *("matmul", "conv", "conv_transpose", "pool", "attention", "resize", "softmax", "log_softmax", "layer_norm"),
    *("rms_norm", "group_norm", "instance_norm", "batch_norm", "lp_normalize", "reduce", "argreduce", "cumsum", "topk"),
    *("reshape", "transpose", "slice", "expand", "concat", "pad", "gather", "gather_nd", "gather_elements"),
    *("scatter_nd", "scatter_elements", "select", "cast", "erf", "exp", "mod", "bitand", "shl", "and", "not"),
}
"""Ops that some of the first graphs contain."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs(seed: int, target: str) -> None:
    module, inputs = module_of_seed(seed)
    compiled(module, load_target(target), inputs)


@pytest.mark.parametrize("counters", [8, 16, 64])
@pytest.mark.parametrize("seed", range(100, 105))
def test_random_graphs_on_few_counters(seed: int, counters: int) -> None:
    """As few as there are, unless several ops at once need more."""
    module, inputs = module_of_seed(seed)
    refused = ""
    try:
        done = compiled(module, override(load_target("ppu-tiny"), f"sync.counters_per_chip={counters}"), inputs)
    except CapacityError as error:
        refused = str(error)
    if refused:
        assert "needs more counters than the chip has" in refused
        assert counters == 8
        return
    assert done.program is not None
    assert all(segment.counters_used <= counters for segment in done.program.segments)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["model", "bf16", "fp16"])
@pytest.mark.parametrize("first", range(0, 400, 50))
def test_many_random_graphs(first: int, precision: str, target: str) -> None:
    noise = {"model": 0.0, "bf16": 2.0**-7, "fp16": 2.0**-10}[precision]
    for seed in range(first, first + 50):
        module, inputs = module_of_seed(seed, noise=noise, precision=precision)
        compiled(module, load_target(target), inputs)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_in_narrow_formats(seed: int, precision: str) -> None:
    module, inputs = module_of_seed(seed, noise={"bf16": 2.0**-7, "fp16": 2.0**-10}[precision], precision=precision)
    compiled(module, load_target("ppu-tiny"), inputs)


def test_a_seed_is_one_graph() -> None:
    first, second = generate(5), generate(5)
    assert first[0] == second[0]
    assert all(np.array_equal(a, second[1][name]) for name, a in first[1].items())
    assert generate(6)[0] != first[0]


def test_graphs_hold_what_models_hold() -> None:
    """Every family of ops and every corner turns up, in valid graphs whose results are finite."""
    seen: set[str] = set()
    corners = dict.fromkeys(("dead", "shared", "scalar", "empty", "passed through", "constant", "twice"), 0)
    for seed in range(150):
        graph, inputs = generate(seed)
        verify_graph(graph)
        for array in run_graph(graph, inputs).values():
            assert np.isfinite(array.astype(np.float64)).all()
        used = [v.name for op in graph.ops for v in op.operands] + [v.name for v in graph.results]
        made = {r.name for op in graph.ops for r in op.results}
        constants = set(graph.constants())
        seen |= {op.name for op in graph.ops}
        corners["dead"] += bool(made - set(used))
        corners["shared"] += any(used.count(name) > 1 for name in constants)
        corners["scalar"] += any(r.type.rank == 0 for op in graph.ops if op.name != "const" for r in op.results)
        corners["empty"] += any(0 in v.type.dims for op in graph.ops for v in op.operands)
        corners["passed through"] += any(p in graph.results for p in graph.params)
        corners["constant"] += any(v.name in constants for v in graph.results)
        corners["twice"] += len({v.name for v in graph.results}) < len(graph.results)
    assert min(corners.values()) >= 3, corners
    assert seen >= EXPECTED, EXPECTED - seen

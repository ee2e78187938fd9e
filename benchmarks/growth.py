"""How compile time grows with the model: `python -m benchmarks.growth [--chain NAME ...] [--sizes N ...]`.

Chains of seeded layers, bf16, for zhenwu-m890, without the search store. For each pass that takes at least a hundredth
of a compilation: CPU seconds at each size, and the exponent of its growth between the smallest and the largest. Each
size is compiled in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.targets.description import load_target

SIZES = (1000, 5000, 20000)
TOTAL = "all passes"


class Chain:
    """A graph under construction, of one f32 value after another."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape, self.rng = shape, np.random.default_rng(5)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, name: str, *inputs: str, **attributes: object) -> str:
        """Append a node; returns its output."""
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(name, inputs, [out], f"n{len(self.nodes)}", **attributes))
        return out

    def weight(self, *shape: int) -> str:
        """A constant whose products keep the size of values."""
        name = f"w{len(self.weights)}"
        values = self.rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]) or 1)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def model(self, result: str) -> onnx.ModelProto:
        """The model from x to `result`."""
        x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, self.shape) for name in ("x", result))
        graph = helper.make_graph(self.nodes, "chain", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(nodes: int) -> onnx.ModelProto:
    """A 3 x 3 convolution of 16 channels and a Relu, again and again."""
    chain, x = Chain((1, 16, 16, 16)), "x"
    for _ in range(nodes // 2):
        x = chain.op("Relu", chain.op("Conv", x, chain.weight(16, 16, 3, 3), pads=[1, 1, 1, 1]))
    return chain.model(x)


def elementwise(nodes: int) -> onnx.ModelProto:
    """Unary ops, and binary ones that also read one of the five values before."""
    chain, values = Chain((64, 256)), ["x"]
    for i in range(nodes):
        name = ("Relu", "Add", "Tanh", "Mul", "Sigmoid", "Sub", "Abs", "Max")[i % 8]
        others = (values[-1 - int(chain.rng.integers(1, 6)) % len(values)],) if i % 2 else ()
        values.append(chain.op(name, values[-1], *others))
    return chain.model(values[-1])


def residual(nodes: int) -> onnx.ModelProto:
    """Blocks of two convolutions with a residual sum."""
    chain, x = Chain((1, 16, 16, 16)), "x"
    for _ in range(nodes // 5):
        y = x
        for last in (False, True):
            y = chain.op("Conv", y, chain.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
            y = chain.op("Relu", chain.op("Add", y, x) if last else y)
        x = y
    return chain.model(x)


def products(nodes: int) -> onnx.ModelProto:
    """A product, a bias and a Relu, again and again."""
    chain, x = Chain((64, 256)), "x"
    for _ in range(nodes // 3):
        x = chain.op("Relu", chain.op("Add", chain.op("MatMul", x, chain.weight(256, 256)), chain.weight(256)))
    return chain.model(x)


CHAINS: dict[str, Callable[[int], onnx.ModelProto]] = {
    c.__name__: c for c in (convolutions, elementwise, residual, products)
}


def seconds_of_passes(path: Path) -> dict[str, float]:
    """CPU seconds of each pass of one compilation in this process, and of all of them."""
    options = CompileOptions(target=load_target("zhenwu-m890"), precision="bf16")
    with mock.patch("time.perf_counter", time.process_time):  # the clock of the passes' records
        records = compile_model(path, options).passes
    found: dict[str, float] = {}
    for record in records:
        for name in (record.name, TOTAL):
            found[name] = found.get(name, 0.0) + record.seconds
    return found


def in_fresh_process(chain: str, nodes: int) -> dict[str, float]:
    """`seconds_of_passes` of a chain."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(CHAINS[chain](nodes), path := Path(folder) / "chain.onnx")
        program = "import sys, json; from pathlib import Path; from benchmarks.growth import seconds_of_passes as f;"
        words = [sys.executable, "-c", program + "print(json.dumps(f(Path(sys.argv[1]))))", str(path)]
        root = Path(__file__).resolve().parents[1]
        environment = os.environ | {"PPUC_CACHE_DIR": ""}
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=root, env=environment)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How compile time grows with the model.")
    parser.add_argument("--chain", action="append", choices=sorted(CHAINS), help="instead of all of them")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of ONNX nodes")
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    for chain in options.chain or CHAINS:
        found = [in_fresh_process(chain, n) for n in sizes]
        print(f"{chain:28}" + "".join(f"{n:>10,}" for n in sizes) + "  exponent")
        for name, most in sorted(found[-1].items(), key=lambda item: -item[1]):
            if most < found[-1][TOTAL] / 100:
                continue
            each = [part.get(name, 0.0) for part in found]
            exponent = math.log(most / max(each[0], 1e-4)) / math.log(sizes[-1] / sizes[0]) if sizes[1:] else math.nan
            print(f"  {name:26}" + "".join(f"{s:10.2f}" for s in each) + f"{exponent:10.2f}", flush=True)


if __name__ == "__main__":
    main()

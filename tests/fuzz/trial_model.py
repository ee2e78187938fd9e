"""A random ONNX model that grows by trial: an op with random operands and attributes stays if ONNX Runtime computes
numbers of moderate size from it, and is forgotten otherwise.

Invariant: a seed gives the same model and inputs every time; the elements of every tensor are known, as ONNX Runtime
computes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppuc.compiler.validation.oracle import Session
from ppuc.ir.errors import ModelError, PpucError

T = TypeVar("T")
MOST = 20000
"""Elements of a tensor at the most."""
LARGE = 1e4
"""No element is larger."""
EMPTY = 0.15
"""How often a result without elements stays."""
F32, F16, I64, I32, BOOL = (np.dtype(t) for t in (np.float32, np.float16, np.int64, np.int32, np.bool_))
MICROSOFT = "com.microsoft"
LOCAL = "local"
SPREAD = [
    *(("zhenwu-m890", "fp32"), ("ppu-tiny", "bf16"), ("zhenwu-810e", "int8")),
    *(("ppu-tiny", "fp32"), ("zhenwu-810e", "bf16"), ("zhenwu-m890", "int8")),
]
"""Machines and precisions that tests of models take in turn."""


class TrialModel:
    """A model that grows. `values` are all tensors, `live` the names that nodes may read, in order of appearance."""

    def __init__(self, source: random.Random, opset: int) -> None:
        self.random, self.opset = source, opset
        self.numbers = np.random.default_rng(source.getrandbits(32))
        self.values: dict[str, np.ndarray] = {}
        self.live: list[str] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.prefix = source.choice(("t", "t", "t", "/model/layer.0/out:", "\u00e9 "))

    # choices

    def flip(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance

    def choose(self, choices: Sequence[T]) -> T:
        return choices[self.random.randrange(len(choices))]

    def between(self, low: int, high: int) -> int:
        """A number in low..high, both possible."""
        return self.random.randint(low, high)

    def axis(self, x: str) -> int:
        """An axis of a tensor, counted from either end."""
        rank = self.values[x].ndim
        return self.between(-rank, rank - 1)

    def axes(self, x: str, least: int = 1) -> list[int]:
        """Different axes of a tensor in any order, counted from either end."""
        rank = self.values[x].ndim
        chosen = self.random.sample(range(rank), self.between(min(least, rank), rank))
        return [a - rank if self.flip(0.3) else a for a in chosen]

    def pick(self, kinds: str = "f", low: int = 0, high: int = 7, dtype: np.dtype | None = None) -> str:
        """An earlier tensor of these kinds of numbers (as numpy's dtype.kind) and of rank low..high, mostly a late one.
        Raises IndexError when there is none."""
        fitting = [
            n
            for n in self.live
            if self.values[n].dtype.kind in kinds
            and low <= self.values[n].ndim <= high
            and dtype in (None, self.values[n].dtype)
        ]
        return self.choose(fitting[-8:] if self.flip(0.7) else fitting)

    # operands

    def data(self, dtype: np.dtype, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
        """Normal floats, small integers of either sign, or booleans."""
        if dtype == BOOL:
            return np.asarray(self.numbers.integers(0, 2, tuple(shape)).astype(dtype))
        if dtype.kind in "iu":
            low = 0 if dtype.kind == "u" else -9
            return np.asarray(self.numbers.integers(low, 10, tuple(shape)).astype(dtype))
        return np.asarray((self.numbers.standard_normal(tuple(shape)) * scale).astype(dtype))

    def input(self, dtype: np.dtype, shape: Sequence[int]) -> str:
        """A new input of the model."""
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.values[name] = self.data(dtype, shape)
        self.live.append(name)
        return name

    def constant(self, array: Any, dtype: np.dtype | None = None) -> str:
        """A constant, now and then one that other nodes read too."""
        made = np.asarray(array, dtype)
        same = [n for n, a in self.constants.items() if a.dtype == made.dtype and a.shape == made.shape]
        if same and made.dtype.kind == "f" and self.flip(0.2):
            return self.choose(same)
        name = f"c{len(self.constants)}"
        self.constants[name] = self.values[name] = made
        return name

    def weight(self, dtype: np.dtype, shape: Sequence[int], scale: float = 1.0) -> str:
        """Random constant elements."""
        return self.constant(self.data(dtype, shape, scale))

    def ints(self, *values: int) -> str:
        """A constant list of integers."""
        return self.constant(np.array(values, np.int64).reshape(len(values)))

    def scalar(self, value: float, dtype: np.dtype) -> str:
        """A constant of rank 0."""
        return self.constant(np.array(value, dtype))

    # growing

    def fresh(self, count: int) -> list[str]:
        """Names for the results of the next node."""
        at = f"{self.prefix}{len(self.nodes)}"
        return [f"{at}_{i}" for i in range(count)] if count > 1 else [at]

    def attempt(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int = 1,
        captured: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """The results of a new node, whose graphs read `captured`; none if it was refused."""
        names = self.fresh(outputs)
        node = helper.make_node(op, list(inputs), names, name=f"{op}_{len(self.nodes)}", domain=domain, **attributes)
        return self.attempt_node(node, captured)

    def captured_by(self, graph: onnx.GraphProto) -> list[str]:
        """The tensors of the model that a graph within a node reads."""
        return [n for node in graph.node for n in sorted(_names_read(node)) if n in self.values]

    def attempt_node(self, node: onnx.NodeProto, captured: Sequence[str] = ()) -> list[str]:
        """The results of the node; none if it was refused."""
        read = [n for n in dict.fromkeys((*node.input, *captured)) if n]
        outputs = [n for n in node.output if n]
        infos = [_info(n, self.values[n]) for n in read]
        results = [helper.make_empty_tensor_value_info(n) for n in outputs]
        made = self._model(helper.make_graph([node], "trial", infos, results))
        try:
            arrays = Session.exact(made, "trial").run({n: self.values[n] for n in read})
        except (PpucError, RuntimeError):
            return []
        if not all(self._moderate(a) for a in arrays):
            return []
        self.nodes.append(node)
        for name, array in zip(outputs, arrays, strict=True):
            self.values[name] = array
            self.live.append(name)
        return outputs

    def _moderate(self, array: Any) -> bool:
        if not isinstance(array, np.ndarray) or array.dtype == object or array.size > MOST or array.ndim > 8:
            return False
        if not array.size:
            return self.flip(EMPTY)
        return bool(array.dtype == BOOL or np.abs(array.astype(np.float64)).max() < LARGE)

    def then(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The only result of a new node; raises IndexError if it was refused."""
        return self.attempt(op, inputs, **attributes)[0]

    # the whole

    def _model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        if self.functions:
            opsets.append(helper.make_opsetid(LOCAL, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=self.functions)

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]:
        """The model, its inputs, and sizes of its symbols. Results are the tensors that nothing reads, sometimes one
        that is read or is an input; constants are sometimes nodes or inputs with defaults, and tensors declared."""
        read = {n for node in self.nodes for n in _names_read(node)}
        results = [n for n in self.live if n not in read and n not in self.feeds]
        results = [n for n in results if not self.flip(0.05)] or results or self.live[-1:]
        results += [n for n in self.random.sample(self.live, 1) if self.flip(0.3) and n not in results]
        constants = {n: a for n, a in self.constants.items() if n in read}
        nodes, feeds = list(self.nodes), dict(self.feeds)
        infos = [_info(n, a) for n, a in feeds.items()]
        symbols = self._open(infos) if self.flip(0.2) else {}
        for name in [n for n in constants if self.flip(0.1)]:
            if constants[name].dtype.kind == "f" and self.flip(0.3):
                infos.append(_info(name, constants[name]))  # an input with a default
            else:
                value = numpy_helper.from_array(constants.pop(name), name)
                nodes.insert(0, helper.make_node("Constant", [], [name], value=value))
        graph = helper.make_graph(
            nodes,
            "trial",
            infos,
            [_typed(n, self.values[n]) if symbols or self.flip(0.3) else _info(n, self.values[n]) for n in results],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
            value_info=[] if symbols else self._declared({*feeds, *results}),
        )
        return self._model(graph), feeds, symbols

    def _declared(self, others: set[str]) -> list[onnx.ValueInfoProto]:
        """Types of a few tensors but `others`."""
        return [_info(n, self.values[n]) for n in self.live if n not in others and self.flip(0.05)]

    def _open(self, infos: Sequence[onnx.ValueInfoProto]) -> dict[str, int]:
        """Give a size of some inputs a symbol; the sizes of the symbols."""
        symbols = {}
        for info in infos:
            dims = info.type.tensor_type.shape.dim
            if dims and self.flip(0.7):
                at, name = self.between(0, len(dims) - 1), f"N{len(symbols)}"
                symbols[name] = dims[at].dim_value
                dims[at].dim_param = name
        return symbols


Made = tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]
"""A model, its inputs, and the sizes of its symbols."""


def accepted(
    name: str, begin: Callable[[], TrialModel], shares: Mapping[Callable[[Any], Any], float], layers: int
) -> Made:
    """The first model of about `layers` layers that ONNX Runtime accepts as a whole too. `begin` gives models with
    inputs, `shares` how often each layer is drawn."""
    while True:
        m, kinds = begin(), list(shares)
        for _ in range(20 * layers):
            if len(m.nodes) >= layers:
                break
            (layer,) = m.random.choices(kinds, list(shares.values()))
            with suppress(IndexError, ValueError):  # no tensor suits, or a node was refused
                layer(m)
        model, feeds, symbols = m.model()
        with suppress(ModelError):
            Session.exact(model, name).run(feeds)
            return model, feeds, symbols


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Including what its graphs read."""
    names = {n for n in node.input if n}
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            names |= {n for inner in graph.node for n in _names_read(inner)} | {o.name for o in graph.output}
    return names


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _typed(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """Its type and rank."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)

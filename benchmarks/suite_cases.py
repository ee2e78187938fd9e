"""The tests of ONNX's backend suite as records, and a function that runs one.

Invariant: a test passes exactly when the suite's own comparison, with the suite's own tolerances, accepts the outputs.
"""

from __future__ import annotations

import glob
import os
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from ppuc import onnx_backend
from ppuc.ir.errors import PpucError

EXPLAINED = {
    "test_attention_4d_causal_fp16": "the expectation rounds to f16 at every step; the engines sum in f32",
    "test_attention_4d_causal_fp16_expanded": "the expectation rounds to f16 at every step; the engines sum in f32",
    "test_attention_4d_fp16": "the expectation rounds to f16 at every step; the engines sum in f32",
    "test_bernoulli": "random numbers without a seed",
    "test_bernoulli_double": "random numbers without a seed",
    "test_bernoulli_double_expanded": "random numbers without a seed",
    "test_bernoulli_expanded": "random numbers without a seed",
    "test_bernoulli_seed": "random numbers of another generator than the expectation's",
    "test_bernoulli_seed_expanded": "random numbers of another generator than the expectation's",
    "test_dft_inverse": "the expectation has a rounding error of 2e-7 where the transform is zero; allowed are 1e-7",
    "test_dft_inverse_opset19": "the expectation has a rounding error of 2e-7 where the transform is zero; allowed are "
    "1e-7",
    "test_gradient_of_add": "neither ONNX Runtime nor onnx.reference has Gradient",
    "test_gradient_of_add_and_mul": "neither ONNX Runtime nor onnx.reference has Gradient",
    "test_loop16_seq_none": "the suite's own comparison fails on scalars in sequences",
    "test_maxunpool_export_with_output_shape": "onnx.reference counts indices in the shape that the kernel implies, "
    "ONNX Runtime (and ppuc) in the output's",
    "test_resize_downsample_scales_cubic_align_corners": "onnx.reference takes the resized length as a fraction, ONNX "
    "Runtime (and ppuc) as the number of elements",
    "test_resize_downsample_scales_linear_align_corners": "onnx.reference takes the resized length as a fraction, ONNX "
    "Runtime (and ppuc) as the number of elements",
    "test_squeezenet": "its weights are one constant: logits of 9e9 differ by rounding alone, and softmax sees it",
}
"""The reason for each test that is not expected to pass."""

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
PLAIN = frozenset((onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL))
LIGHT = "onnx/backend/test/data/light/"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`status` is pass, wrong (an unexpected result), refused (an error with a reason), fault (an internal error) or
    crash. `host` lists host nodes as `op: reason`, `ops` all ops of the model."""

    name: str
    status: str
    reason: str
    host: tuple[str, ...]
    ops: tuple[str, ...]
    seconds: float


class Case:
    """One test; its model and data are read on demand."""

    def __init__(self, test: Any) -> None:
        self._test = test
        self.name: str = test.name
        self.rtol: float = test.rtol
        self.atol: float = test.atol

    @property
    def is_network(self) -> bool:
        """Whether the test is a whole network."""
        return bool(self._test.kind == "real")

    @property
    def model(self) -> onnx.ModelProto:
        if self._test.model is not None and self._test.model_dir is None:
            model: onnx.ModelProto = self._test.model
            return model
        return onnx.load(self._file)

    @property
    def _file(self) -> str:
        if self._test.url is not None and self._test.url.startswith(LIGHT):
            return os.path.join(os.path.dirname(onnx.__file__), self._test.url.removeprefix("onnx/"))
        return os.path.join(self._test.model_dir, "model.onnx")

    @property
    def plain(self) -> bool:
        """Whether all inputs and outputs are dense tensors of f32, i64, i32 or bool."""
        types = [i.type for i in (*self.model.graph.input, *self.model.graph.output)]
        return all(t.WhichOneof("value") == "tensor_type" and t.tensor_type.elem_type in PLAIN for t in types)

    def data(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Inputs and expected outputs, set by set."""
        model = self.model
        if self._test.data_sets is not None:
            for inputs, outputs in self._test.data_sets:
                yield [_array(x) for x in inputs], [_array(x) for x in outputs]
        elif self._test.url is not None and self._test.url.startswith(LIGHT):
            constants = {t.name for t in model.graph.initializer}
            feeds = {
                i.name: Runner.generate_dummy_data(i, seed=0, name=self.name, random=False)
                for i in model.graph.input
                if i.name not in constants
            }
            stored = [f"{os.path.splitext(self._file)[0]}_output_{i}.pb" for i in range(len(model.graph.output))]
            yield (
                list(feeds.values()),
                [_stored(path, o.type) for path, o in zip(stored, model.graph.output, strict=True)],
            )
        else:
            for folder in sorted(glob.glob(os.path.join(self._test.model_dir, "test_data_set*"))):
                yield _folder(folder, "input", model.graph.input), _folder(folder, "output", model.graph.output)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _folder(folder: str, kind: str, infos: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    count = len(glob.glob(os.path.join(folder, f"{kind}_*.pb")))
    return [_stored(os.path.join(folder, f"{kind}_{i}.pb"), infos[i].type) for i in range(count)]


def _stored(path: str, type: onnx.TypeProto) -> Any:
    """A value read from the suite's files, by its declared type."""
    with open(path, "rb") as file:
        data = file.read()
    if type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


@cache
def cases() -> tuple[Case, ...]:
    """Every test of the installed onnx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(Case(test) for kind in KINDS for test in load_model_tests(kind=kind))


def run_case(case: Case, target: str) -> Outcome:
    """Compile, simulate, compare."""
    started = time.perf_counter()
    host: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    status, reason = "pass", ""
    try:
        model = case.model
        ops = tuple(n.op_type for n in model.graph.node)
        rep = onnx_backend.prepare(model, target=target)
        for inputs, expected in case.data():
            outputs = rep.run(inputs)
            plan = rep.program.plan if rep.program is not None else None
            host = tuple(f"{n.op}: {n.reason}" for n in plan.nodes) if plan is not None else ()
            with np.errstate(all="ignore"):
                Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)
    except PpucError as error:
        status, reason = "refused", str(error)
    except AssertionError as error:
        status, reason = "wrong", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        status, reason = "fault", f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
    return Outcome(case.name, status, reason, host, ops, time.perf_counter() - started)

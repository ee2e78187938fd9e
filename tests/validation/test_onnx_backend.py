"""`ppuc.onnx_backend` as ONNX's tests see it, and a part of the official suite."""

from __future__ import annotations

import unittest

import numpy as np
import onnx.backend.test
import pytest
from onnx import helper

from benchmarks.suite_cases import cases, run_case
from ppuc import onnx_backend
from ppuc.compiler.onnx_backend import PpucRep

SHARD = 40
"""Every one of so many tests."""
UNREACHED: frozenset[str] = frozenset()


def test_the_official_tests_take_ppuc_as_a_backend() -> None:
    suite = onnx.backend.test.BackendTest(onnx_backend, __name__).include("^test_(add|relu|if|string_concat)_cpu$")
    result = unittest.TestResult()
    suite.test_suite.run(result)
    assert result.wasSuccessful(), result.failures + result.errors
    assert result.testsRun - len(result.skipped) == 4


def test_nodes_and_devices() -> None:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    (y,) = onnx_backend.run_node(node, [a, a])
    np.testing.assert_array_equal(y, 2 * a)
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA")


def test_a_prepared_model_follows_shapes_and_fixed_values() -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    info = [helper.make_tensor_value_info("x", 1, ["N", 3]), helper.make_tensor_value_info("axes", 7, [1])]
    graph = helper.make_graph([node], "g", info, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    prepared = onnx_backend.prepare(model, target="ppu-tiny")
    assert isinstance(prepared, PpucRep)
    for rows, axis in ((2, 0), (2, 1), (5, 1)):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
        (y,) = prepared.run([x, np.array([axis], np.int64)])
        np.testing.assert_array_equal(y, x.sum(axis))


@pytest.mark.parametrize("shard", range(4))
def test_a_part_of_the_official_suite(shard: int) -> None:
    """Tests agree with their expectation, on the small machine; the whole suite is `benchmarks.backend_suite`."""
    small = [c for c in cases() if not c.is_network]
    failed = {}
    for case in small[shard * 10 :: SHARD]:
        outcome = run_case(case, "ppu-tiny")
        if outcome.status != "pass":
            failed[case.name] = f"{outcome.status}: {outcome.reason}"
    assert not failed.keys() - UNREACHED, failed

"""The text form reads back equal at every level, and says where and why it cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.ir.graph import Graph
from ppuc.ir.module import Module, Placement
from ppuc.ir.ops.base import OPS
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.resource import FileRange, Resource
from ppuc.ir.rewrite import Builder
from ppuc.ir.text import (
    external_resources,
    parse_graph,
    parse_kernel,
    parse_module,
    parse_program,
    parse_vector,
    print_graph,
    print_kernel,
    print_module,
    print_program,
    print_vector,
)
from ppuc.ir.text.parse_kernel import parse_affine
from ppuc.ir.types import DType, TensorType
from tests.ir import text_strategies as some
from tests.support.effort import assert_linear
from tests.support.text_samples import GRAPH, KERNEL, MODULE, RESOURCES, sample_module


def constants_of(graph: Graph) -> dict[str, Resource]:
    return external_resources(Module("", "", (), (), (), graph))


class TestRoundTrip:
    def test_sample_prints_as_written(self) -> None:
        assert print_module(sample_module()) == MODULE

    def test_sample_reads_back_equal(self) -> None:
        module = sample_module()
        assert parse_module(print_module(module), external_resources(module)) == module

    def test_module_without_lower_levels(self) -> None:
        module = replace(sample_module(), kernels=(), vectors=(), placement=(), program=None, done=(), options=())
        assert parse_module(print_module(module), RESOURCES.__getitem__) == module

    @given(some.graphs())
    def test_graphs(self, graph: Graph) -> None:
        text = print_graph(graph)
        again = parse_graph(text, constants_of(graph))
        assert again == graph
        assert print_graph(again) == text

    @given(some.kernels())
    def test_kernels(self, kernel: Any) -> None:
        assert parse_kernel(print_kernel(kernel)) == kernel

    @given(some.vectors())
    def test_vectors(self, vector: Any) -> None:
        assert parse_vector(print_vector(vector)) == vector

    @settings(max_examples=50)
    @given(some.programs())
    def test_programs(self, program: Any) -> None:
        assert parse_program(print_program(program)) == program

    @given(
        st.builds(Placement, st.text(max_size=9), some.spaces, some.sizes, some.sizes),
        st.text(max_size=9),
        *[st.lists(st.text(max_size=9), max_size=3).map(tuple)] * 2,
    )
    def test_headers(self, placement: Placement, text: str, pipeline: tuple[str, ...], done: tuple[str, ...]) -> None:
        ends = ((text, "x"),)
        graph = Graph("g", (), (), ())
        module = Module(
            text, text, ((text, text),), ends, ends, graph, placement=(placement,), pipeline=pipeline, done=done
        )
        assert parse_module(print_module(module), {}) == module

    @given(some.affines(("m", "k.1"), 3))
    def test_affines(self, expression: Any) -> None:
        assert parse_affine(str(expression)) == expression

    def test_every_op_record_with_defaults(self) -> None:
        """Attributes of all records whose fields have defaults print and parse."""
        builder = Builder()
        checked = 0
        for name, record in OPS.items():
            try:
                attrs = record.attrs()
            except TypeError:
                continue
            checked += 1
            builder.emit(name, (), attrs, types=[TensorType(DType.F32, ())], hint="v")
        graph = Graph("g", (), (), tuple(builder.ops))
        assert checked > len(OPS) // 2
        assert parse_graph(print_graph(graph)) == graph


class TestConstants:
    @pytest.mark.parametrize(
        ("array", "text"),
        [
            (np.array([0.5, 0.1], np.float32), "f32[2] {0.5, 0.1}"),
            (np.array(3, np.int64), "i64[] {3}"),
            (np.array([[True], [False]]), "bool[2, 1] {true, false}"),
            (np.array([], np.float16), "f16[0] {}"),
            (np.array([-0.0, np.inf, -np.inf, np.nan], np.float32), "f32[4] {-0.0, inf, -inf, nan}"),
            (np.array([1.5, -2], ml_dtypes.bfloat16), "bf16[2] {1.5, -2}"),
            (np.array([2**64 - 1], np.uint64), "u64[1] {18446744073709551615}"),
        ],
    )
    def test_small_ones_are_written_out(self, array: np.ndarray, text: str) -> None:
        builder = Builder()
        builder.const(array)
        graph = Graph("g", (), (), tuple(builder.ops))
        assert f"const() {{value = {text}}}" in print_graph(graph)
        assert not constants_of(graph)
        assert parse_graph(print_graph(graph)) == graph

    def test_a_nan_with_payload_is_stored_beside(self) -> None:
        resource = Resource.of(np.array([0x7FC00001], np.uint32).view(np.float32))
        builder = Builder()
        builder.const(resource)
        assert list(constants_of(Graph("g", (), (), tuple(builder.ops)))) == [resource.key]

    def test_a_constant_known_by_its_file_is_stored_beside(self, tmp_path: Any) -> None:
        path = tmp_path / "weights"
        path.write_bytes(np.ones(2, np.float32).tobytes())
        resource = Resource(TensorType(DType.F32, (2,)), file=FileRange(path, 0, 8))
        builder = Builder()
        builder.const(resource)
        graph = Graph("g", (), (), tuple(builder.ops))
        assert parse_graph(print_graph(graph), constants_of(graph)) == graph

    def test_the_name_in_the_text_wins(self) -> None:
        array = np.zeros(20, np.float32)
        resource = Resource.of(array, "first")
        text = f'graph @g() -> () {{\n  %c: f32[20] = const() {{value = res("{resource.key}", "second")}}\n}}\n'
        graph = parse_graph(text, {resource.key: resource})
        attrs = graph.ops[0].attrs
        assert isinstance(attrs, ConstAttrs)
        assert attrs.value.name == "second"
        assert attrs.value == resource
        assert print_graph(graph) == text


def test_comments_and_blank_lines_say_nothing() -> None:
    text = KERNEL.replace("ring 2\n", 'ring 2 // two "slots\n\n   // and more\n').replace("  }\n", "  } // end\n")
    assert parse_kernel(text) == parse_kernel(KERNEL)


def test_slashes_inside_strings_are_no_comment() -> None:
    graph = parse_graph('graph @g(%x: f32[1]) -> () {\n  %y: f32[1] = exp(%x) loc("a//b") // c\n}')
    assert graph.ops[0].loc == ("a//b",)


def test_infinite_padding_reads_back() -> None:
    kernel = parse_kernel(KERNEL.replace("%b[0, 0]", "%b[0, 0] {pad = -inf}"))
    assert kernel.body[0].pad == -math.inf  # type: ignore[union-attr]


def test_printing_and_parsing_are_linear() -> None:
    def round_trip(ops: int) -> Callable[[], Graph]:
        builder = Builder()
        value = builder.const(np.zeros(3, np.float32))
        for _ in range(ops):
            value = builder("add", value, builder.scalar(0.1, DType.F32))
        graph = Graph("g", (), (value,), tuple(builder.ops))
        return lambda: parse_graph(print_graph(graph))

    assert_linear(round_trip, 300)


def test_sample_graph_alone() -> None:
    assert print_graph(parse_graph(GRAPH, RESOURCES)) == GRAPH

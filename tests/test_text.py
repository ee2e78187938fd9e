"""The text form reads back equal at every level, and says where and why it cannot be read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import text_strategies as some
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import GRAPH, HEADER, KERNEL, MODULE, PROGRAM, RESOURCES, VECTOR, sample_module

from ppuc.ir.errors import TextError
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


def test_speed() -> None:
    """Printing and parsing are linear, with a bound that leaves a factor of five over what was measured."""
    builder = Builder()
    value = builder.const(np.zeros(3, np.float32))
    for _ in range(2000):
        value = builder("add", value, builder.scalar(0.1, DType.F32))
    graph = Graph("g", (), (value,), tuple(builder.ops))
    start = time.process_time()
    text = print_graph(graph)
    parse_graph(text)
    assert time.process_time() - start < 2.5


def message(parse: Callable[..., Any], text: str, *args: Any) -> str:
    with pytest.raises(TextError) as caught:
        parse(text, *args, "t.ppir")
    return str(caught.value)


G = "graph @g(%x: f32[2]) -> (%y: f32[2]) {{\n  {}\n}}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%y: f32[2] = reshap(%x)",
            """\
t.ppir:2:16: unknown op 'reshap'
    %y: f32[2] = reshap(%x)
                 ^^^^^^
  hint: did you mean 'reshape'?""",
        ),
        (
            "%y: f32[2] = exp(%xx)",
            """\
t.ppir:2:20: %xx is not defined before this line
    %y: f32[2] = exp(%xx)
                     ^^^
  hint: did you mean '%x'?""",
        ),
        (
            "%x: f32[2] = exp(%x)",
            """\
t.ppir:2:3: %x is defined twice
    %x: f32[2] = exp(%x)
    ^^""",
        ),
        (
            "%y: f32[2] = transpose(%x) {axes = [0]}",
            """\
t.ppir:2:31: unknown attribute 'axes' of op 'transpose'
    %y: f32[2] = transpose(%x) {axes = [0]}
                                ^^^^
  expected: perm""",
        ),
        (
            "%y: f32[2] = transpose(%x) {perm = 0.5}",
            """\
t.ppir:2:38: attribute 'perm' has the wrong type
    %y: f32[2] = transpose(%x) {perm = 0.5}
                                       ^^^
  got: 0.5
  expected: [an integer, ...]""",
        ),
        (
            "%y: f32[2] = transpose(%x)",
            """\
t.ppir:2:16: op 'transpose' needs attribute 'perm'
    %y: f32[2] = transpose(%x)
                 ^^^^^^^^^
  expected: [an integer, ...]""",
        ),
        (
            "%y: f32[2] = cast(%x) {to = f33}",
            """\
t.ppir:2:31: attribute 'to' has the wrong type
    %y: f32[2] = cast(%x) {to = f33}
                                ^^^
  got: f33
  expected: an element type""",
        ),
        (
            "%y: f33[2] = exp(%x)",
            """\
t.ppir:2:7: unknown element type 'f33'
    %y: f33[2] = exp(%x)
        ^^^^^^""",
        ),
        (
            "%y: f32[2] @l3 = exp(%x)",
            """\
t.ppir:2:14: unknown memory '@l3'
    %y: f32[2] @l3 = exp(%x)
               ^^^
  expected: @host, @hbm, @l2, @l1, @acc""",
        ),
        (
            "%y: f32[2] = exp(%x",
            """\
t.ppir:2:22: the line ends too early
    %y: f32[2] = exp(%x
                       ^
  expected: ')', ','""",
        ),
        (
            "%y: f32[2] exp(%x)",
            """\
t.ppir:2:14: unexpected text
    %y: f32[2] exp(%x)
               ^^^
  got: 'exp'
  expected: ',', '=', @memory""",
        ),
        (
            '%y: f32[2] = const() {value = res("sha256:00", "w")}',
            """\
t.ppir:2:33: constant res("sha256:00", "w") is not stored beside this text
    %y: f32[2] = const() {value = res("sha256:00", "w")}
                                  ^^^""",
        ),
        (
            "%y: f32[2] = const() {value = f32[2] {1.0}}",
            """\
t.ppir:2:33: wrong number of elements
    %y: f32[2] = const() {value = f32[2] {1.0}}
                                  ^^^^^^
  got: 1
  expected: as many as f32[2] has""",
        ),
        (
            "%y: u8[1] = const() {value = u8[1] {300}}",
            """\
t.ppir:2:39: 300 does not fit u8
    %y: u8[1] = const() {value = u8[1] {300}}
                                        ^^^""",
        ),
        (
            "%y: f32[3] = exp(%x)",
            """\
t.ppir:1:26: %y is defined with another type
    graph @g(%x: f32[2]) -> (%y: f32[2]) {
                             ^^
  got: f32[2]
  expected: f32[3]""",
        ),
        (
            "%z: f32[2] = exp(%x)",
            """\
t.ppir:1:26: %y is not defined in this graph
    graph @g(%x: f32[2]) -> (%y: f32[2]) {
                             ^^""",
        ),
    ],
)
def test_graph_errors(line: str, expected: str) -> None:
    assert message(parse_graph, G.format(line), {}) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "load %bt <- %w[%k, 0]",
            "load %bt <- %w[%kk, 0]",
            """\
t.ppir:13:22: %kk is no loop around this line
    load %bt <- %w[%kk, 0]
                   ^^^
  expected: %m, %k""",
        ),
        (
            "load %bt <- %w[%k, 0]",
            "load %bt <- %w[%k]",
            """\
t.ppir:13:21: 1 indices for a tile of 2 axes (%bt)
    load %bt <- %w[%k]
                  ^
  hint: write the tile axes out ($0, $1, ...), or [= ...] where no dimension moves with an axis""",
        ),
        (
            "load %bt <-",
            "load %bu <-",
            """\
t.ppir:13:12: %bu is no buffer here
    load %bu <- %w[%k, 0]
         ^^^
  hint: did you mean '%bt'?""",
        ),
        (
            "load %bt <- %w",
            "load.box %bt <- %w",
            """\
t.ppir:13:7: 'load.box' is an instruction
    load.box %bt <- %w[%k, 0]
    ^^^^^^^^
  expected: load""",
        ),
        (
            "{start = (%k), valid",
            "{valid",
            """\
t.ppir:14:7: mma needs option 'start'
    mma %c <- %at, %bt {valid = (%m < 70, _, _)}
    ^^^
  expected: start = (%loop, ...), or start = ()""",
        ),
        (
            "valid = (%m < 70, _)",
            "pad = 1",
            """\
t.ppir:16:38: unknown option 'pad' of vec
    vec %o <- @bias_relu(%c, %bias) {pad = 1}
                                     ^^^
  expected: valid, scalars""",
        ),
        (
            "for %k in",
            "for %m in",
            """\
t.ppir:11:9: %m is already a loop around this line
    for %m in 0..32 step 16 {
        ^^""",
        ),
        (
            "%o: f32[32, 48] @l1 ring 1",
            "%c: f32[32, 48] @l1 ring 1",
            """\
t.ppir:8:3: %c is defined twice
    %c: f32[32, 48] @l1 ring 1
    ^^""",
        ),
        (
            "    store %out[%m, 0] <- %o\n  }\n}\n",
            "",
            """\
t.ppir:10:35: this block is never closed
    for %m in 0..70 step 32 over cm {
                                    ^
  expected: a line with '}'""",
        ),
        (
            "    store %out[%m, 0] <- %o\n  }\n}\n",
            "  }\n}\n}\n",
            """\
t.ppir:19:1: text after the end of the kernel
    }
    ^""",
        ),
    ],
)
def test_kernel_errors(old: str, new: str, expected: str) -> None:
    assert old in KERNEL
    assert message(parse_kernel, KERNEL.replace(old, new)) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "%3 = relu(%2)",
            "%3 = relu(%4)",
            """\
t.ppir:3:13: %4 is not defined before this line
    %3 = relu(%4)
              ^^""",
        ),
        (
            "-> (%3: f32)",
            "-> (%4: f32)",
            """\
t.ppir:1:41: %4 is not defined in this program
    vector @bias_relu(%0: f32, %1: f32) -> (%4: f32) {
                                            ^^""",
        ),
    ],
)
def test_vector_errors(old: str, new: str, expected: str) -> None:
    assert old in VECTOR
    assert message(parse_vector, VECTOR.replace(old, new)) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "queue vector {",
            "queue vektor {",
            """\
t.ppir:37:13: unknown queue 'vektor'
    queue vektor {
          ^^^^^^
  expected: load, store, tensor, vector, stage""",
        ),
        (
            "pop(%o, 1)",
            "pop(%o touched)",
            """\
t.ppir:44:53: a pop is of a ring
    store.box %out[%m, 0] <- %o {wait(%o, 1), pop(%o touched), bump(%y.d all)}
                                              ^^^
  expected: pop(%ring, level)""",
        ),
        (
            "bump(%y.d all)",
            "bump(%y.d some)",
            """\
t.ppir:44:75: unknown word 'some'
    store.box %out[%m, 0] <- %o {wait(%o, 1), pop(%o, 1), bump(%y.d some)}
                                                                    ^^^^
  expected: touched, all""",
        ),
        (
            "[0..2240] queue 0",
            "[9..8] queue 0",
            """\
t.ppir:12:24: the range ends before it starts
    copy %x <- %x.h[9..8] queue 0 {bump(%x.c touched)} loc("Gemm_0")
                       ^
  expected: at least 9""",
        ),
    ],
)
def test_program_errors(old: str, new: str, expected: str) -> None:
    assert old in PROGRAM
    assert message(parse_program, PROGRAM.replace(old, new)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.ppir: the text has no module header"),
        (HEADER, "t.ppir: the text has no graph"),
        (HEADER + HEADER, "t.ppir:12:1: a module has one module header\n    module {\n    ^^^^^^^^"),
        (
            HEADER.replace('  target "ppu-tiny" "0123"\n', ""),
            't.ppir:1:1: the module names no target\n    module {\n    ^^^^^^\n  expected: target "name" "hash"',
        ),
        ("}\n", "t.ppir:1:1: this brace closes nothing\n    }\n    ^"),
        (
            "modul {\n",
            "t.ppir:1:1: unexpected text\n    modul {\n    ^^^^^\n  got: 'modul'\n"
            "  expected: 'graph', 'kernel', 'module', 'placement', 'program', 'vector'",
        ),
    ],
)
def test_module_errors(text: str, expected: str) -> None:
    assert message(parse_module, text, {}) == expected


def test_a_single_item_of_another_kind() -> None:
    assert message(parse_graph, KERNEL, {}).split("\n")[0] == "t.ppir:1:1: expected a graph, found a kernel"


def test_the_shown_line_is_cut_around_the_caret() -> None:
    line = "%y: f32[2] = concat(" + ", ".join(["%x"] * 200) + ", %z)"
    text = message(parse_graph, G.format(line), {})
    shown, caret = text.split("\n")[1:3]
    assert len(shown) <= 130
    assert shown[caret.index("^") :].startswith("%z")


def test_a_file_without_a_name() -> None:
    with pytest.raises(TextError, match=r"^<text>: the text has no graph$"):
        parse_graph("")


def test_sample_graph_alone() -> None:
    assert print_graph(parse_graph(GRAPH, RESOURCES)) == GRAPH

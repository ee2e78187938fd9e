"""What is wrong with a text: the whole message, with line, column and caret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ppuc.ir.errors import TextError
from ppuc.ir.text import parse_graph, parse_kernel, parse_module, parse_program, parse_vector
from tests.support.text_samples import HEADER, KERNEL, PROGRAM, VECTOR


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
t.ppir:13:22: %kk is not a loop around this line
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
t.ppir:13:12: %bu is not a buffer here
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

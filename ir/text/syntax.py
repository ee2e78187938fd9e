"""Parses one line of text to a node, with Lark (LALR, tables built once per process).

The parsers of the levels resolve names and literals. Lark is imported on first use, so that printing does not pay for
it.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

from ppuc.ir.text.literals import Inline, Literal, Named, Word
from ppuc.ir.text.nodes import (
    BufferDecl,
    CopyLine,
    CounterLine,
    Decl,
    Done,
    GraphHeader,
    GraphLine,
    Index,
    InOut,
    KernelHeader,
    LoopLine,
    MmaLine,
    ModuleHeader,
    MoveLine,
    Opt,
    Option,
    ParamDecl,
    Pipeline,
    PlacementHeader,
    PlacementLine,
    ProgramHeader,
    QueueHeader,
    RingLine,
    SegmentHeader,
    Signature,
    Spec,
    Syntax,
    Target,
    TensorLine,
    Tile,
    Token,
    VecLine,
    VectorHeader,
    VectorLine,
)

STARTS = (
    "top_line",
    "module_line",
    "placement_line",
    "graph_line",
    "kernel_line",
    "vector_line",
    "program_line",
    "segment_line",
    "stream_kernel_line",
    "statement",
    "specs",
)
"""Kinds of lines: the grammar's start rules."""


class LineSyntaxError(Exception):
    """A line does not follow the grammar, at `line` (of the logical line) and `column`, both from 1."""

    def __init__(self, line: int, column: int, width: int, what: str, got: str | None, expected: str) -> None:
        super().__init__(what)
        self.line, self.column, self.width = line, column, width
        self.what, self.got, self.expected = what, got, expected


def parse_line(text: str, kind: str) -> Syntax:
    """The syntax of one logical line. Raises LineSyntaxError."""
    import lark

    parser = _parser()
    try:
        return parser.parse(text, start=kind)
    except lark.exceptions.UnexpectedCharacters as error:
        expected = _expected(parser, error.allowed)
        got = repr(text[error.pos_in_stream or 0])
        raise LineSyntaxError(error.line, error.column, 1, "unexpected text", got, expected) from None
    except lark.exceptions.UnexpectedToken as error:
        expected = _expected(parser, error.accepts or error.expected)
        if error.token.type == "$END":
            lines = text.split("\n")
            raise LineSyntaxError(
                len(lines), len(lines[-1].rstrip()) + 1, 1, "the line ends too early", None, expected
            ) from None
        token = error.token
        raise LineSyntaxError(
            token.line, token.column, len(token), "unexpected text", repr(str(token)), expected
        ) from None


_DESCRIPTIONS = {
    "VALUE": "%name",
    "RING": "%ring",
    "SYMBOL": "@name",
    "SPACE": "@memory",
    "STRING": '"string"',
    "TYPE": "a type like f32[1, 784]",
    "WORD": "a name",
    "PASS": "the name of a pass",
    "INT": "an integer",
    "INT_TIMES": "n x",
    "NUMBER": "a number",
    "AFFINE": "an affine expression",
    "BOUND": "a bound like %m < 1000",
    "LOAD": "load",
    "STORE": "store",
    "MMA": "mma",
    "VEC": "vec",
    "IO": "input or output",
    "$END": "the end of the line",
    "<END-OF-FILE>": "the end of the line",
}


def _expected(parser: Any, names: Any) -> str:
    texts = {_DESCRIPTIONS.get(n) or repr(parser.get_terminal(n).pattern.value) for n in names}
    return ", ".join(sorted(texts))


def _strings(tokens: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(json.loads(t) for t in tokens)


@functools.cache
def _parser() -> Any:
    import lark

    def collect(*items: Any) -> tuple[Any, ...]:
        return tuple(i for i in items if i is not None)

    def number(token: Token) -> Literal:
        digits = token[1:] if token[0] == "-" else token
        return Literal(token, int(token) if digits.isdigit() else float(token))

    def signature(name: Token, params: Any, results: Any) -> Signature:
        return Signature(name, params, results)

    def graph_line(results: Any, op: Token, operands: Any, attrs: Any, loc: Any, body: Any) -> GraphLine:
        return GraphLine(results, op, operands, attrs or (), loc or (), body)

    def tuple_(token: Token, *items: Any) -> Literal:
        flat: list[Literal] = []
        for item in items:
            if isinstance(item, list):
                flat.extend(item)
            elif item is not None:
                flat.append(item)
        return Literal(token, tuple(flat))

    def vec(verb: Token, *rest: Any) -> VecLine:
        *outs, program, ins, opts = rest
        return VecLine(verb, tuple(outs), program, ins, opts or ())

    def index(token: Token, exact: Any, *items: Any) -> Index:
        return Index(token, exact is not None, collect(*items))

    def loop(var: Token, start: Token, stop: Token, step: Token, over: Any) -> LoopLine:
        return LoopLine(var, int(start), int(stop), int(step), over)

    def kernel_header(name: Token, grid: Any, first: Token | None, *rest: Any) -> KernelHeader:
        *params, loc = rest
        return KernelHeader(name, grid, first, collect(*params), loc or ())

    def vector_header(name: Token, *rest: Any) -> VectorHeader:
        rest = collect(*rest)
        params = tuple(p for p in rest if len(p) == 3)
        return VectorHeader(name, params, tuple(r for r in rest if len(r) == 2))

    def ring(name: Token, type: Token, space: Token, *rest: Any) -> RingLine:
        base, slot, depth, producer, consumers, after = rest
        return RingLine(name, type, space, int(base), int(slot), int(depth), producer, consumers, after or ())

    callbacks: dict[str, Any] = {
        "module_header": ModuleHeader,
        "target": lambda name, hash: Target(*_strings((name, hash))),
        "option": lambda name, value: Option(*_strings((name, value))),
        "io": lambda kind, name, value: InOut(kind, json.loads(name), value),
        "pipeline": lambda *passes: Pipeline(_strings(passes)),
        "done": lambda *passes: Done(_strings(passes)),
        "specs": collect,
        "spec": lambda name, attrs: Spec(name, attrs or ()),
        "placement_header": PlacementHeader,
        "placement_line": lambda n, s, a, b: PlacementLine(json.loads(n), s, int(a), int(b)),
        "graph_header": GraphHeader,
        "signature": signature,
        "decls": collect,
        "decl": Decl,
        "graph_line": graph_line,
        "results": collect,
        "body": lambda header: header,
        "values": collect,
        "loc": lambda *names: _strings(names),
        "attrs": collect,
        "attr": lambda name, literal: (name, literal),
        "number": number,
        "string": lambda token: Literal(token, json.loads(token)),
        "word": lambda token: Literal(token, Word(token)),
        "resource": lambda token, key, name: Literal(token, Named(*_strings((key, name)))),
        "constant": lambda token, *items: Literal(token, Inline(str(token), collect(*items))),
        "tuple_": tuple_,
        "repeated": lambda times, item: [item] * int(times[:-2]),
        "kernel_header": kernel_header,
        "axes": collect,
        "axis": lambda name, size: (name, size),
        "param": lambda out, *rest: ParamDecl(out is not None, *rest),
        "strides": lambda steps, offset: (steps, offset),
        "of": lambda token: token,
        "ints": collect,
        "buffer": lambda name, type, space, depth: BufferDecl(name, type, space, int(depth)),
        "loop": loop,
        "load": lambda verb, dst, src, at, opts: MoveLine(verb, dst, src, at, opts or ()),
        "store": lambda verb, dst, at, src, opts: MoveLine(verb, src, dst, at, opts or ()),
        "mma": lambda verb, dst, a, b, opts: MmaLine(verb, dst, a, b, opts or ()),
        "vec": vec,
        "tile": lambda buffer, at, shape: Tile(buffer, at, shape or ()),
        "index": index,
        "opts": collect,
        "opt_number": lambda key, number: Opt("number", key, number),
        "opt_word": lambda key, word: Opt("word", key, word),
        "opt_items": lambda key, *items: Opt("items", key, collect(*items)),
        "opt_ring": lambda key, ring, level: Opt("ring", key, (ring, level)),
        "opt_counter": lambda key, group, word: Opt("counter", key, (group, word)),
        "vector_header": vector_header,
        "vec_param": lambda whole, name, dtype: (whole is not None, name, dtype),
        "vec_result": lambda name, dtype: (name, dtype),
        "vector_line": lambda result, op, args, attrs: VectorLine(result, op, args, attrs or ()),
        "program_header": ProgramHeader,
        "tensor": lambda n, t, s, a, role, source: TensorLine(n, t, s, int(a), role, json.loads(source)),
        "segment": SegmentHeader,
        "counter": CounterLine,
        "copy": lambda d, s, a, b, q, o, loc: CopyLine(d, s, int(a), b, int(q), o or (), loc or ()),
        "ring": ring,
        "words": collect,
        "rings": collect,
        "queue": QueueHeader,
    }
    inline = lark.v_args(inline=True)
    transformer = inline(type("LineTransformer", (lark.Transformer,), {k: _method(f) for k, f in callbacks.items()}))()
    grammar = files("ppuc.ir.text").joinpath("grammar.lark").read_text("utf-8")
    return lark.Lark(grammar, parser="lalr", start=list(STARTS), transformer=transformer)


def _method(function: Any) -> Any:
    return lambda self, *args: function(*args)

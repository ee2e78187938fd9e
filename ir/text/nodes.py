"""Syntax nodes, before name resolution: one NamedTuple per kind of line.

Tokens are kept where errors may point at them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ppuc.ir.text.literals import Literal

Token = Any
"""A Lark token: a str with `line` and `column`."""


class Decl(NamedTuple):
    name: Token
    type: Token
    space: Token | None


class Signature(NamedTuple):
    name: Token
    params: tuple[Decl, ...]
    results: tuple[Decl, ...]


class ModuleHeader(NamedTuple):
    token: Token


class PlacementHeader(NamedTuple):
    token: Token


class Target(NamedTuple):
    name: str
    hash: str


class Option(NamedTuple):
    name: str
    value: str


class InOut(NamedTuple):
    kind: Token
    name: str
    value: Token


class Pipeline(NamedTuple):
    passes: tuple[str, ...]


class Done(NamedTuple):
    passes: tuple[str, ...]


class Spec(NamedTuple):
    name: Token
    options: tuple[tuple[Token, Literal], ...]


class PlacementLine(NamedTuple):
    name: str
    space: Token
    address: int
    bytes: int


class GraphHeader(NamedTuple):
    signature: Signature


class GraphLine(NamedTuple):
    results: tuple[Decl, ...]
    op: Token
    operands: tuple[Token, ...]
    attrs: tuple[tuple[Token, Literal], ...]
    loc: tuple[str, ...]
    body: Signature | None


class ParamDecl(NamedTuple):
    written: bool
    name: Token
    type: Token
    space: Token
    strides: tuple[tuple[Token, ...], Token] | None
    tensor: Token | None


class KernelHeader(NamedTuple):
    name: Token
    grid: tuple[tuple[Token, Token], ...]
    first: Token | None
    params: tuple[ParamDecl, ...]
    loc: tuple[str, ...]


class BufferDecl(NamedTuple):
    name: Token
    type: Token
    space: Token
    depth: int


class LoopLine(NamedTuple):
    var: Token
    start: int
    stop: int
    step: int
    over: Token | None


class Index(NamedTuple):
    token: Token
    exact: bool
    items: tuple[Token, ...]


class Tile(NamedTuple):
    buffer: Token
    at: Index | None
    shape: tuple[Token, ...]


class Opt(NamedTuple):
    """An entry of a statement's braces; `form` is number, word, items, ring or counter."""

    form: str
    key: Token
    value: Any


class MoveLine(NamedTuple):
    """A load (buffer <- param) or a store (param <- buffer)."""

    verb: Token
    buffer: Token
    param: Token
    at: Index
    opts: tuple[Opt, ...]


class MmaLine(NamedTuple):
    verb: Token
    dst: Token
    a: Tile
    b: Tile
    opts: tuple[Opt, ...]


class VecLine(NamedTuple):
    verb: Token
    outs: tuple[Token, ...]
    program: Token
    ins: tuple[Token, ...]
    opts: tuple[Opt, ...]


class VectorHeader(NamedTuple):
    name: Token
    params: tuple[tuple[bool, Token, Token], ...]
    results: tuple[tuple[Token, Token], ...]


class VectorLine(NamedTuple):
    result: Token
    op: Token
    args: tuple[Token, ...]
    attrs: tuple[tuple[Token, Literal], ...]


class ProgramHeader(NamedTuple):
    name: Token
    attrs: tuple[tuple[Token, Literal], ...]


class TensorLine(NamedTuple):
    name: Token
    type: Token
    space: Token
    address: int
    role: Token
    source: str


class SegmentHeader(NamedTuple):
    name: Token


class CounterLine(NamedTuple):
    name: Token
    tensor: Token
    attrs: tuple[tuple[Token, Literal], ...]


class CopyLine(NamedTuple):
    dst: Token
    src: Token
    start: int
    stop: Token
    queue: int
    opts: tuple[Opt, ...]
    loc: tuple[str, ...]


class RingLine(NamedTuple):
    name: Token
    type: Token
    space: Token
    base: int
    slot: int
    depth: int
    producer: Token
    consumers: tuple[Token, ...]
    after: tuple[Token, ...]


class QueueHeader(NamedTuple):
    queue: Token


Syntax = Any
"""One of the NamedTuples above."""

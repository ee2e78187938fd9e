"""Parses kernels and vector programs. `StatementReader` reads statements, also those in streams of programs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ppuc.ir.affine import Affine, affine, axis
from ppuc.ir.kernel import Bound, Buffer, Gather, Kernel, Load, Loop, Mma, Param, Stmt, Store, TileRef, Vec, View
from ppuc.ir.text.fields import StepFields
from ppuc.ir.text.literals import DTYPE_NAMES, LiteralError, build_attrs, no_resources
from ppuc.ir.text.nodes import (
    BufferDecl,
    Index,
    KernelHeader,
    LoopLine,
    MmaLine,
    MoveLine,
    Opt,
    ParamDecl,
    Tile,
    Token,
    VecLine,
    VectorHeader,
)
from ppuc.ir.text.parse_graph import closest, memory, symbol_name, tensor_type
from ppuc.ir.text.reader import Line, Reader
from ppuc.ir.types import DType, TensorType
from ppuc.ir.vector import Step, VecParam, VectorProgram

Statement = Load | Store | Mma | Vec

_TERM = re.compile(r"([+-]?)\s*(?:([%$][A-Za-z0-9_.]+)(?:\s*\*\s*([0-9]+))?|([0-9]+))\s*")
_COMBINES = ("add", "mul", "max", "min")
_OPTIONS = {
    "load": ("pad", "gather"),
    "store": ("scatter", "combine"),
    "mma": ("start", "k_axes", "transpose_a", "transpose_b", "continues", "valid"),
    "vec": ("valid", "scalars"),
}


@functools.lru_cache(maxsize=4096)
def parse_affine(text: str) -> Affine:
    """The affine expression of a token."""
    const = 0
    terms: dict[str, int] = {}
    for sign, name, factor, number in _TERM.findall(text):
        amount = (-1 if sign == "-" else 1) * int(factor or number or 1)
        if name:
            key = name[1:] if name[0] == "%" else name
            terms[key] = terms.get(key, 0) + amount
        else:
            const += amount
    return affine(const, terms)


def element_type(reader: Reader, token: Token) -> DType:
    """The DType of a token. Raises TextError."""
    if token not in DTYPE_NAMES:
        reader.fail(token, f"unknown element type '{token}'", hint=closest(token, DTYPE_NAMES))
    return DType(str(token))


def static_type(reader: Reader, token: Token) -> TensorType:
    """A type without symbols, as tiles and views have. Raises TextError."""
    found = tensor_type(reader, token)
    if not found.is_static:
        reader.fail(token, f"{found} has unbound symbols", expected="integers")
    return found


class StatementReader:
    """Turns syntax into statements of one kernel. `tiles` are buffers or rings with their ranks; `loops` are the
    variables of open loops."""

    def __init__(self, reader: Reader, params: Iterable[str], tiles: dict[str, int]) -> None:
        self.reader = reader
        self.params = set(params)
        self.tiles = tiles
        self.loops: list[str] = []

    def statement(self, node: MoveLine | MmaLine | VecLine, extra: Sequence[str] = ()) -> tuple[Statement, list[Opt]]:
        """The statement, and its options with keys in `extra`."""
        kind = str(node.verb).split(".")[0]
        options: dict[str, Opt] = {}
        others: list[Opt] = []
        for opt in node.opts:
            if opt.key in extra and opt.form in ("ring", "counter"):
                others.append(opt)
            elif opt.key not in _OPTIONS[kind] or opt.form in ("ring", "counter"):
                known = ", ".join((*_OPTIONS[kind], *extra))
                self.reader.fail(opt.key, f"unknown option '{opt.key}' of {kind}", expected=known)
            elif opt.key in options:
                self.reader.fail(opt.key, f"option '{opt.key}' is given twice")
            else:
                options[str(opt.key)] = opt
        match node:
            case MoveLine():
                return self._load(node, options) if kind == "load" else self._store(node, options), others
            case MmaLine():
                return self._mma(node, options), others
            case VecLine():
                return self._vec(node, options), others
        raise TypeError(type(node).__name__)

    def _load(self, node: MoveLine, options: dict[str, Opt]) -> Load:
        dst, src = self.tile_name(node.buffer), self._param(node.param)
        pad = self._number(options.get("pad"), 0.0)
        return Load(dst, src, self._index(node.at, dst), pad, self._gather(options.get("gather")))

    def _store(self, node: MoveLine, options: dict[str, Opt]) -> Store:
        dst, src = self._param(node.param), self.tile_name(node.buffer)
        combine = ""
        if (opt := options.get("combine")) is not None:
            if opt.form != "word" or opt.value not in _COMBINES:
                self.reader.fail(opt.key, "option 'combine' has the wrong value", expected=", ".join(_COMBINES))
            combine = str(opt.value)
        return Store(dst, src, self._index(node.at, src), self._gather(options.get("scatter")), combine)

    def _mma(self, node: MmaLine, options: dict[str, Opt]) -> Mma:
        if (opt := options.get("start")) is None:
            self.reader.fail(node.verb, "mma needs option 'start'", expected="start = (%loop, ...), or start = ()")
        start = tuple(self._loop(item) for item in self._items(opt))
        k_axes = self._number(options.get("k_axes"), 1)
        if not isinstance(k_axes, int):
            self.reader.fail(options["k_axes"].key, "option 'k_axes' has the wrong value", expected="an integer")
        return Mma(
            self.tile_name(node.dst),
            self._tile(node.a),
            self._tile(node.b),
            start,
            k_axes,
            self._flag(options.get("transpose_a")),
            self._flag(options.get("transpose_b")),
            self._bounds(options.get("valid")),
            self._flag(options.get("continues")),
        )

    def _vec(self, node: VecLine, options: dict[str, Opt]) -> Vec:
        scalars = options.get("scalars")
        return Vec(
            symbol_name(node.program),
            tuple(self.tile_name(t) for t in node.outs),
            tuple(self.tile_name(t) for t in node.ins),
            self._bounds(options.get("valid")),
            () if scalars is None else tuple(self._affine(item) for item in self._items(scalars)),
        )

    def tile_name(self, token: Token) -> str:
        """The name of an existing tile. Raises TextError."""
        name = str(token[1:])
        if name not in self.tiles:
            self.reader.fail(token, f"{token} is not a buffer here", hint=closest(token, (f"%{t}" for t in self.tiles)))
        return name

    def _param(self, token: Token) -> str:
        name = str(token[1:])
        if name not in self.params:
            self.reader.fail(
                token, f"{token} is not a parameter here", hint=closest(token, (f"%{p}" for p in self.params))
            )
        return name

    def _loop(self, token: Token) -> str:
        if token[1:] not in self.loops:
            self.reader.fail(token, f"{token} is not a loop around this line", expected=self._known_loops())
        return str(token[1:])

    def _known_loops(self) -> str:
        return ", ".join(f"%{name}" for name in self.loops) or "no loop is open"

    def _affine(self, token: Token) -> Affine:
        if token.type != "AFFINE":
            self.reader.fail(token, f"'{token}' is not an affine expression")
        found = parse_affine(str(token))
        for name, _ in found.terms:
            if name[0] != "$" and name not in self.loops:
                self.reader.fail(token, f"%{name} is not a loop around this line", expected=self._known_loops())
        return found

    def _index(self, node: Index, tile: str) -> tuple[Affine, ...]:
        items = tuple(self._affine(token) for token in node.items)
        if node.exact or any(item.axes for item in items):
            return items
        if len(items) != self.tiles[tile]:
            self.reader.fail(
                node.token,
                f"{len(items)} indices for a tile of {self.tiles[tile]} axes (%{tile})",
                hint="write the tile axes out ($0, $1, ...), or [= ...] where no dimension moves with an axis",
            )
        return tuple(item + axis(d) for d, item in enumerate(items))

    def _tile(self, node: Tile) -> TileRef:
        name = self.tile_name(node.buffer)
        shape = tuple(int(s) for s in node.shape)
        if node.at is None:
            return TileRef(name, (), shape)
        return TileRef(name, tuple(self._affine(token) for token in node.at.items), shape)

    def _items(self, opt: Opt) -> tuple[Token, ...]:
        if opt.form != "items":
            self.reader.fail(opt.key, f"option '{opt.key}' has the wrong value", expected="a list in parentheses")
        items: tuple[Token, ...] = opt.value
        return items

    def _number(self, opt: Opt | None, default: Any) -> Any:
        if opt is None:
            return default
        if opt.form != "number":
            self.reader.fail(opt.key, f"option '{opt.key}' has the wrong value", expected="a number")
        text = str(opt.value)
        return int(text) if text.lstrip("-").isdigit() else float(text)

    def _flag(self, opt: Opt | None) -> bool:
        if opt is None:
            return False
        if opt.form != "word" or opt.value not in ("true", "false"):
            self.reader.fail(opt.key, f"option '{opt.key}' has the wrong value", expected="true or false")
        return bool(opt.value == "true")

    def _gather(self, opt: Opt | None) -> Gather | None:
        if opt is None:
            return None
        items = self._items(opt)
        if len(items) != 3 or not (items[0].isdigit() and items[1][0] == "%" and items[2].isdigit()):
            self.reader.fail(opt.key, f"option '{opt.key}' has the wrong value", expected="(dimension, %buffer, axis)")
        return Gather(int(items[0]), self.tile_name(items[1]), int(items[2]))

    def _bounds(self, opt: Opt | None) -> tuple[Bound | None, ...]:
        return () if opt is None else tuple(self._bound(item) for item in self._items(opt))

    def _bound(self, token: Token) -> Bound | None:
        if token.type == "WHOLE":
            return None
        if token.type != "BOUND":
            self.reader.fail(token, f"'{token}' is not a bound", expected="%m < 1000, or _")
        offset, limit = str(token).split("<")
        found = parse_affine(offset.strip())
        for name, _ in found.terms:
            if name not in self.loops:
                self.reader.fail(token, f"%{name} is not a loop around this line", expected=self._known_loops())
        return Bound(found, int(limit))


def read_kernel(reader: Reader, line: Line, node: KernelHeader) -> Kernel:
    """The kernel that starts at `line`."""
    params = read_params(reader, node.params)
    buffers: list[Buffer] = []
    statements = StatementReader(reader, (p.name for p in params), {})
    body = _read_body(reader, line, statements, buffers)
    return Kernel(symbol_name(node.name), read_grid(node), params, tuple(buffers), body, node.loc, int(node.first or 0))


def read_grid(node: KernelHeader) -> tuple[tuple[str, int], ...]:
    """The grid axes of a header."""
    return tuple((str(name), int(size)) for name, size in node.grid)


def read_params(reader: Reader, nodes: tuple[ParamDecl, ...]) -> tuple[Param, ...]:
    """The parameters of a header, each name once."""
    params: dict[str, Param] = {}
    for node in nodes:
        name = str(node.name[1:])
        if name in params:
            reader.fail(node.name, f"{node.name} is defined twice")
        type = static_type(reader, node.type)
        view = View.contiguous(type.dims)
        if node.strides is not None:
            strides, offset = node.strides
            view = View(type.dims, tuple(int(s) for s in strides), int(offset))
        tensor = name if node.tensor is None else str(node.tensor[1:])
        params[name] = Param(name, tensor, type.dtype, view, memory(reader, node.space), node.written)
    return tuple(params.values())


def _read_body(reader: Reader, line: Line, statements: StatementReader, buffers: list[Buffer]) -> tuple[Stmt, ...]:
    body: list[Stmt] = []
    for inner in reader.block(line):
        node = reader.parse(inner, "kernel_line")
        match node:
            case BufferDecl():
                _define_buffer(reader, node, statements, buffers)
            case LoopLine():
                over = None if node.over is None else str(node.over)
                var = enter_loop(statements, node)
                inside = _read_body(reader, inner, statements, buffers)
                statements.loops.pop()
                body.append(Loop(var, node.stop, node.step, inside, over, node.start))
            case _:
                if "." in node.verb:
                    reader.fail(node.verb, f"'{node.verb}' is an instruction", expected=node.verb.split(".")[0])
                body.append(statements.statement(node)[0])
    return tuple(body)


def enter_loop(statements: StatementReader, node: LoopLine) -> str:
    """Open a loop and return its variable. Raises TextError for a step that never ends or a variable in use."""
    var = str(node.var[1:])
    if var in statements.loops:
        statements.reader.fail(node.var, f"{node.var} is already a loop around this line")
    if node.step < 1:
        statements.reader.fail(node.var, f"loop {node.var} never ends", got=f"step {node.step}", expected="at least 1")
    statements.loops.append(var)
    return var


def _define_buffer(reader: Reader, node: BufferDecl, statements: StatementReader, buffers: list[Buffer]) -> None:
    name = str(node.name[1:])
    if name in statements.tiles or name in statements.params:
        reader.fail(node.name, f"{node.name} is defined twice")
    type = static_type(reader, node.type)
    statements.tiles[name] = type.rank
    buffers.append(Buffer(name, type.dtype, type.dims, memory(reader, node.space), node.depth))


def read_vector(reader: Reader, line: Line, node: VectorHeader) -> VectorProgram:
    """The vector program that starts at `line`."""
    params: dict[str, VecParam] = {}
    for whole, token, dtype in node.params:
        if token[1:] in params:
            reader.fail(token, f"{token} is defined twice")
        params[str(token[1:])] = VecParam(str(token[1:]), element_type(reader, dtype), whole)
    results = tuple((token, element_type(reader, dtype)) for token, dtype in node.results)
    known = set(params)
    steps: list[Step] = []
    for inner in reader.block(line):
        step = _read_step(reader, reader.parse(inner, "vector_line"), known)
        known.add(step.result)
        steps.append(step)
    for token, _ in results:
        if token[1:] not in known:
            reader.fail(token, f"{token} is not defined in this program", line=line)
    shown = tuple((str(token[1:]), dtype) for token, dtype in results)
    return VectorProgram(symbol_name(node.name), tuple(params.values()), shown, tuple(steps))


def _read_step(reader: Reader, node: Any, known: set[str]) -> Step:
    for token in node.args:
        if token[1:] not in known:
            reader.fail(
                token, f"{token} is not defined before this line", hint=closest(token, (f"%{n}" for n in known))
            )
    if node.result[1:] in known:
        reader.fail(node.result, f"{node.result} is defined twice")
    try:
        fields = build_attrs(StepFields, node.attrs, no_resources, node.op, f"step '{node.op}'")
    except LiteralError as error:
        reader.fail(error.token, error.what, got=error.got, expected=error.expected)
    args = tuple(str(token[1:]) for token in node.args)
    return Step(str(node.result[1:]), str(node.op), args, fields.ints, fields.number, fields.dtype)

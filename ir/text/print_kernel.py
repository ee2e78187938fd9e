"""Prints kernels and vector programs.

Indexing has three written forms: `%x[%m, %k]` where dimension d moves with tile axis d (the usual box; only the part
that loops contribute is written), `%x[%m + $1, %k + $0]` with explicit tile axes, and `%x[= %m, 0]` where no dimension
moves with any axis.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from ppuc.ir.affine import Affine
from ppuc.ir.kernel import Bound, Buffer, Gather, Kernel, Load, Loop, Mma, Param, Stmt, Store, TileRef, Vec
from ppuc.ir.program import KernelProgram
from ppuc.ir.text.fields import StepFields
from ppuc.ir.text.layout import header_lines
from ppuc.ir.text.literals import format_attrs, format_number, quote, symbol
from ppuc.ir.types import TensorType
from ppuc.ir.vector import Step, VecParam, VectorProgram


def format_loc(loc: tuple[str, ...]) -> str:
    """` loc("a", "b")` with a leading space; empty if unknown."""
    return f" loc({', '.join(map(quote, loc))})" if loc else ""


def print_kernel(kernel: Kernel) -> str:
    """A kernel; ends in a newline."""
    lines = kernel_header(kernel, "")
    lines += [f"  {_buffer(b)}" for b in kernel.buffers]
    ranks = {b.name: len(b.shape) for b in kernel.buffers}
    lines += _statements(kernel.body, ranks, "  ")
    return "\n".join([*lines, "}", ""])


def kernel_header(kernel: Kernel | KernelProgram, indent: str) -> list[str]:
    """The header of a kernel or of its program."""
    axes = ", ".join(f"{axis} = {size}" for axis, size in kernel.grid)
    first = f", first = {kernel.first}" if kernel.first else ""
    start = f"{indent}kernel {symbol(kernel.name)} {{grid = ({axes}){first}}}("
    return header_lines(start, [_param(p) for p in kernel.params], f"){format_loc(kernel.loc)} {{")


def _param(param: Param) -> str:
    view = param.view
    text = f"{'out ' if param.written else ''}%{param.name}: {TensorType(param.dtype, view.shape)} @{param.space}"
    if not view.is_contiguous:
        text += f" strides [{', '.join(map(str, view.strides))}] offset {view.offset}"
    return text if param.tensor == param.name else f"{text} of %{param.tensor}"


def _buffer(buffer: Buffer) -> str:
    return f"%{buffer.name}: {TensorType(buffer.dtype, buffer.shape)} @{buffer.space} ring {buffer.depth}"


def _statements(body: tuple[Stmt, ...], ranks: Mapping[str, int], indent: str) -> Iterator[str]:
    for stmt in body:
        if isinstance(stmt, Loop):
            yield indent + format_loop(stmt.var, stmt.start, stmt.stop, stmt.step, stmt.over)
            yield from _statements(stmt.body, ranks, indent + "  ")
            yield indent + "}"
        else:
            yield indent + print_statement(stmt, ranks)


def format_loop(var: str, start: int, stop: int, step: int, over: str | None) -> str:
    """The opening line of a loop of a kernel or a stream."""
    return f"for %{var} in {start}..{stop} step {step}{f' over {over}' if over is not None else ''} {{"


def print_statement(stmt: Load | Store | Mma | Vec, ranks: Mapping[str, int]) -> str:
    """One tile statement; `ranks` gives the tile rank of each buffer."""
    verb = type(stmt).__name__.lower()
    return format_statement(verb, stmt, ranks, ())


def format_statement(verb: str, stmt: Load | Store | Mma | Vec, ranks: Mapping[str, int], more: tuple[str, ...]) -> str:
    """`verb` and the statement, with `more` entries appended in its braces."""
    match stmt:
        case Load():
            head = f"%{stmt.dst} <- %{stmt.src}{_index(stmt.index, ranks.get(stmt.dst))}"
        case Store():
            head = f"%{stmt.dst}{_index(stmt.index, ranks.get(stmt.src))} <- %{stmt.src}"
        case Mma():
            head = f"%{stmt.dst} <- {_tile(stmt.a)}, {_tile(stmt.b)}"
        case Vec():
            head = f"{_names(stmt.outs)} <- {symbol(stmt.program)}({_names(stmt.ins)})"
    opts = [*_options(stmt), *more]
    return f"{verb} {head}" + (f" {{{', '.join(opts)}}}" if opts else "")


def _options(stmt: Load | Store | Mma | Vec) -> Iterator[str]:
    match stmt:
        case Load():
            if format_number(stmt.pad) not in ("0.0", "0"):
                yield f"pad = {format_number(stmt.pad)}"
            if stmt.gather is not None:
                yield f"gather = {_gather(stmt.gather)}"
        case Store():
            if stmt.scatter is not None:
                yield f"scatter = {_gather(stmt.scatter)}"
            if stmt.combine:
                yield f"combine = {stmt.combine}"
        case Mma():
            yield f"start = ({_names(stmt.start)})"
            if stmt.k_axes != 1:
                yield f"k_axes = {stmt.k_axes}"
            yield from (f"{flag} = true" for flag in ("transpose_a", "transpose_b", "continues") if getattr(stmt, flag))
            yield from _valid(stmt.valid)
        case Vec():
            yield from _valid(stmt.valid)
            if stmt.scalars:
                yield f"scalars = ({', '.join(map(affine_text, stmt.scalars))})"


def _valid(bounds: tuple[Bound | None, ...]) -> Iterator[str]:
    if bounds:
        shown = ["_" if b is None else f"{affine_text(b.offset)} < {b.limit}" for b in bounds]
        yield f"valid = ({', '.join(shown)})"


def _gather(gather: Gather) -> str:
    return f"({gather.dim}, %{gather.buffer}, {gather.axis})"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join([f"%{n}" for n in names])


@functools.lru_cache(maxsize=4096)
def affine_text(expression: Affine) -> str:
    """The text of an affine expression."""
    return str(expression)


@functools.lru_cache(maxsize=4096)
def _index(index: tuple[Affine, ...], rank: int | None) -> str:
    if len(index) == rank and all(a.axes == ((d, 1),) for d, a in enumerate(index)):
        return f"[{', '.join(affine_text(a.loops) for a in index)}]"
    explicit = ", ".join(map(affine_text, index))
    return f"[{explicit}]" if any(a.axes for a in index) else f"[= {explicit}]"


def _tile(tile: TileRef) -> str:
    index = f"[{', '.join(map(affine_text, tile.index))}]" if tile.index else ""
    shape = f" as [{', '.join(map(str, tile.shape))}]" if tile.index or tile.shape else ""
    return f"%{tile.buffer}{index}{shape}"


def print_vector(vector: VectorProgram) -> str:
    """A vector program; ends in a newline."""
    params = ", ".join(map(_vec_param, vector.params))
    results = ", ".join(f"%{name}: {dtype}" for name, dtype in vector.results)
    lines = [f"vector {symbol(vector.name)}({params}) -> ({results}) {{"]
    lines += [f"  {print_step(s)}" for s in vector.steps]
    return "\n".join([*lines, "}", ""])


def _vec_param(param: VecParam) -> str:
    return f"{'whole ' if param.whole else ''}%{param.name}: {param.dtype}"


def print_step(step: Step) -> str:
    """One step on one line."""
    number = int(step.number) if isinstance(step.number, bool) else step.number
    attrs = format_attrs(StepFields(step.ints, number, step.dtype), skip_defaults=True)
    return f"%{step.result} = {step.op}({_names(step.args)}){attrs}"

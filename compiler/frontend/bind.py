"""Binds every dimension of a model's inputs to a size.

A dimension is a number, a symbol (`batch`, bound everywhere at once), an expression (`past + 1`), or unnamed. A single
dimension is addressed as `input:axis`. Sizes come from `dims` (the command line's `--dim`) and from `shapes` (of given
arrays).

Exporters reuse one symbol for unrelated axes, so the size of a single axis takes precedence over that of its symbol.

Invariant: after `bind_inputs`, all shapes are numbers; a symbol bound by `dims` has that size everywhere except at axes
that `dims` bind individually.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import onnx

from ppuc.compiler.frontend.place import input_place
from ppuc.compiler.frontend.source import ModelSource, read_source
from ppuc.compiler.frontend.tensors import ONNX_DTYPES, dtype_of
from ppuc.ir.errors import Entity, EntityKind, ModelError, UsageError
from ppuc.ir.types import DType, TensorType

Declared = int | str | None
"""A declared dimension: a size, a symbol, or nothing."""

_NAMELESS = frozenset({"", "?", "-1", "None"})


@dataclass(frozen=True, slots=True)
class InputDecl:
    """An input as declared. `shape` is None if its rank is unknown."""

    name: str
    dtype: DType
    shape: tuple[Declared, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of unknown rank"
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def declared_inputs(infos: Sequence[onnx.ValueInfoProto], where: str) -> tuple[InputDecl, ...]:
    """Read the declarations. Raises ModelError for inputs that are not dense tensors of numbers."""
    declarations: dict[str, InputDecl] = {}
    for info in infos:
        place = input_place(where, info.name)
        if info.name in declarations:
            raise place.error("it is declared twice")
        kind = info.type.WhichOneof("value")
        if kind != "tensor_type":
            what = f"its type is {(kind or 'missing').removesuffix('_type')}"
            raise place.error(what, expected="a dense tensor")
        tensor = info.type.tensor_type
        shape = tuple(map(_declared, tensor.shape.dim)) if tensor.HasField("shape") else None
        declarations[info.name] = InputDecl(info.name, dtype_of(tensor.elem_type, place), shape)
    return tuple(declarations.values())


def _declared(dim: onnx.TensorShapeProto.Dimension) -> Declared:
    """The declared dimension. Some exporters write unknown sizes as -1, or give all of them the same name."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param if dim.dim_param not in _NAMELESS else None


def bind_inputs(
    inputs: Sequence[InputDecl], dims: Mapping[str, int], shapes: Mapping[str, Sequence[int]], where: str
) -> tuple[tuple[TensorType, ...], dict[str, int]]:
    """Types of the inputs with all dimensions bound, and the size of each symbol that has one. Raises UsageError if
    `dims` or `shapes` name something unknown or contradict the model, ModelError if dimensions remain unbound."""
    binding = _Binding(inputs, where)
    for key, size in dims.items():
        binding.bind_key(key, size)
    for name, shape in shapes.items():
        binding.bind_shape(name, shape)
    types = binding.types()
    return types, {symbol: size for symbol, size in binding.symbols.items() if symbol not in binding.ambiguous}


class _Binding:
    """Bindings so far: sizes of symbols, and of single axes of inputs."""

    def __init__(self, inputs: Sequence[InputDecl], where: str) -> None:
        self.inputs = {i.name: i for i in inputs}
        self.where = where
        self.symbols: dict[str, int] = {}
        self.axes: dict[tuple[str, int], int] = {}
        self.ambiguous: set[str] = set()
        self.decided: set[str] = set()
        self.decided_axes: set[tuple[str, int]] = set()

    def bind_key(self, key: str, size: int) -> None:
        """`N`, `input:axis`, or `input` when exactly one of its dimensions is unnamed."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            self._refuse(f"the size of dimension '{key}' must be a whole number", _dimension(key), got=size)
        declared = [d for i in self.inputs.values() for d in i.shape or ()]
        if key in declared:
            self.symbols[key] = size
            self.decided.add(key)
            return
        name, _, axis = key.rpartition(":")
        if name in self.inputs and axis.isdigit():
            self.decided_axes.add((name, int(axis)))
            self._bind_axis(name, int(axis), size)
            return
        unnamed = [n for n, d in enumerate(self._shape(key)) if d is None]
        if len(unnamed) != 1:
            self._unknown_dim(key)
        self._bind_axis(key, unnamed[0], size)

    def bind_shape(self, name: str, shape: Sequence[int]) -> None:
        """The whole shape of one input."""
        if name not in self.inputs:
            self._refuse(f"the model has no input '{name}'", _input(name), expected=self._one_of(self.inputs))
        declared = self.inputs[name].shape
        if declared is not None and len(declared) != len(shape):
            self._misfit(name, list(shape))
        for axis, size in enumerate(shape):
            self._bind_axis(name, axis, int(size))

    def types(self) -> tuple[TensorType, ...]:
        """The bound types. Raises one error that names every unbound dimension."""
        bound = [(i, [self._size(i, axis) for axis in range(self._rank(i))]) for i in self.inputs.values()]
        unbound = [i for i, sizes in bound if None in sizes or (i.shape is None and not sizes)]
        if unbound:
            options = dict.fromkeys(o for i in unbound for o in self._options(i))
            keys = dict.fromkeys(k for i in unbound for k in self._open_keys(i))
            raise ModelError.of(
                self.where,
                "dimensions of the inputs are not fixed",
                got="; ".join(map(str, unbound)),
                expected="a size for each",
                hint=f"add {' '.join(options)}",
                entities=(*(_input(i.name) for i in unbound), *map(_dimension, keys)),
            )
        return tuple(TensorType(i.dtype, tuple(s for s in sizes if s is not None)) for i, sizes in bound)

    def _shape(self, name: str) -> tuple[Declared, ...]:
        return (self.inputs[name].shape or ()) if name in self.inputs else ()

    def _rank(self, declaration: InputDecl) -> int:
        """The rank, taken from the bound axes if undeclared."""
        if declaration.shape is not None:
            return len(declaration.shape)
        return 1 + max((axis for name, axis in self.axes if name == declaration.name), default=-1)

    def _size(self, declaration: InputDecl, axis: int) -> int | None:
        declared = declaration.shape[axis] if declaration.shape is not None else None
        if isinstance(declared, int):
            return declared
        if (declaration.name, axis) in self.axes or declared is None:
            return self.axes.get((declaration.name, axis))
        return self.symbols.get(declared, _evaluate(declared, self.symbols))

    def _bind_axis(self, name: str, axis: int, size: int) -> None:
        shape = self.inputs[name].shape
        if shape is not None and axis >= len(shape):
            self._unknown_dim(f"{name}:{axis}")
        declared = shape[axis] if shape is not None else None
        if isinstance(declared, str) and self.symbols.setdefault(declared, size) != size:
            self._check_decided(declared, name, axis, size)
            self.ambiguous.add(declared)
        if (isinstance(declared, int) and declared != size) or self.axes.get((name, axis), size) != size:
            self._misfit(name, f"{size} for axis {axis}")
        self.axes[name, axis] = size

    def _check_decided(self, symbol: str, name: str, axis: int, size: int) -> None:
        """Raise UsageError if an array's `size` contradicts one given by name."""
        if symbol in self.decided and (name, axis) not in self.decided_axes:
            self._refuse(
                f"dimension '{symbol}' has two sizes",
                _dimension(symbol),
                _input(name),
                got=f"{self.symbols[symbol]}, and {size} from axis {axis} of input '{name}'",
                hint=f"where '{symbol}' means different things, add --dim {name}:{axis}={size}",
            )

    def _options(self, declaration: InputDecl) -> list[str]:
        """The options that would bind the open dimensions of one input."""
        if declaration.shape is None:
            return [f"--dim {declaration.name}:0=... (and so on, one for each axis)"]
        return [f"--dim {_quoted(key)}=..." for key in self._open_keys(declaration)]

    def _open_keys(self, declaration: InputDecl) -> list[str]:
        """The `--dim` keys of the open dimensions of one input; empty for an input of unknown rank."""
        open_axes = [(a, d) for a, d in enumerate(declaration.shape or ()) if self._size(declaration, a) is None]
        return [str(d or f"{declaration.name}:{a}") for a, d in open_axes]

    def _misfit(self, name: str, got: object) -> NoReturn:
        self._refuse(f"the size does not fit input '{name}'", _input(name), got=got, expected=self.inputs[name])

    def _unknown_dim(self, key: str) -> NoReturn:
        open_dims: dict[str, None] = {}
        for declaration in self.inputs.values():
            for axis, dim in enumerate(declaration.shape or ()):
                if not isinstance(dim, int):
                    open_dims[dim or f"{declaration.name}:{axis}"] = None
        expected = self._one_of(open_dims)
        self._refuse(f"the model has no open dimension '{key}'", _dimension(key), expected=expected)

    def _refuse(
        self, what: str, *about: Entity, got: object = None, expected: object = None, hint: str | None = None
    ) -> NoReturn:
        """Raise UsageError about the given option or array."""
        raise UsageError.of(self.where, what, got=got, expected=expected, hint=hint, entities=about)

    @staticmethod
    def _one_of(names: Mapping[str, object]) -> str:
        return f"one of {', '.join(names)}" if names else "none: all are fixed"


def _dimension(key: str) -> Entity:
    return Entity(EntityKind.DIMENSION, key)


def _input(name: str) -> Entity:
    return Entity(EntityKind.INPUT, name)


def _quoted(symbol: str) -> str:
    """The symbol quoted for the shell."""
    return f"'{symbol}'" if " " in symbol else symbol


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def _evaluate(text: str, symbols: Mapping[str, int]) -> int | None:
    """The value of an expression such as `past + 1`; None if it is malformed or has unbound symbols."""

    def value(node: ast.expr) -> int | None:
        if isinstance(node, ast.Name):
            return symbols.get(node.id)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if left is None or right is None or (isinstance(node.op, ast.FloorDiv) and right == 0):
                return None
            return int(_OPERATORS[type(node.op)](left, right))
        return None

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def declarations_of(source: ModelSource, *, overridable: bool = False) -> tuple[InputDecl, ...]:
    """The declared inputs of a model; with `overridable`, including those that are also initializers."""
    read = read_source(source)
    read = read.overridden(read.overridable) if overridable else read
    return declared_inputs(read.inputs, read.where)


def default_types(source: ModelSource) -> dict[str, TensorType]:
    """The types of a model's initializers that are also inputs, by name; of numbers only."""
    given = {n: (ONNX_DTYPES.get(t.data_type), tuple(t.dims)) for n, t in read_source(source).overridable.items()}
    return {name: TensorType(dtype, dims) for name, (dtype, dims) in given.items() if dtype is not None}

"""Changes the batch size of a model that was exported for a fixed one: ONNX in, ONNX out.

Invariant: unless the check is disabled, ONNX Runtime finds the same for every sample as in the original model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ppuc.compiler.frontend.conformance.check import conforming
from ppuc.compiler.frontend.expose import model_copy
from ppuc.compiler.frontend.place import input_place
from ppuc.compiler.inputs import InputSpec, generate
from ppuc.compiler.simplify.batch_axis import Place, Shape
from ppuc.compiler.simplify.check import informative_inputs, tolerance
from ppuc.compiler.simplify.convert import bind, fix_defaults, inputs_of, read_model
from ppuc.compiler.simplify.driver import fold_model
from ppuc.compiler.simplify.follow_batch import Change, Follower
from ppuc.compiler.validation.compare import Comparison
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.values import compare_values
from ppuc.ir.errors import UsageError
from ppuc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True)
class Rebatched:
    """`inputs` and `outputs` hold a batch (axis by name); `comparisons` has one entry per output, None without a
    check."""

    model: onnx.ModelProto
    before: int
    after: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    changes: tuple[Change, ...]
    comparisons: tuple[Comparison, ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether all comparisons, if any, passed."""
        return all(c.ok for c in self.comparisons or ())


def rebatch(
    source: str | Path | onnx.ModelProto,
    batch: int,
    inputs: Mapping[str, int] | None = None,
    dims: Mapping[str, int] | None = None,
    *,
    verify: bool = True,
    seed: int = 0,
) -> Rebatched:
    """The model for `batch` samples. `inputs` maps the inputs that hold samples to the axis of the batch (default: axis
    0 of all whose first axis is as long as that of the first input). `dims` fixes open dimensions before.

    Raises UsageError for unknown inputs and dimensions, and ModelError where a node cannot take another number of
    samples."""
    where = str(source) if isinstance(source, str | Path) else source.graph.name or "model"
    conforming(source)
    model = read_model(source)
    fix_defaults(model)
    bind(model, dims or {}, where)
    original = fold_model(model, where)
    shapes = _input_shapes(original, where)
    chosen = _chosen(shapes, inputs, where)
    before = {shapes[name][axis] for name, axis in chosen.items()}
    if len(before) > 1:
        raise UsageError.of(
            where,
            "the inputs have batches of different sizes",
            got=", ".join(f"{name}: {shapes[name][axis]}" for name, axis in chosen.items()),
            hint="name those with samples: --input image",
        )
    (old,) = before
    if not old:
        raise UsageError.of(
            where, "its batch is empty", got=", ".join(chosen), hint="name inputs with samples: --input"
        )
    if old == batch:
        raise UsageError.of(where, f"the batch is {old} already", got=f"--batch {batch}", expected="another size")
    follower = Follower(model_copy(original), where, old, batch)
    result = follower.follow(chosen)
    rebatched = Rebatched(
        result,
        old,
        batch,
        chosen,
        {o.name: follower.places[o.name].axis for o in result.graph.output if o.name in follower.places},
        tuple(follower.changes),
    )
    if not verify:
        return rebatched
    return replace(rebatched, comparisons=_compared(original, rebatched, follower.places, seed))


def _input_shapes(model: onnx.ModelProto, where: str) -> dict[str, Shape]:
    """Shapes by input. Raises ModelError for an open dimension, or an input that is not a tensor."""
    shapes = {}
    for info in inputs_of(model):
        tensor = info.type.tensor_type
        dims = tensor.shape.dim
        if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise input_place(where, info.name).error("has no shape", expected="a tensor of known sizes")
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                key = dim.dim_param or f"{info.name}:{axis}"
                raise input_place(where, info.name).error(
                    f"has an open dimension '{key}'",
                    expected="a fixed size",
                    hint=f"compile takes an open batch as it is (--dim {key}=8); fix others here (--dim {key}=...)",
                )
        shapes[info.name] = tuple(int(d.dim_value) for d in dims)
    return shapes


def _chosen(shapes: Mapping[str, Shape], asked: Mapping[str, int] | None, where: str) -> dict[str, int]:
    """The inputs that hold samples, and the axis of the batch."""
    if not asked:
        sizes = [shape[0] for shape in shapes.values() if shape]
        found = {name: 0 for name, shape in shapes.items() if shape and shape[0] == sizes[0]}
        if not found:
            raise UsageError.of(where, "has no input with a batch", expected="an input of one axis at least")
        return found
    for name, axis in asked.items():
        if name not in shapes:
            raise UsageError.of(
                "--input", f"the model has no input '{name}'", got=name, expected=", ".join(shapes), hint="see inspect"
            )
        if not 0 <= axis < len(shapes[name]):
            raise UsageError.of(
                "--input", f"'{name}' has no axis {axis}", got=axis, expected=f"an axis of {list(shapes[name])}"
            )
    return dict(asked)


# The check


def _compared(
    original: onnx.ModelProto, result: Rebatched, places: Mapping[str, Place], seed: int
) -> tuple[Comparison, ...]:
    """Compare every sample with what the original makes of it, on random inputs."""
    oracle = Oracle(original)
    runs = list(_runs(original, result, oracle, seed))
    feeds = {name: _stacked([feeds[name] for feeds, _ in runs], result, places.get(name)) for name in runs[0][0]}
    got = Oracle(result.model).run(feeds)
    return tuple(
        c
        for name in got
        for c in compare_values(
            name, got[name], _stacked([found[name] for _, found in runs], result, places.get(name)), tolerance
        )
    )


def _runs(
    original: onnx.ModelProto, result: Rebatched, oracle: Oracle, seed: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Inputs and results of the original, as many as make up the new batch. Inputs without samples stay the same."""
    specs = [InputSpec(i.name, _tensor_type(i)) for i in inputs_of(original)]
    shared: dict[str, np.ndarray] = {}
    for index in range(-(-result.after // result.before)):
        drawn = {s.name: generate(s, "random", seed + index) for s in specs}
        if index == 0:
            drawn, found = informative_inputs(oracle, drawn)
            shared = {n: a for n, a in drawn.items() if n not in result.inputs}
        else:
            drawn = drawn | shared
            found = oracle.run(drawn)
        yield drawn, found


def _tensor_type(info: onnx.ValueInfoProto) -> TensorType:
    tensor = info.type.tensor_type
    dtype = DType.of(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorType(dtype, tuple(int(d.dim_value) for d in tensor.shape.dim))


def _stacked(arrays: Collection[np.ndarray], result: Rebatched, place: Place | None) -> np.ndarray:
    """The samples of several small batches as one."""
    first, *_ = arrays
    if place is None:
        return first
    samples = np.concatenate([place.samples(a, result.before) for a in arrays])
    return place.joined(samples[: result.after])


__all__ = ["Rebatched", "rebatch"]

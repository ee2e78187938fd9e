"""Inputs of each part of a hosted model, from inputs of the whole model.

Invariant: PPU parts are computed by their imported graphs in the graphs' own formats, everything else by the host, so a
part's inputs do not depend on how any part is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppuc.compiler.frontend.offload.deferred import of_elements
from ppuc.compiler.frontend.offload.hosting import PREFIX, HostTensor
from ppuc.compiler.frontend.offload.load_hosted import HostedModel
from ppuc.compiler.host.client import HostWorker
from ppuc.compiler.host.partition import DeferredPart, HostPart, Part
from ppuc.compiler.inputs import InputSpec, input_ranges, out_of_range
from ppuc.compiler.quantization.data import Data, check_not_zero
from ppuc.ir.errors import UsageError
from ppuc.ir.graph import Graph
from ppuc.ir.interpret import OutOfRangeError, run_graph

Feeds = dict[str, np.ndarray]


def host_held(hosted: HostedModel) -> tuple[str, ...]:
    """ONNX names of the inputs that only the host can hold."""
    return tuple(name for name, operand in hosted.inputs if isinstance(operand, HostTensor))


def input_specs_of(hosted: HostedModel) -> tuple[InputSpec, ...]:
    """The inputs that the PPU can hold, in the model's order."""
    ranges = input_ranges(hosted.graph)
    return tuple(
        InputSpec(name, operand.type, ranges.get(operand.name, 2))
        for name, operand in hosted.inputs
        if not isinstance(operand, HostTensor)
    )


def feeds_of_parts(
    hosted: HostedModel, parts: Sequence[Part], inputs: Mapping[str, Any], worker: HostWorker
) -> list[Feeds]:
    """For each PPU part, in order, its parameter values when the model's inputs are `inputs`, by ONNX name. Raises
    HostError if the host cannot compute its part."""
    return values_of_parts(hosted, parts, inputs, worker)[0]


def values_of_parts(
    hosted: HostedModel,
    parts: Sequence[Part],
    inputs: Mapping[str, Any],
    worker: HostWorker,
    graphs: Sequence[Graph] | None = None,
) -> tuple[list[Feeds], dict[str, Any]]:
    """As `feeds_of_parts`, plus all tensors passed between parts and the outputs, by name. `graphs` replace those of
    the PPU parts, with parameters and results matched by position. Raises HostError, and InputError for indices out of
    range."""
    held: dict[str, Any] = {operand.name: inputs[name] for name, operand in hosted.inputs}
    given: list[Feeds] = []
    for part in parts:
        if isinstance(part, HostPart):
            where = f"{hosted.name}: nodes {', '.join(n.label for n in part.nodes[:4])}"
            feeds = {PREFIX + i.name: held[i.name] for i in part.inputs}
            model = of_elements(part.model, feeds) if isinstance(part, DeferredPart) else part.model
            held |= dict(zip((o.name for o in part.outputs), worker.run(model, feeds, where), strict=True))
        else:
            graph = part.graph if graphs is None else graphs[len(given)]
            given.append({p.name: held[p.name] for p in part.graph.params})
            feeds = {p.name: held[own.name] for p, own in zip(graph.params, part.graph.params, strict=True)}
            try:
                results = run_graph(graph, feeds)
            except OutOfRangeError as error:
                names = {operand.name: name for name, operand in hosted.inputs}
                raise out_of_range(error, graph, names, hosted.name) from error
            held |= {own.name: results[r.name] for r, own in zip(graph.results, part.graph.results, strict=True)}
    return given, held


def samples_of_parts(hosted: HostedModel, data: Data) -> list[Feeds]:
    """All samples of `data`, by ONNX name. Raises InputError, and UsageError for inputs that samples cannot hold."""
    if foreign := host_held(hosted):
        raise UsageError.of(
            "--calibrate",
            f"input '{foreign[0]}' is of a type that samples cannot hold",
            got=dict(hosted.inputs)[foreign[0]],
            hint="leave it out: the scales of activations are then computed at run time",
        )
    samples = [dict(sample) for sample in data.samples(input_specs_of(hosted), hosted.fixed)]
    check_not_zero(samples, data.where)
    return samples


__all__ = ["feeds_of_parts", "host_held", "input_specs_of", "samples_of_parts", "values_of_parts"]

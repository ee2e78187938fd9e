"""Random whole graphs, both typical and atypical of exporters.

Invariant: a seed gives the same graph and the same inputs every time; their values are such that any correct program
agrees with them (`tests.property.growing_graph` takes back what is badly conditioned).
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from tests.property import (  # noqa: F401 - they register their layers, in this order
    layers_arithmetic,
    layers_blocks,
    layers_movement,
    layers_stored,
)
from tests.property.graph_layers import LAYERS
from tests.property.growing_graph import RandomGraph
from tests.support.pass_graphs import module_of

FAVOURED = 8
"""Kinds of layers that one graph has more of than others."""


def generate(seed: int, layers: int = 14, noise: float = 0.0) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph of a seed and its inputs by parameter name. `noise` is the relative error of a format narrower than
    those of the graph that it is to be compiled in."""
    g = RandomGraph(seed, noise)
    names, shares = list(LAYERS), np.array([share for share, _ in LAYERS.values()], np.float64)
    favoured = g.rng.permutation(len(names))[:FAVOURED]
    shares[favoured] *= 4
    g.parameter(g.shape(g.integer(1, 4)))
    grown = 0
    for _ in range(6 * layers):
        grown += g.grow(LAYERS[names[int(g.rng.choice(len(names), p=shares / shares.sum()))]][1])
        if grown == layers:
            break
    return g.graph(*g.outputs()), g.inputs


def module_of_seed(
    seed: int, layers: int = 14, noise: float = 0.0, **options: str
) -> tuple[Module, dict[str, np.ndarray]]:
    """A module around the graph of a seed, and its inputs."""
    graph, inputs = generate(seed, layers, noise)
    return module_of(graph, **options), inputs

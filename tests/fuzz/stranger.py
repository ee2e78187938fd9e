"""Random models as somebody else would write a generator: any op of the supported ones as often as any other, with
operands that the graph computes, graphs in graphs, many types, and tensors without elements or axes."""

from __future__ import annotations

import random

import numpy as np

from tests.fuzz.stranger_graphs import GRAPHS
from tests.fuzz.stranger_layers import STEERED
from tests.fuzz.trial_model import BOOL, F16, F32, I64, Made, TrialModel, accepted
from tests.fuzz.trial_moves import MOVES
from tests.fuzz.trial_structure import any_op
from tests.fuzz.trial_values import VALUES

OPSETS = tuple(range(13, 22))
DTYPES = (F32, F32, F32, F16, I64, BOOL, *(np.dtype(t) for t in (np.int32, np.int8, np.uint8)))
SIZES = (1, 1, 2, 2, 3, 4, 5, 6, 7, 9, 13, 31)
COMMON = 1 / 4
"""Share of the layers that trial models have, too."""
LAYERS = {layer: COMMON * share for layer, share in (VALUES | MOVES).items()} | STEERED | GRAPHS | {any_op: 12.0}


def model_of_seed(seed: int, layers: int = 12) -> Made:
    """The model of a seed."""
    source = random.Random(f"stranger{seed}")
    return accepted("stranger", lambda: _begun(source), LAYERS, layers)


def _begun(source: random.Random) -> TrialModel:
    """A model without nodes."""
    m = TrialModel(source, source.choice(OPSETS))
    m.input(source.choice((F32, F32, F32, F16)), _shape(source))
    for _ in range(source.randint(1, 3)):
        m.input(source.choice(DTYPES), _shape(source))
    return m


def _shape(source: random.Random) -> list[int]:
    dims = [source.choice(SIZES) for _ in range(source.choice((0, 1, 1, 2, 2, 3, 3, 4, 4, 5)))]
    while np.prod(dims) > 3000:
        dims[dims.index(max(dims))] = source.choice(SIZES[:5])
    return dims

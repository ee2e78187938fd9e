"""Random models by trial: what ONNX Runtime accepts of random nodes, with all that a file may have besides."""

from __future__ import annotations

import random

import numpy as np

from tests.fuzz.trial_model import BOOL, F16, F32, I64, Made, TrialModel, accepted
from tests.fuzz.trial_moves import MOVES
from tests.fuzz.trial_structure import STRUCTURE
from tests.fuzz.trial_values import VALUES

OPSETS = (13, 15, 17, 18, 19, 20, 21, 22, 23)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 33)
LAYERS = VALUES | MOVES | STRUCTURE


def model_of_seed(seed: int, layers: int = 12) -> Made:
    """The model of a seed."""
    source = random.Random(f"trial{seed}")
    return accepted("trial", lambda: _begun(source), LAYERS, layers)


def _begun(source: random.Random) -> TrialModel:
    """A model without nodes."""
    m = TrialModel(source, source.choice(OPSETS))
    floats = F16 if source.random() < 0.12 else F32
    for _ in range(source.randint(1, 2)):
        m.input(floats, _shape(source))
    if source.random() < 0.35:
        m.input(source.choice((I64, I64, BOOL, *map(np.dtype, ("int32", "uint8", "int8", "uint32")))), _shape(source))
    return m


def _shape(source: random.Random) -> list[int]:
    dims = [source.choice(SIZES) for _ in range(source.choice((0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 6)))]
    while np.prod(dims) > 4000:
        dims[dims.index(max(dims))] = source.choice(SIZES[:6])
    return dims

"""Random models by trial: what ONNX Runtime accepts of random nodes, with all that a file may have besides."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import onnx

from ppuc.compiler.validation.oracle import Session
from ppuc.ir.errors import ModelError
from tests.fuzz.trial_model import BOOL, F16, F32, I64, TrialModel
from tests.fuzz.trial_moves import MOVES
from tests.fuzz.trial_structure import STRUCTURE
from tests.fuzz.trial_values import VALUES

OPSETS = (13, 15, 17, 18, 19, 20, 21, 22, 23)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 33)
LAYERS = VALUES | MOVES | STRUCTURE


def model_of_seed(seed: int, layers: int = 12) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]:
    """The model of a seed, of about as many layers, its inputs, and the sizes of its symbols: the first that ONNX
    Runtime accepts as a whole too."""
    source = random.Random(f"trial{seed}")
    while True:
        model, feeds, symbols = _grown(source, layers)
        with suppress(ModelError):
            Session(model.SerializeToString(), "trial").run(feeds)
            return model, feeds, symbols


def _grown(source: random.Random, layers: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]:
    m = TrialModel(source, source.choice(OPSETS))
    floats = F16 if source.random() < 0.12 else F32
    for _ in range(source.randint(1, 2)):
        m.input(floats, _shape(source))
    if source.random() < 0.35:
        m.input(source.choice((I64, I64, BOOL, *map(np.dtype, ("int32", "uint8", "int8", "uint32")))), _shape(source))
    kinds, shares = list(LAYERS), list(LAYERS.values())
    for _ in range(20 * layers):
        if len(m.nodes) >= layers:
            break
        (layer,) = source.choices(kinds, shares)
        try:
            layer(m)
        except (IndexError, ValueError):
            continue  # no tensor suits, or a node was refused
    return m.model()


def _shape(source: random.Random) -> list[int]:
    dims = [source.choice(SIZES) for _ in range(source.choice((0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 6)))]
    while np.prod(dims) > 4000:
        dims[dims.index(max(dims))] = source.choice(SIZES[:6])
    return dims

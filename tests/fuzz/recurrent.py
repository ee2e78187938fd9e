"""RNN, GRU and LSTM: directions, activations, clips, lengths, optional states."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F16, F32, I8, U8, Sample

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
PLAIN = {"RNN": 1, "GRU": 2, "LSTM": 3}
FUNCTIONS = ("Relu", "Tanh", "Sigmoid", "Softsign")
"""Not Softplus: ONNX Runtime's overflows from 88 on."""
TUNED = ("LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Affine")


@strategy("RNN", "GRU", "LSTM")
def recurrent(s: Sample) -> None:
    steps, batch, width, hidden = s.between(1, 5), s.between(1, 3), s.between(1, 5), s.between(1, 5)
    direction = s.pick(("forward", "reverse", "bidirectional"))
    ways, rows = 2 if direction == "bidirectional" else 1, GATES[s.op] * hidden
    dtype = s.dtype("T", (F32, F16))
    batch_first = s.opset >= 14 and s.flip(0.2)
    s.add(s.array(dtype, (batch, steps, width) if batch_first else (steps, batch, width)))
    s.add(s.array(dtype, (ways, rows, width), scale=0.5), s.flip(0.8))
    s.add(s.array(dtype, (ways, rows, hidden), scale=0.5), s.flip(0.8))
    s.add(s.array(dtype, (ways, 2 * rows), scale=0.5) if s.flip(0.7) else None, True)
    s.add(s.numbers.integers(1, steps + 1, batch).astype(np.int32) if s.flip(0.4) else None, s.flip())
    state = (batch, ways, hidden) if batch_first else (ways, batch, hidden)
    s.add(s.array(dtype, state) if s.flip() else None)
    if s.op == "LSTM":
        s.add(s.array(dtype, state) if s.flip() else None)
        if s.flip(0.4):
            s.add(s.array(dtype, (ways, 3 * hidden)), True)
    s.attributes = {"hidden_size": hidden}
    if direction != "forward" or s.flip():
        s.attributes["direction"] = direction
    if batch_first:
        s.attributes["layout"] = 1
    if s.flip(0.4):
        names = [s.pick(FUNCTIONS) for _ in range(PLAIN[s.op] * ways)]
        if s.flip(0.4):
            names = [s.pick(TUNED)] * len(names)
            s.attributes["activation_alpha"] = [0.3] * len(names)
            s.attributes["activation_beta"] = [0.6] * len(names)
        s.attributes["activations"] = names
    if s.flip(0.3):
        s.attributes["clip"] = 0.7
    if s.op == "GRU" and s.flip():
        s.attributes["linear_before_reset"] = 1
    if s.op == "LSTM" and s.flip(0.2):
        s.attributes["input_forget"] = 1
    s.results(3 if s.op == "LSTM" else 2, 0.7)


@strategy("DynamicQuantizeLSTM", domain="com.microsoft")
def dynamic_quantize_lstm(s: Sample) -> None:
    steps, batch, width, hidden = s.between(1, 4), s.between(1, 3), s.between(1, 9), s.between(1, 5)
    direction = s.pick(("forward", "reverse", "bidirectional"))
    ways, dtype = 2 if direction == "bidirectional" else 1, s.pick((I8, U8))
    s.add(s.array(F32, (steps, batch, width)))
    for rows in (width, hidden):
        s.add(s.array(dtype, (ways, rows, 4 * hidden)), True)
    s.add(s.array(F32, (ways, 8 * hidden), scale=0.5) if s.flip(0.7) else None, True)
    s.add(s.numbers.integers(1, steps + 1, batch).astype(np.int32) if s.flip(0.3) else None, s.flip())
    for _ in range(2):
        s.add(s.array(F32, (ways, batch, hidden), scale=0.5) if s.flip() else None)
    s.add(None)
    for _ in range(2):
        s.add(s.numbers.uniform(0.01, 0.05, ways).astype(np.float32), True)
        s.add(s.numbers.integers(0, 5, ways).astype(dtype), True)
    s.attributes = {"hidden_size": hidden, "direction": direction}
    s.results(3, 0.7)

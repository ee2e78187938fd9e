"""Attention and rotary embeddings, of the standard and of com.microsoft."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F16, F32, I32, I64, Sample


def _rotary_size(s: Sample) -> int:
    return 2 * s.between(1, 4)


@strategy("Attention")
def attention(s: Sample) -> None:
    dtype = s.dtype("T1")
    value = dtype
    batch, groups, each = s.between(1, 2), s.between(1, 3), s.pick((1, 1, 2, 3))
    heads, size, out = groups * each, s.size(1, 9), s.size(1, 9)
    queries, keys = s.between(1, 9), s.between(1, 9)
    past = s.between(1, 5) if s.flip(0.3) else 0
    flat = s.flip(0.4)

    def packed(count: int, length: int, width: int) -> tuple[int, ...]:
        return (batch, length, count * width) if flat else (batch, count, length, width)

    s.add(s.array(dtype, packed(heads, queries, size), scale=1.0))
    s.add(s.array(dtype, packed(groups, keys, size), scale=1.0))
    s.add(s.array(value, packed(groups, keys, out)))
    if flat:
        s.attributes = {"q_num_heads": heads, "kv_num_heads": groups}
    total = keys + past
    mask = None
    if s.flip(0.4):
        shape = s.pick(((queries, total), (1, 1, queries, total), (batch, heads, queries, total), (batch, 1, 1, total)))
        mask = s.numbers.random(shape) < 0.7 if s.flip() else s.array(dtype, shape)
    s.add(mask)
    for width, t in ((size, dtype), (out, value)):
        s.add(s.array(t, (batch, groups, past, width)) if past else None)
    if (mask is None or mask.shape[-2] == queries) and s.flip(0.4):
        s.attributes["is_causal"] = 1
    if s.flip(0.2):
        s.attributes["softcap"] = 1.5
    if s.flip(0.3):
        s.attributes["scale"] = 0.5
    if s.opset >= 24 and not past and "is_causal" not in s.attributes and s.flip(0.3):
        s.add(s.numbers.integers(1, keys + 1, batch).astype(I64))
    if s.opset >= 25 and not past and queries == keys and s.flip(0.3):
        s.attributes |= {n: s.between(0, 3) for n in ("left_window_size", "right_window_size") if s.flip(0.7)}
    if past:
        s.outputs = ["y0", "y1", "y2"]
    if s.flip(0.2):
        s.outputs = ["y0", *(s.outputs[1:] if past else ("", "")), "y3"]
        s.attributes["qk_matmul_output_mode"] = s.between(0, 3)


@strategy("RotaryEmbedding")
def rotary(s: Sample) -> None:
    dtype, batch, heads, length, size = s.dtype(), s.between(1, 2), s.between(1, 3), s.between(1, 7), _rotary_size(s)
    used = s.pick((size, size, 2))
    flat = s.flip()
    s.add(s.array(dtype, (batch, length, heads * size) if flat else (batch, heads, length, size)))
    positions = s.flip(0.7)
    cache = (length + 3, used // 2) if positions else (batch, length, used // 2)
    for _ in range(2):
        s.add(s.array(dtype, cache, scale=0.5), s.flip(0.7))
    if positions:
        s.add(s.numbers.integers(0, length + 3, (batch, length)).astype(I64))
    if flat:
        s.attributes["num_heads"] = heads
    if used != size or s.flip(0.2):
        s.attributes["rotary_embedding_dim"] = used
    if s.flip():
        s.attributes["interleaved"] = int(s.flip())


@strategy("RotaryEmbedding", domain="com.microsoft")
def rotary_of_ort(s: Sample) -> None:
    dtype, batch, heads, length, size = s.dtype(), s.between(1, 2), s.between(1, 3), s.between(1, 7), _rotary_size(s)
    flat = s.flip()
    s.add(s.array(dtype, (batch, length, heads * size) if flat else (batch, heads, length, size)))
    s.add(np.array([s.between(0, 2)]) if s.flip() else s.numbers.integers(0, length + 3, (batch, length)))
    for _ in range(2):
        s.add(s.array(dtype, (length + 3, size // 2), scale=0.5), True)
    if s.flip():
        s.attributes["interleaved"] = 1


@strategy("Attention", domain="com.microsoft")
def attention_of_ort(s: Sample) -> None:
    dtype = s.dtype("T", (F32, F16))
    batch, heads, size, length, width = s.between(1, 2), s.between(1, 3), s.size(1, 8), s.between(1, 9), s.size(1, 9)
    hidden, past = heads * size, s.between(1, 4) if s.flip(0.2) else 0
    s.add(s.array(dtype, (batch, length, width)))
    s.add(s.array(dtype, (width, 3 * hidden), scale=0.5), True)
    s.add(s.array(dtype, (3 * hidden,)), True)
    total = past + length
    mask = None
    if s.flip(0.4):
        lengths = s.numbers.integers(1, total + 1, batch)
        rows = (np.arange(total) < lengths[:, None]).astype(I32)
        mask = s.pick((lengths.astype(I32), rows))
    s.add(mask)
    s.add(s.array(dtype, (2, batch, heads, past, size)) if past else None)
    if not past and s.flip(0.3):
        s.add(s.array(dtype, (batch, heads, length, total)))
    s.attributes["num_heads"] = heads
    if s.flip(0.4):
        s.attributes["unidirectional"] = 1
    if s.flip(0.3):
        s.attributes["scale"] = 0.3
    if past:
        s.outputs = ["y0", "y1"]


@strategy("MultiHeadAttention", domain="com.microsoft")
def multi_head(s: Sample) -> None:
    dtype = s.dtype("T", (F32, F16))
    batch, heads, size, out = s.between(1, 2), s.between(1, 3), s.size(1, 8), s.size(1, 8)
    queries, keys = s.between(1, 9), s.between(1, 9)
    packing = s.pick(("apart", "apart", "apart", "apart", "apart", "apart", "apart", "pair", "three"))
    out = out if packing == "apart" else size
    keys = queries if packing == "three" else keys
    bias = s.array(dtype, (heads * (2 * size + out),)) if s.flip(0.4) and packing == "apart" else None
    if packing == "three":
        s.add(s.array(dtype, (batch, queries, heads, 3, size)))
        s.inputs += ["", ""]
    else:
        s.add(s.array(dtype, (batch, queries, heads * size)))
        if packing == "pair":
            s.add(s.array(dtype, (batch, keys, heads, 2, size)))
            s.add(None)
        else:
            s.add(s.array(dtype, (batch, keys, heads * size)))
            s.add(s.array(dtype, (batch, keys, heads * out)))
    s.add(bias, True)
    past = s.between(1, 4) if packing == "apart" and s.flip(0.2) and out == size else 0
    total = keys + past
    mask = None
    if s.flip(0.3) and not past:
        lengths = s.numbers.integers(1, total + 1, batch)
        mask = s.pick((lengths.astype(I32), (np.arange(total) < lengths[:, None]).astype(I32)))
    s.add(mask)
    s.add(s.array(dtype, (s.pick((1, batch)), s.pick((1, heads)), queries, total)) if s.flip(0.3) else None)
    if past:
        s.add(s.array(dtype, (batch, heads, past, size)))
        s.add(s.array(dtype, (batch, heads, past, out)))
        s.outputs = ["y0", "y1", "y2"]
    s.attributes["num_heads"] = heads
    if queries == keys and s.flip(0.3):  # ONNX Runtime leaves the last row unmasked where there are more keys
        s.attributes["unidirectional"] = 1


@strategy("GroupQueryAttention", domain="com.microsoft")
def group_query(s: Sample) -> None:
    batch, groups, each, size = s.between(1, 2), s.between(1, 2), s.pick((1, 2, 3)), 16 * s.between(1, 2)
    heads, decoding = groups * each, s.flip()
    held = s.between(1, 6) if decoding else 0
    queries = 1 if decoding else s.between(1, 7)
    total = held + queries
    dtype = s.dtype("T", (F32, F16))
    if s.flip(0.3):
        s.add(s.array(dtype, (batch, queries, (heads + 2 * groups) * size), scale=1.0))
        s.inputs += ["", ""]
    else:
        s.add(s.array(dtype, (batch, queries, heads * size), scale=1.0))
        for _ in range(2):
            s.add(s.array(dtype, (batch, queries, groups * size), scale=1.0))
    for _ in range(2):
        s.add(s.array(dtype, (batch, groups, held, size)))
    lengths = np.full(batch, total - 1) if not decoding or s.flip() else s.numbers.integers(0, total, batch)
    lengths[0] = total - 1
    s.add(lengths.astype(I32))
    s.add(np.array(total, I32), True)
    s.attributes = {"num_heads": heads, "kv_num_heads": groups}
    if s.flip():
        s.attributes["do_rotary"] = 1
        for _ in range(2):
            s.add(s.array(dtype, (total + 2, size // 2), scale=0.5), True)
        if s.flip(0.3):
            s.attributes["rotary_interleaved"] = 1
    if s.flip(0.3):
        s.attributes["local_window_size"] = s.between(1, 5)
    if s.flip(0.2):
        s.attributes["softcap"] = 2.0
    ragged = bool((lengths != total - 1).any())  # what lies behind a sequence in its cache is not defined
    s.outputs = ["y0", "y1", "y2"]
    s.undefined = frozenset({"y1", "y2"} if ragged else ())

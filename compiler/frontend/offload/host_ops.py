"""Standard ops that always run on the host, with reasons.

Invariant: an op listed here has no importer; every other standard op has one, expands to ops that do, or is control
flow.
"""

from __future__ import annotations

import onnx

from ppuc.compiler.frontend.source import normal_domain

_SEQUENCES = "no engine holds sequences"
_OPTIONALS = "no engine holds optionals"
_STRINGS = "no engine holds strings"
_DRAWS = "random numbers are drawn on the host"

WHY_HOST = {
    "Bernoulli": _DRAWS,
    "BitCast": "no engine reinterprets bits as another type",
    "ConcatFromSequence": _SEQUENCES,
    "ImageDecoder": "no engine decodes images",
    "Multinomial": _DRAWS,
    "NonMaxSuppression": "the number of selected boxes depends on data",
    "Optional": _OPTIONALS,
    "OptionalGetElement": _OPTIONALS,
    "OptionalHasElement": _OPTIONALS,
    "RandomNormal": _DRAWS,
    "RandomNormalLike": _DRAWS,
    "RandomUniform": _DRAWS,
    "RandomUniformLike": _DRAWS,
    "RegexFullMatch": _STRINGS,
    "SequenceAt": _SEQUENCES,
    "SequenceConstruct": _SEQUENCES,
    "SequenceEmpty": _SEQUENCES,
    "SequenceErase": _SEQUENCES,
    "SequenceInsert": _SEQUENCES,
    "SequenceLength": _SEQUENCES,
    "SequenceMap": _SEQUENCES,
    "SplitToSequence": _SEQUENCES,
    "StringConcat": _STRINGS,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "TfIdfVectorizer": "no engine counts n-grams",
}
"""Ops of the standard domain -> reason."""

DOMAINS = {
    "ai.onnx.ml": "no engine walks trees or looks up maps",
    "ai.onnx.preview.training": "training is not supported on the PPU",
    "ai.onnx.training": "training is not supported on the PPU",
}


def why_host(node: onnx.NodeProto) -> str:
    """The reason why a node without an importer runs on the host."""
    domain = normal_domain(node.domain)
    found = WHY_HOST.get(node.op_type) if domain == "" else DOMAINS.get(domain)
    return found or "the PPU has no such op"


__all__ = ["WHY_HOST", "why_host"]

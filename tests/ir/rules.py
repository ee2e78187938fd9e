"""Rules that a verifier reports as broken, and vector programs of the sample."""

from __future__ import annotations

from ppuc.ir.text import parse_vector
from ppuc.ir.verify import VerificationError
from tests.support.text_samples import VECTOR


def rules(error: VerificationError) -> set[str]:
    return {finding.rule for finding in error.findings}


VECTORS = {"bias_relu": parse_vector(VECTOR)}

"""What a user reads when a model cannot be imported."""

from __future__ import annotations

import pytest

from ppuc.compiler.frontend.load import load_model

RELU = "g (float[2] x) => (float[2] y) { y = Relu(x) }"


def text_of(error: type[Exception], source: object, **options: object) -> str:
    """The message of the error that loading raises."""
    with pytest.raises(error) as raised:
        load_model(source, **options)  # type: ignore[arg-type]
    return str(raised.value)


def lines(*parts: str) -> str:
    return "\n  ".join(parts)

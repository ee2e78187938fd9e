"""What a compilation with host steps is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppuc.targets.schema import Target

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class HostedRequest:
    """What is to be compiled, and for whom. `keep_layers`: everything that the PPU's parts give is an output too."""

    source: str | Path | onnx.ModelProto
    target: Target
    precision: str
    dims: Mapping[str, int]
    shapes: Mapping[str, Sequence[int]]
    values: Mapping[str, np.ndarray]
    aliases: Mapping[str, str] = field(default_factory=dict)
    keep_layers: bool = False

    @property
    def imports(
        self,
    ) -> tuple[
        str | Path | onnx.ModelProto,
        str,
        Mapping[str, int],
        Mapping[str, Sequence[int]],
        Mapping[str, np.ndarray],
    ]:
        """What importing takes, in its order."""
        return self.source, self.precision, self.dims, self.shapes, self.values

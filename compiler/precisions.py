"""The table of precisions: the values of `--precision`, and their effect on passes, quantization and tolerances.

Invariant: no other module lists precisions or compares them by name. Importing this module does not load numpy, so that
`ppuc --help` can show the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppuc.ir.errors import UsageError

if TYPE_CHECKING:
    from ppuc.ir.types import DType


@dataclass(frozen=True, slots=True)
class Precision:
    """One choice of `--precision`; element types are named as in the text form.

    `contractions` is the type in which matmul, conv and attention multiply wherever they are not quantized ("": the
    model's own). `layers` is the format, as policies name it, of quantized layers that no policy names ("": no layer is
    quantized), `operands` the type of both operands of their products, if they have one. `rounding` is the type whose
    unit roundoff bounds what operands lose, where it is not `contractions`. With `weights_only` the format is one for
    weights (blocks with a scale each); with `per_layer` a policy gives every layer a format of its own. With `choices`,
    calibrated layers take the one of these formats that loses least."""

    name: str
    help: str
    contractions: str = ""
    layers: str = ""
    rounding: str = ""
    operands: str = ""
    weights_only: bool = False
    per_layer: bool = False
    choices: tuple[str, ...] = ()

    @property
    def quantized(self) -> bool:
        """Whether layers are quantized before the pipeline."""
        return bool(self.layers)

    @property
    def scales_activations(self) -> bool:
        """Whether activations are stored with scales, from samples or computed at run time."""
        return self.quantized and not self.weights_only

    @property
    def contraction_type(self) -> DType | None:
        """`contractions` as a type; None for the model's own."""
        return _type(self.contractions)

    @property
    def storage_type(self) -> DType | None:
        """The 16-bit storage type of contractions' operands and values that depend on contractions; None if tensors
        keep the model's types."""
        chosen = self.contraction_type
        return chosen if chosen is not None and chosen.bits == 16 else None

    @property
    def rounding_type(self) -> DType | None:
        """The narrowest float type that operands are rounded to; None for the model's types."""
        return _type(self.rounding or self.contractions)


def _type(name: str) -> DType | None:
    from ppuc.ir.types import DType

    return DType(name) if name else None


_EITHER = ("e4m3", "int8")

# Of 8-bit integers with one scale a tensor, most elements use few of the 255 steps: they may lose what f8e4m3 does.
_ALL = (
    Precision("model", "as the file says"),
    Precision("fp32", "products of f32", "f32"),
    Precision("bf16", "products and stored activations in bf16", "bf16"),
    Precision("fp16", "products and stored activations in f16", "f16"),
    Precision("fp8", "products of E4M3 with scales", "bf16", "e4m3", "f8e4m3", "f8e4m3"),
    Precision("int8", "products of 8-bit integers with scales", "bf16", "int8", "f8e4m3", "i8"),
    Precision("8bit", "products of E4M3 or of 8-bit integers, by layer", "bf16", "e4m3", "f8e4m3", choices=_EITHER),
    Precision("mixed", "layer by layer as --policy says", "bf16", "e4m3", "f8e4m3", per_layer=True, choices=_EITHER),
    Precision("mxfp8", "weights in blocks of E4M3", "bf16", "mxfp8", "f8e4m3", weights_only=True),
    Precision("mxfp4", "weights in blocks of E2M1", "bf16", "mxfp4", "f4e2m1", weights_only=True),
    Precision("nvfp4", "weights in blocks of E2M1", "bf16", "nvfp4", "f4e2m1", weights_only=True),
)

PRECISIONS: Mapping[str, Precision] = {p.name: p for p in _ALL}
"""Every precision by name, in the order of help texts."""


PURPOSES = ("time", "memory", "energy", "macs")
"""What 8 bits are for: all but time keep layers in 8 bits also where that takes longer."""


def named_precision(name: str, where: str = "--precision") -> Precision:
    """The precision of that name. Raises UsageError, about `where`, when there is none."""
    if name not in PRECISIONS:
        raise UsageError.of(where, f"unknown precision '{name}'", expected=", ".join(PRECISIONS))
    return PRECISIONS[name]

"""The op set: one record per op, one module per family. Importing this package fills `OPS`."""

from ppuc.ir.ops import (  # noqa: F401 - imported for their records
    attention,
    blocks,
    contraction,
    conv_transpose,
    deform,
    elementwise,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
    regions,
    resize,
    sampling,
    sorting,
    structure,
    view,
    window,
)
from ppuc.ir.ops.base import OPS, Indexing, IterDim, Kind, OpDef, points

__all__ = ["OPS", "Indexing", "IterDim", "Kind", "OpDef", "points"]

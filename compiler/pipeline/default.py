"""The pipelines: what runs, in which order, and why there."""

from __future__ import annotations

from ppuc.compiler.passes.allocate import Allocate
from ppuc.compiler.passes.bands import Bands
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.canonicalise import Canonicalise
from ppuc.compiler.passes.cascade import Cascade
from ppuc.compiler.passes.decompose import Decompose
from ppuc.compiler.passes.emit import Emit
from ppuc.compiler.passes.fold import Fold
from ppuc.compiler.passes.fuse import Fuse
from ppuc.compiler.passes.join import Join
from ppuc.compiler.passes.layout import Layout
from ppuc.compiler.passes.legalise import Legalise
from ppuc.compiler.passes.merge import Merge
from ppuc.compiler.passes.moves import Moves
from ppuc.compiler.passes.panels import Panels
from ppuc.compiler.passes.place import Place
from ppuc.compiler.passes.precision import Precision
from ppuc.compiler.passes.prepare import Prepare
from ppuc.compiler.passes.recognise import Recognise
from ppuc.compiler.passes.split import Split
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.passes.turn import Turn

PIPELINE: tuple[Pass, ...] = (
    Fold(),  # constants first, so that patterns see numbers
    Canonicalise(),  # one form per meaning
    Recognise(),  # attention, while softmax is still one op
    Decompose(),  # composites into the primitives that kernels are made of
    Moves(),  # gathers, scatters and pads into the few forms that have kernels
    Fold(),  # what decomposition made constant
    Canonicalise(),  # what decomposition made redundant
    Legalise(narrow=False),  # formats the machine has, before layouts depend on them
    Layout(),  # channels last: what loads and the tensor engine want
    Fold(),  # transposed weights
    Canonicalise(),  # transposes that met their inverse
    Prepare(),  # forms that kernels know
    Fold(),  # reshaped weights
    Fuse(),  # groups of ops become kernels
    Precision(),  # storage formats of what crosses kernels; needs to know what does
    Merge(),  # products of one operand: their readers and formats are known now
    Bands(),  # causal attention over what its rows see
    Split(),  # contractions with few result tiles, at the price of their formats
    Panels(),  # weights that l2 holds only in parts
    Join(),  # concatenations in place, with types final
    Cascade(),  # kernels in a row whose tiles stay in l1: with every group final
    Turn(),  # weights as device memory delivers them best: with the products that read them final
    Place(),  # l2 or hbm, and what to stage
    Tile(),  # kernels, with the memories of their operands known
    Allocate(),  # addresses, with tile sizes known
    Emit(),  # streams: mechanical
)

NONE: tuple[Pass, ...] = (
    Decompose(),  # composites into the primitives that kernels are made of
    Moves(),  # gathers, scatters and pads into the few forms that have kernels
    Legalise(narrow=False),  # formats the machine has
    Layout(),  # channels last, or convolutions and pools have no kernel
    Prepare(),  # forms that kernels know
    Fuse(epilogues=False),  # a kernel for each op that a kernel begins with
    Precision(),  # storage formats, which --precision asks for
    Place(stage=False),  # l2 or hbm; nothing is staged
    Tile(),  # kernels
    Allocate(),  # addresses
    Emit(),  # streams
)
"""The shortest pipeline that runs: nothing is made faster. For telling whether a pass is to blame."""

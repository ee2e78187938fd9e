"""The built-in pipelines: which passes run, in which order, and why at that position."""

from __future__ import annotations

from ppuc.compiler.passes.balance_units import BalanceUnits
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.emit.streams import Emit
from ppuc.compiler.passes.grouping.batch_split import BatchSplit
from ppuc.compiler.passes.grouping.cascade import Cascade
from ppuc.compiler.passes.grouping.fuse import Fuse
from ppuc.compiler.passes.grouping.horizontal_fusion import HorizontalFusion
from ppuc.compiler.passes.grouping.in_place_concat import InPlaceConcat
from ppuc.compiler.passes.grouping.split_k import SplitK
from ppuc.compiler.passes.grouping.split_n import SplitN
from ppuc.compiler.passes.grouping.storage_types import StorageTypes
from ppuc.compiler.passes.grouping.weight_layout import WeightLayout
from ppuc.compiler.passes.memory.allocate import Allocate
from ppuc.compiler.passes.memory.memory_space_assignment import MemorySpaceAssignment
from ppuc.compiler.passes.normalise.canonicalise import Canonicalise
from ppuc.compiler.passes.normalise.decompose import Decompose
from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.passes.normalise.layout import Layout
from ppuc.compiler.passes.normalise.legalise import Legalise
from ppuc.compiler.passes.normalise.legalise_for_kernels import LegaliseForKernels
from ppuc.compiler.passes.normalise.lower_data_movement import LowerDataMovement
from ppuc.compiler.passes.normalise.match_attention import MatchAttention
from ppuc.compiler.passes.tile import Tile

PIPELINE: tuple[Pass, ...] = (
    Fold(),  # constants first, so that patterns see numbers
    Canonicalise(),  # one form per meaning
    MatchAttention(),  # attention, while softmax is still one op
    Decompose(),  # composites into the primitives that kernels are made of
    LowerDataMovement(),  # gathers, scatters and pads into the few forms that have kernels
    Fold(),  # what decomposition made constant
    Canonicalise(),  # what decomposition made redundant
    Legalise(narrow=False),  # formats the machine has, before layouts depend on them
    Layout(),  # channels last: what loads and the tensor engine want
    Fold(),  # transposed weights
    Canonicalise(),  # transposes that met their inverse
    LegaliseForKernels(),  # forms that kernels know
    Fold(),  # reshaped weights
    Fuse(),  # groups of ops become kernels
    StorageTypes(),  # storage formats of tensors between kernels, which fusion has determined
    HorizontalFusion(),  # products of one operand, with their readers and formats known
    BatchSplit(),  # stages whose tensors fit l2 only for a part of the batch, in their storage formats
    SplitK(),  # contractions with few result tiles, priced in their storage formats
    SplitN(),  # weights too large for l2
    InPlaceConcat(),  # concatenations in place, with final types
    Cascade(),  # consecutive kernels whose tiles stay in l1, with all groups final
    WeightLayout(),  # the weight layout that hbm streams fastest, with all readers final
    MemorySpaceAssignment(),  # l2 or hbm, and what to stage
    Tile(),  # kernels, with the memories of their operands known
    BalanceUnits(),  # the units of each kernel, with all tiles known
    Allocate(),  # addresses, with tile sizes known
    Emit(),  # streams: mechanical
)

NONE: tuple[Pass, ...] = (
    Decompose(),  # composites into the primitives that kernels are made of
    LowerDataMovement(),  # gathers, scatters and pads into the few forms that have kernels
    Legalise(narrow=False),  # formats the machine has
    Layout(),  # channels last, or convolutions and pools have no kernel
    LegaliseForKernels(),  # forms that kernels know
    Fuse(epilogues=False),  # one kernel for each op that can start one
    StorageTypes(),  # storage formats that --precision asks for
    MemorySpaceAssignment(stage=False),  # l2 or hbm, without staging
    Tile(),  # kernels
    Allocate(),  # addresses
    Emit(),  # streams
)
"""The shortest pipeline that yields a program: no optimisation. For finding out whether an optimisation is to blame."""

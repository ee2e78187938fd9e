"""A module: the state of a compilation between ONNX file and artifact, at whatever level it has reached.

Passes are functions from module to module. A module prints to one `.ppir` text that parses back to an equal module, so
any dump can be resumed. Levels coexist: after tiling, the graph's groups name kernels; after emission, the program
holds the streams, and names and constants still refer to the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Kernel
from ppuc.ir.program import Program
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram


@dataclass(frozen=True, slots=True)
class Placement:
    """Bytes of a memory assigned to a graph value (`name`) or a kernel's buffer (`kernel/buffer`)."""

    name: str
    space: Space
    address: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Module:
    """`inputs` and `outputs` pair ONNX names with graph value names. `pipeline` lists all passes of the compilation, ()
    standing for the default pipeline; `done` lists the passes that have run. Both hold specs such as `tile{tries=8}`: a
    pass's name and its non-default options."""

    target: str
    target_hash: str
    options: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    graph: Graph
    kernels: tuple[Kernel, ...] = ()
    vectors: tuple[VectorProgram, ...] = ()
    placement: tuple[Placement, ...] = ()
    program: Program | None = None
    pipeline: tuple[str, ...] = field(default=())
    done: tuple[str, ...] = field(default=())

    def option(self, name: str, default: str = "") -> str:
        """The value of a compile option that passes read (precision, ...)."""
        return dict(self.options).get(name, default)

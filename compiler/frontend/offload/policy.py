"""The offload policy: decides which nodes run on the host, which are compiled at run time, and which are refused.

A node runs on the host if the user chose that, if it reads data that only the host can hold, if it cannot be imported,
or if its imported ops use arithmetic that no engine supports. A node with unknown sizes, or a data-dependent branch or
loop, is deferred: it counts as the host's until the program runs, and is compiled then.

Invariant: ops imported for a node are removed if it is handed over; an op with a part on the host runs on the host as a
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import onnx

from ppuc.compiler.engines import DOUBLE, objection
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.functions import has_schema_body
from ppuc.compiler.frontend.inlining import Elsewhere, Site, Tensor
from ppuc.compiler.frontend.offload.deferred import is_control
from ppuc.compiler.frontend.offload.handover import Handover, RefusedError, is_custom
from ppuc.compiler.frontend.offload.host_ops import why_host
from ppuc.compiler.frontend.offload.hosting import (
    HostNode,
    HostTensor,
    bound_type,
    innermost_element,
    is_dense,
    may_be_dense,
)
from ppuc.compiler.frontend.offload.probe import Probe
from ppuc.compiler.frontend.offload.reason import Cause, Reason
from ppuc.compiler.frontend.policy import Refusal, Strict
from ppuc.compiler.frontend.registry import IMPORTERS, near_op
from ppuc.compiler.frontend.source import Source
from ppuc.compiler.frontend.tensors import foreign, type_text
from ppuc.compiler.frontend.unrolling import NotUnrolledError
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Value
from ppuc.ir.types import DType

SUPPLY = "neither the PPU nor the host supports it: supply it as a Python function with --host-ops FILE.py"
SIZED = ("Expand", "Pad", "Reshape", "Resize", "Tile", "TopK", "Upsample")
"""Ops whose result sizes are the values of an operand. Others that need an operand's value, such as Slice, would be
recompiled for each value, although sizes stay the same."""


class _Mark(NamedTuple):
    """A checkpoint of an import: numbers of ops built and nodes handed over."""

    ops: int
    nodes: int


class Offload(Strict):
    """Hands nodes that cannot be imported over to the host. `forced` are nodes that must run there, with the reason;
    `custom` are (domain, op) with Python functions."""

    def __init__(
        self,
        source: Source,
        builder: FoldingBuilder,
        forced: Mapping[str, Reason],
        custom: frozenset[tuple[str, str]],
        probe: Probe | None = None,
    ) -> None:
        super().__init__(source.where)
        self.source, self.builder, self.forced = source, builder, forced
        self.handover = Handover(source, builder, custom, probe)

    @property
    def nodes(self) -> Sequence[HostNode]:
        """The nodes handed over, in order."""
        return self.handover.nodes

    def input(self, info: onnx.ValueInfoProto) -> Elsewhere | None:
        """A HostTensor for an input that the PPU cannot hold."""
        return None if is_dense(info) else HostTensor(self.builder.fresh(info.name), info.type)

    def bound(self, sizes: Mapping[str, int], error: ModelError | None) -> None:
        """Record the types that the file declares for its tensors. Raises `error`."""
        if error is not None:
            raise error
        graph = self.source.model.graph
        self.handover.declared = {i.name: bound_type(i.type, sizes) for i in (*graph.value_info, *graph.output)}

    def constant(self, tensor: onnx.TensorProto) -> Elsewhere | None:
        """A HostTensor for an element type that the PPU lacks."""
        return self.handover.constant(tensor) if foreign(tensor.data_type) else None

    def node(self, site: Site, imported: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The outputs as imported, or of the node handed over, before or after its import."""
        hosted = [v for v in site.operands if isinstance(v, HostTensor)]
        reason = self._claim(site, hosted)
        if reason is not None:
            return self._hand_over(site, reason, deferred=self._awaits_sizes(site, hosted))
        mark, wrong = self._mark(), self.faults.count
        results = imported()
        reason = self._objection(mark, site.label)
        if reason is None or wrong != self.faults.count:
            return results
        self._rewind(mark)
        return self._hand_over(site, reason, deferred=is_control(site.node, site.scope.opsets))

    def loop(self, unrolled: Callable[[], list[Value]]) -> list[Value]:
        """Errors in the body of a loop that is not unrolled are left to the host."""
        mark, back = self._mark(), self.faults.mark()
        try:
            return unrolled()
        except NotUnrolledError:
            self._rewind(mark)
            back()
            raise

    def refused(self, site: Site, refusal: Refusal) -> list[Tensor]:
        """Hand the node over unless it is invalid."""
        if refusal.invalid:
            return super().refused(site, refusal)
        text = refusal.what or why_host(site.node)
        if refusal.error is not None:
            text = refusal.error.diagnostics[0].what
        cause = Cause.RUNTIME_VALUE if refusal.wanted is not None else Cause.UNSUPPORTED
        deferred, doubted = _needs_sizes(site, refusal), refusal.wanted is None
        return self._hand_over(site, Reason(text, cause), refusal.error, deferred, doubted)

    def incomplete(self, site: Site, results: Sequence[Tensor]) -> list[Tensor]:
        """Hand the whole node over if the model reads an output that is not imported."""
        missing = site.node.output[len(results) :]
        if not any(missing):
            return super().incomplete(site, results)
        return self._hand_over(site, Reason(f"output {len(results)} ('{missing[0]}') has no importer"))

    def finish(self) -> None:
        """Raise errors about nodes that neither side can run."""
        self.faults.finish(lambda op: near_op(op) + SUPPLY)

    def _claim(self, site: Site, hosted: Sequence[HostTensor]) -> Reason | None:
        """The reason why a node runs on the host regardless of its import; None if there is none."""
        if site.label in self.forced:
            return self.forced[site.label]
        if is_custom(site, self.handover.custom):
            return Reason("it is a Python function", Cause.CUSTOM)
        if not hosted:
            return None
        double = innermost_element(hosted[0].type) == onnx.TensorProto.DOUBLE
        text = f"it reads {type_text(hosted[0].type)}, which only the host holds"
        return Reason(text, Cause.DOUBLE if double else Cause.HOST_OPERAND)

    def _awaits_sizes(self, site: Site, hosted: Sequence[HostTensor]) -> bool:
        """Whether a node is on the host only because sizes of its operands are unknown."""
        chosen = site.label in self.forced or is_custom(site, self.handover.custom)
        if chosen or not all(may_be_dense(t.type) for t in hosted):
            return False
        opsets = site.scope.opsets
        known = (site.domain, site.node.op_type) in IMPORTERS or is_control(site.node, opsets)
        return known or has_schema_body(site.node, opsets.get(site.domain, 1))

    def _mark(self) -> _Mark:
        return _Mark(len(self.builder.ops), len(self.handover.nodes))

    def _rewind(self, mark: _Mark) -> None:
        """Roll back to a checkpoint."""
        del self.builder.ops[mark.ops :]
        del self.handover.nodes[mark.nodes :]

    def _objection(self, mark: _Mark, label: str) -> Reason | None:
        """Why the ops imported since `mark` for the standard op `label` cannot run on the PPU. An op with a part on the
        host runs on the host as a whole, unless it is that part."""
        for op in self.builder.ops[mark.ops :]:
            if found := objection(op):
                return Reason(f"it {found.what}", Cause.DOUBLE if found == DOUBLE else Cause.UNSUPPORTED)
        for inner in self.handover.nodes[mark.nodes :]:
            if inner.label != label:
                return inner.reason.within(f"its part {inner.op} cannot run on the PPU")
        return None

    def _hand_over(
        self,
        site: Site,
        reason: Reason,
        error: ModelError | None = None,
        deferred: bool = False,
        doubted: bool = False,
    ) -> list[Tensor]:
        """The outputs of a node for the host; `error` is its importer's error, `doubted` whether that may be right."""
        try:
            return self.handover.node(site, reason, deferred=deferred, doubted=doubted)
        except RefusedError as refused:
            return self._neither(site, reason, refused, error)

    def _neither(self, site: Site, reason: Reason, refused: RefusedError, error: ModelError | None) -> list[Tensor]:
        """The outputs of a node that neither side can run."""
        if refused.unknown:
            self.faults.add_unsupported(site.op, site.label)
        else:
            self.faults.add(error or refused.error)
        return site.unknown()


class Examine(Offload):
    """As Offload, but nodes that neither side can run do not end the import: they are collected among the host's, as
    refused."""

    def refused(self, site: Site, refusal: Refusal) -> list[Tensor]:
        """Record an invalid node."""
        if not refusal.invalid or refusal.error is None:
            return super().refused(site, refusal)
        why = Reason(refusal.error.diagnostics[0].what)
        return self._noted(site, why, why) or site.unknown()

    def finish(self) -> None:
        """Raise all other errors."""
        errors = self.faults.errors
        if errors and not self.faults.unsupported:
            raise ModelError([d for error in errors for d in error.diagnostics])
        super().finish()

    def _neither(self, site: Site, reason: Reason, refused: RefusedError, error: ModelError | None) -> list[Tensor]:
        told = None if refused.unknown else error or refused.error
        why = Reason(near_op(site.op) + SUPPLY, Cause.UNKNOWN)
        if told is not None:
            why = Reason(told.diagnostics[0].what, reason.cause if told is error else Cause.UNSUPPORTED)
        noted = self._noted(site, why, reason) if refused.unknown or told is not None else None
        return noted if noted is not None else super()._neither(site, reason, refused, error)

    def _noted(self, site: Site, why: Reason, reason: Reason) -> list[Tensor] | None:
        """A node recorded as refused; None if its operands are unknown too."""
        try:
            return self.handover.node(site, reason, refused=why)
        except RefusedError:
            return None


def _needs_sizes(site: Site, refusal: Refusal) -> bool:
    """Whether a node can be imported with values from a run: a branch condition, a trip count, sizes of a result (but
    not data it computes with)."""
    if is_control(site.node, site.scope.opsets):
        return True
    wanted = refusal.wanted
    if wanted is None or site.node.op_type not in SIZED:
        return False
    return wanted is not site.operands[0] and wanted.type.dtype is not DType.BOOL


__all__ = ["Examine", "Offload"]

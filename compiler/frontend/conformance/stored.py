"""Rule M11: stored tensors have as many bytes as their shapes need, where the file says that they are.

Sparse tensors and element types that the PPU lacks are left to whoever reads them, and so are large tensors of elements
below a byte, which reading unpacks.
"""

from __future__ import annotations

import math

from ppuc.compiler.frontend.conformance.model_rules import stored_tensors
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.source import Source
from ppuc.compiler.frontend.tensors import foreign, packed_range, read_tensor

LARGEST_UNPACKED = 1 << 20
"""Elements."""


def check_contents(source: Source) -> None:
    """Check the order of the nodes of the graph, and every stored tensor. Raises ModelError."""
    graph = source.model.graph
    defined = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    defined |= {t.values.name for t in graph.sparse_initializer}
    ordered(graph.node, defined, [o.name for o in graph.output], source.where)
    for index, (_, tensor) in enumerate(stored_tensors(source.model)):
        large = packed_range(tensor.data_type) is not None and math.prod(tensor.dims) > LARGEST_UNPACKED
        if not foreign(tensor.data_type) and not large:
            read_tensor(tensor, source, of_model=index < len(graph.initializer))

"""com.example.Snake(X, alpha) in ONNX files."""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value


@importer("Snake", domain="com.example")
def snake(ctx: NodeContext) -> Sequence[Value]:
    """Y = snake(X, alpha)."""
    return (ctx.op("snake", ctx.operand(0), ctx.operand(1)),)

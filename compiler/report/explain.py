"""Prints what became of one ONNX node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.tables import percent, quantity, shortened

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 150
"""Characters of an op that are shown."""


def show(out: Console, record: dict[str, Any]) -> None:
    """Print the node, what each pass did to it, and its kernels."""
    node = record["node"]
    where = f", in {' / '.join(node['path'])}" if node["path"] else ""
    out.print(f"{node['node']}: {node['op']}{where}")
    out.print(f"  reads {_names(node['reads'])}{_weights(node['weights'])}; writes {_names(node['writes'])}")
    for step in record["steps"]:
        out.print(f"\n{step['pass']}")
        for sign, key in (("-", "removed"), ("+", "added")):
            for line in step[key]:
                out.print(f"  {sign} {line[:WIDTH]}{'...' if len(line) > WIDTH else ''}", soft_wrap=True)
        for remark in step["remarks"]:
            out.print(f"  {_remark(remark)}", soft_wrap=True)
    if not record["kernels"]:
        out.print("\nno kernel: it is a constant, a view, or runs on the host (`ppuc check` says which)")
    for kernel in record["kernels"]:
        _show_kernel(out, kernel, node["node"])


def _names(names: list[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _weights(count: int) -> str:
    return f" and {count} constant{'s' if count > 1 else ''}" if count else ""


def _remark(remark: dict[str, Any]) -> str:
    """`applied split-k: reason (2,300 -> 1,900 clk)`."""
    before, after = remark["before_clk"], remark["after_clk"]
    price = f" ({before:,.0f} -> {after:,.0f} clk)" if before is not None and after is not None else ""
    reason = f": {remark['reason']}" if remark["reason"] else ""
    return f"{remark['kind']} {remark['decision']}{reason}{price}"


def _show_kernel(out: Console, kernel: dict[str, Any], node: str) -> None:
    others = [n for n in kernel["nodes"] if n != node]
    fused = f", fused with {', '.join(shortened(n, 32) for n in others[:6])}" if others else ""
    more = f" and {len(others) - 6} more" if len(others) > 6 else ""
    out.print(f"\nkernel {kernel['kernel']}{fused}{more}")
    if (time := kernel["time"]) is not None:
        traffic = ", ".join(
            f"{quantity(time[key].get(space, 0), 'B')} {verb} {space}"
            for space in ("hbm", "l2")
            for key, verb in (("read_bytes", "from"), ("write_bytes", "to"))
            if time[key].get(space)
        )
        parts = sorted(time["split"].items(), key=lambda part: -part[1])
        split = ", ".join(f"{name} {cycles:,.0f}" for name, cycles in parts if cycles >= 1)
        out.print(
            f"  {time['cycles']:,.0f} cycles ({percent(time['share'])} of the run) on {time['units']} units: {split}"
        )
        out.print(f"  {traffic}; {percent(time['utilisation']['tensor'])} of the tensor engines' peak")
    if kernel["loops"] is not None:
        for line in kernel["loops"].rstrip().splitlines():
            out.print(f"  {line}", soft_wrap=True)

"""What the host did, as tables and as the words that tell its time from the PPU's.

Invariant: the host's time is measured on this machine and never simulated; no text or table adds the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.tables import duration, quantity, table

if TYPE_CHECKING:
    from rich.console import Console


def beside(host_seconds: float | None) -> str:
    """The host's time behind a simulated one; "" where the host computed nothing."""
    return "" if host_seconds is None else f"; {host_time(host_seconds)}"


def host_time(seconds: float) -> str:
    """The host's time."""
    return f"the host took {duration(seconds)}, measured here, not simulated"


def took_here(seconds: float | None) -> str:
    """The cell of a table for a measured time; a dash when nothing was measured."""
    return "-" if seconds is None else duration(seconds)


def show_host(out: Console, steps: Sequence[dict[str, Any]]) -> None:
    """The host's steps (`host_rows` of `ppuc.compiler.host.transfer`) as a table; nothing without any."""
    if not steps:
        return
    rows = [
        (
            ", ".join(s["nodes"][:3]) + (", ..." if len(s["nodes"]) > 3 else ""),
            len(s["nodes"]),
            quantity(s["from_ppu_bytes"], "B"),
            quantity(s["to_ppu_bytes"], "B"),
            duration(s["transfer_seconds"]),
            took_here(s["measured_seconds"]),
        )
        for s in steps
    ]
    columns = ("on the host", "nodes", "from the PPU", "to the PPU", "transfers", "took here")
    title = "\nhost steps: transfers are simulated; what the host took is measured here and not part of the time"
    table(out, title, columns, rows)

"""Reports on host steps, and texts that distinguish host time from PPU time.

Invariant: host time is measured on this computer, not simulated; no text or table adds the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppuc.compiler.report.tables import duration, quantity, table

if TYPE_CHECKING:
    from rich.console import Console


def beside(host_seconds: float | None) -> str:
    """The host's time, to append to a simulated one; "" if the host computed nothing."""
    return "" if host_seconds is None else f"; {host_time(host_seconds)}"


def host_time(seconds: float) -> str:
    """The host's time."""
    return f"the host took {duration(seconds)}, measured here, not simulated"


def took_here(seconds: float | None) -> str:
    """The table cell of a measured time; a dash if nothing was measured."""
    return "-" if seconds is None else duration(seconds)


def show_host(out: Console, steps: Sequence[dict[str, Any]]) -> None:
    """Print the host steps (`host_rows` of `ppuc.compiler.host.transfer`) as a table, if there are any."""
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
    title = "\nhost steps: transfers are simulated; host time is measured here and not part of the simulated time"
    table(out, title, columns, rows)

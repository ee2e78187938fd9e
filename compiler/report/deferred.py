"""Reports on run-time compilation, as rows and as a table.

Invariant: every deferred step of the plan has a row, whether or not it ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppuc.compiler.host.deferred import DeferredRun
from ppuc.compiler.host.plan import DeferredStep, Plan
from ppuc.compiler.report.host import took_here
from ppuc.compiler.report.tables import table

if TYPE_CHECKING:
    from rich.console import Console

UNTIMED = "not timed: its sizes are known only when the program runs on --inputs"


def deferred_rows(plan: Plan, runs: Sequence[DeferredRun]) -> list[dict[str, Any]]:
    """One row for each program or host run of a deferred step, in the order of the steps; JSON-able."""
    rows = []
    for number, step in enumerate(plan.steps):
        if isinstance(step, DeferredStep):
            nodes = [n.node for n in step.nodes]
            own = [r for r in runs if r.step == number]
            rows += [_row(run, nodes) for run in own] or [
                {
                    "name": step.name,
                    "nodes": nodes,
                    "on": None,
                    "calls": 0,
                    "cycles": 0.0,
                    "inputs": [],
                    "why": UNTIMED,
                    "measured_seconds": None,
                }
            ]
    return rows


def _row(run: DeferredRun, nodes: Sequence[str]) -> dict[str, Any]:
    inputs = [f"{s.type}" for s in run.program.inputs] if run.program is not None else []
    return {
        "name": run.name,
        "nodes": list(nodes),
        "on": "host" if run.result is None else "ppu",
        "calls": run.calls,
        "cycles": run.calls * run.result.profile.cycles if run.result is not None else 0.0,
        "inputs": inputs,
        "why": run.reason,
        "measured_seconds": run.host_seconds or None,
    }


def show_deferred(out: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table."""
    if not rows:
        return
    shown = [
        (
            r["name"],
            r["on"] or "-",
            r["calls"],
            f"{r['cycles']:,.0f}",
            took_here(r["measured_seconds"]),
            r["why"] or ", ".join(r["inputs"]),
        )
        for r in rows
    ]
    columns = ("step", "on", "calls", "cycles", "host took here", "sizes")
    table(out, "\ncompiled at run time", columns, shown, left=(0, 1, 5))


__all__ = ["deferred_rows", "show_deferred"]

"""Compares two runs: time by ONNX node and kernel, bytes, energy, accuracy, passes.

A run is a record (`ppuc ... --record`) or what a command printed with --json. Times are compared in seconds, because
the runs' machines may have different clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppuc.compiler.recording.record import FORMAT, read_record
from ppuc.ir.errors import UsageError
from ppuc.ir.files import read_text
from ppuc.ir.strict_json import read_json

COMPARABLE = ("profile", "verify", "run", "compile")
"""Commands whose JSON can be compared."""


def read_run(path: Path) -> dict[str, Any]:
    """The record of a run, or what a command printed with --json as one. Raises UsageError for anything else."""
    if path.suffix == ".gz":
        return read_record(path)
    text = read_text(path, UsageError)
    try:
        value = read_json(text)
        command = value["command"] if value.get("format") != FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError):
        command = None
    if command is None:
        return read_record(path)
    if command not in COMPARABLE:
        expected = "the JSON of " + ", ".join(f"`ppuc {name}`" for name in COMPARABLE)
        raise UsageError.of(str(path), "cannot be compared", got=f"the JSON of `ppuc {command}`", expected=expected)
    target = {"name": value.get("target", ""), "hash": value.get("target_hash", "")}
    about = {"model": {"file": value.get("model", "")}, "target": target, "precision": value.get("precision", "")}
    return {"command": command, **about, command: value}


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Both runs side by side: `a` is what `b` is compared with. Parts that one of them lacks are empty."""
    return {
        "a": _about(a),
        "b": _about(b),
        "totals": _totals(a, b),
        "waterfall": _waterfall(a, b),
        "nodes": _rows(a, b, "nodes", "node"),
        "kernels": _rows(a, b, "kernels", "kernel"),
        "outputs": _outputs(a, b),
        "passes": _passes(a, b),
    }


def _about(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": run["model"].get("file", ""),
        "target": run["target"]["name"],
        "target_hash": run["target"]["hash"],
        "precision": run["precision"],
        "ppuc": run.get("ppuc"),
        "command": run["command"],
    }


def _pair(a: float | None, b: float | None) -> dict[str, Any]:
    """Two numbers and the second over the first; null where one is missing."""
    return {"a": a, "b": b, "ratio": b / a if a and b is not None else None}


def _totals(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Numbers of the whole runs."""
    one, other = _numbers(a), _numbers(b)
    return {name: _pair(one.get(name), other.get(name)) for name in {**one, **other}}


def _numbers(run: Mapping[str, Any]) -> dict[str, float]:
    profile = run.get("profile")
    if profile is None:
        simulated = next((run[c] for c in ("run", "verify") if c in run), None)
        return {"seconds": simulated["seconds"], "cycles": simulated["cycles"]} if simulated is not None else {}
    return {
        "seconds": profile["seconds"],
        "cycles": profile["cycles"],
        "joules": profile["energy_joules"]["total"],
        "hbm_bytes": profile["read_bytes"]["hbm"] + profile["write_bytes"]["hbm"],
        "l2_bytes": profile["read_bytes"]["l2"] + profile["write_bytes"]["l2"],
        "kernels": len(profile["kernels"]),
        "instructions": profile["instructions"],
        "host_seconds": profile["host_seconds"],
    }


def _waterfall(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds of each part of the waterfall."""
    if any((run.get("profile") or {}).get("waterfall") is None for run in (a, b)):
        return []
    parts = [{row["part"]: row for row in run["profile"]["waterfall"]["parts"]} for run in (a, b)]
    scales = [_second_per_cycle(run) for run in (a, b)]
    return [
        {
            "part": name,
            "owner": row["owner"],
            **_pair(row["cycles"] * scales[0], parts[1][name]["cycles"] * scales[1]),
        }
        for name, row in parts[0].items()
        if name in parts[1]
    ]


def _second_per_cycle(run: Mapping[str, Any]) -> float:
    return 1e-9 / float(run["profile"]["clock_ghz"])


def _rows(a: Mapping[str, Any], b: Mapping[str, Any], what: str, key: str) -> list[dict[str, Any]]:
    """Seconds by node or kernel (0 where a run has none of that name), the largest change first."""
    if "profile" not in a or "profile" not in b:
        return []
    times = []
    for run in (a, b):
        scale = _second_per_cycle(run)
        times.append({row[key]: (row["cycles"] * scale, row["bound_by"]) for row in run["profile"][what]})
    rows = []
    for name in {**times[0], **times[1]}:
        (one, bound), (other, bound_after) = (t.get(name, (0.0, None)) for t in times)
        rows.append({key: name, **_pair(one, other), "change": other - one, "bound_by": [bound, bound_after]})
    return sorted(rows, key=lambda row: (-abs(row["change"]), row[key]))


def _outputs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each output that both runs verified; an exact one has no signal-to-noise ratio."""
    if "verify" not in a or "verify" not in b:
        return []
    before = {row["name"]: row for row in a["verify"]["outputs"]}
    return [
        {
            "output": row["name"],
            "verdict": [before[row["name"]]["verdict"], row["verdict"]],
            "sqnr_db": [before[row["name"]]["sqnr_db"], row["sqnr_db"]],
            "max_abs": [before[row["name"]]["max_abs"], row["max_abs"]],
        }
        for row in b["verify"]["outputs"]
        if row["name"] in before
    ]


def _passes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Steps after which kernels or expected cycles differ, and steps that only one run took."""
    steps = [_steps(run.get("passes", ())) for run in (a, b)]
    if not all(steps):
        return []
    rows = []
    for key in {**steps[0], **steps[1]}:
        one, other = (s.get(key) for s in steps)
        if one != other:
            rows.append({"pass": key[0], "time": key[1], "a": one, "b": other})
    return rows


def _steps(passes: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Kernels and expected cycles after each step that changed something, by its name and how often it had run."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for step in passes:
        counts[step["pass"]] = counts.get(step["pass"], 0) + 1
        if (change := step.get("change")) is not None and change["kernels"]:
            expected = change["expected_clk"]
            found[step["pass"], counts[step["pass"]]] = {"kernels": change["kernels"], "expected_clk": expected}
    return found

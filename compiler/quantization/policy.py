"""Reads and writes plans as TOML files that users can edit.

    [[layer]]
    name = "Conv_0"          # a layer, or a pattern: "encoder*" (later entries win; not for attention)
    format = "bf16"

    [[layer]]
    name = "Conv_1"
    format = "e4m3"          # e4m3, e5m2, int8 or bf16; mxfp8, mxfp4, nvfp4: weights only
    scales = [0.0123]        # one for each activation operand; none: computed at run time (not in attention)
    unsigned = [true]        # int8: this operand is stored as u8
    weights_only = false     # true: only weights are stored in the format
    repaired = "9f2c..."     # the layer's arrays (weight scales, weights, bias, offset) in the .npz beside the file

Invariant: reading a written policy gives an equal plan; a name that matches no layer is an error.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppuc.compiler.inputs import read_npz, write_arrays
from ppuc.compiler.quantization.block_weights import in_blocks
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import BLOCKS, FORMATS, LayerPlan, Plan
from ppuc.ir.errors import UsageError
from ppuc.ir.files import write_file
from ppuc.ir.strict_toml import read_toml

_KEYS = {"name": str, "format": str, "scales": list, "unsigned": list, "weights_only": bool, "repaired": str}
_ARRAYS = ("weight_scale", "weights", "bias", "offset")


def write_policy(path: Path, plan: Plan, about: Mapping[str, str]) -> None:
    """Write `plan`, and an .npz file next to it with the arrays of repaired layers, if any. `about` is written as
    comments."""
    arrays: dict[str, np.ndarray] = {}
    lines = [f"# {key}: {value}" for key, value in about.items()]
    for name, layer in plan.layers.items():
        lines += ["", "[[layer]]", f"name = {json.dumps(name)}", f"format = {json.dumps(layer.format)}"]
        if layer.scales:
            lines.append(f"scales = [{', '.join(repr(s) for s in layer.scales)}]")
        if any(layer.unsigned):
            lines.append(f"unsigned = [{', '.join('true' if u else 'false' for u in layer.unsigned)}]")
        if layer.weights_only:
            lines.append("weights_only = true")
        own = {f"{name}/{key}": _plain(a) for key in _ARRAYS if (a := getattr(layer, key)) is not None}
        if own:
            arrays |= own
            lines.append(f'repaired = "{_digest(own)}"')
    if arrays:
        write_arrays(arrays_path(path), arrays)
    write_file(path, ("\n".join(lines) + "\n").encode())


def arrays_path(path: Path) -> Path:
    """The path of a policy's arrays."""
    return path.with_name(path.stem + ".npz")


def read_policy(path: Path, layers: Sequence[Layer]) -> Plan:
    """The plan in a file, for a graph with `layers`. Raises UsageError that names the invalid entry."""
    table = read_toml(path, UsageError)
    if unknown := sorted(set(table) - {"layer"}):
        raise UsageError.of(str(path), f"unknown key '{unknown[0]}'", expected="[[layer]] entries")
    found: dict[str, LayerPlan] = {}
    arrays: dict[str, np.ndarray] | None = None
    for number, entry in enumerate(table.get("layer", []), 1):
        where = f"{path}: layer {number}"
        plan, pattern = _entry(entry, where)
        if "repaired" in entry:
            arrays = read_npz(arrays_path(path)) if arrays is None else arrays
            plan = _with_arrays(plan, pattern, arrays, entry["repaired"], where)
        for layer in _matching(pattern, layers, where):
            _check_scales(plan, layer, where)
            found[layer.name] = plan
    return Plan(found)


def _entry(entry: Any, where: str) -> tuple[LayerPlan, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError.of(where, "needs a name", expected='name = "LAYER"')
    for key, value in entry.items():
        if key not in _KEYS:
            raise UsageError.of(where, f"unknown key '{key}'", expected=", ".join(_KEYS))
        if not isinstance(value, _KEYS[key]):
            raise UsageError.of(where, f"'{key}' has the wrong type", got=value, expected=_KEYS[key].__name__)
    name = entry.get("format", "e4m3")
    if name not in FORMATS:
        raise UsageError.of(where, "the format is unknown", got=name, expected=", ".join(FORMATS))
    scales = entry.get("scales", [])
    if not all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < float("inf") for s in scales):
        raise UsageError.of(where, "scales must be positive numbers", got=scales)
    unsigned = tuple(map(bool, entry.get("unsigned", [])))
    alone = entry.get("weights_only", name in BLOCKS)
    if name in BLOCKS and (scales or not alone):
        raise UsageError.of(where, f"{name} is a format for weights alone", got="scales" if scales else "all operands")
    return LayerPlan(name, tuple(map(float, scales)), unsigned, alone), entry["name"]


def _matching(pattern: str, layers: Sequence[Layer], where: str) -> list[Layer]:
    found = [layer for layer in layers if layer.name == pattern]
    if not found:  # attention needs its own scales, so patterns do not match it
        found = [n for n in layers if n.kind != "attention" and fnmatch.fnmatchcase(n.name, pattern)]
    if not found:
        close = difflib.get_close_matches(pattern, [layer.name for layer in layers], 1)
        hint = f"did you mean '{close[0]}'?" if close else "`ppuc quantize MODEL` lists the layers"
        raise UsageError.of(where, f"no layer is called '{pattern}'", hint=hint)
    return found


def _check_scales(plan: LayerPlan, layer: Layer, where: str) -> None:
    wanted = len(layer.inputs)
    if plan.scales and len(plan.scales) != wanted:
        raise UsageError.of(
            where, f"layer '{layer.name}' multiplies {wanted} activations", got=f"{len(plan.scales)} scales"
        )
    if layer.kind == "attention" and plan.quantized and not plan.weights_only:
        if plan.format == "int8":
            raise UsageError.of(where, f"attention '{layer.name}' has no int8 form", expected="e4m3, e5m2 or bf16")
        if not plan.scales:
            raise UsageError.of(
                where,
                f"attention '{layer.name}' needs scales of q, k and v",
                hint="`ppuc quantize --attention` finds them",
            )
    if plan.weights_only and layer.weights is None:
        raise UsageError.of(where, f"layer '{layer.name}' has no weights", hint="leave out weights_only")
    if plan.format in BLOCKS and in_blocks(layer, plan.format) is None:
        raise UsageError.of(
            where,
            f"the weights of layer '{layer.name}' cannot be stored in blocks",
            got=f"{layer.kind} with weights {layer.weights.type if layer.weights is not None else 'none'}",
            expected="a matmul whose depth is made of blocks of 8 or more",
        )


def _with_arrays(plan: LayerPlan, name: str, arrays: Mapping[str, np.ndarray], digest: str, where: str) -> LayerPlan:
    own = {key: arrays[f"{name}/{key}"] for key in _ARRAYS if f"{name}/{key}" in arrays}
    if _digest({f"{name}/{key}": a for key, a in own.items()}) != digest:
        raise UsageError.of(where, "the arrays beside the policy are not this layer's", hint="quantize again")
    if "offset" in own and not plan.scales:
        raise UsageError.of(where, f"layer '{name}' has offsets, which need scales", hint="quantize again")
    if "weights" in own:
        own["weights"] = own["weights"].view(plan.dtype.numpy)
    return replace(plan, **own)  # type: ignore[arg-type]


def _plain(array: np.ndarray) -> np.ndarray:
    """The array as u8 if numpy has no dtype for its format."""
    return array.view(np.uint8) if array.dtype.isbuiltin == 2 else array


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(name.encode() + str(arrays[name].shape).encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return hasher.hexdigest()[:16]

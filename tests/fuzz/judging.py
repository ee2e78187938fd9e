"""What becomes of a random node: compiled, simulated, and compared with ONNX Runtime and onnx.reference.

Invariant: a node agrees only when every element that the simulator computed is one that ONNX Runtime (nothing
optimised) or else onnx.reference computes, within what rounding makes of it.
"""

from __future__ import annotations

import enum
import functools
import os
import traceback
import warnings
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as ort

import ppuc
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.validation.compare import compare
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Session
from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.ir.errors import PpucError
from ppuc.ir.graph import Graph
from ppuc.ir.ops import OPS, Kind
from ppuc.ir.types import DType
from tests.fuzz.equivalents import equivalent
from tests.fuzz.sample import BF16, F16, Node

MOVING = (Kind.VIEW, Kind.MOVE, Kind.CONSTANT)
ULPS = 32.0
"""Of one elementwise op: special functions of two libraries differ by some units in the last place."""
SLACK, OFFENDERS = 4.0, 1 / 20
FOLDED = 1e-5
"""Of results that the importer computes, in f32 or better."""
LARGE = 1e4
"""From here on elements are compared relative to themselves, so that they do not hide errors of the others."""


OLDEST = 7
NARROW = (F16, BF16)
CONVERTING = frozenset({"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"})
"""Ops that are about the types of their inputs."""
ROUNDED = frozenset({"QLinearSoftmax", "Resize", "Upsample"})
"""Ops whose integers may differ by one: ONNX Runtime reads what it rounds from a table, or cuts off interpolated
numbers that are whole but for their last bit."""
GATED = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})
"""x times a gate that nears 0 as 1 - 1 does: errors are relative to x."""
GATED_ERROR = 1e-6
INCOMPLETE = {
    "GRU": "reads neither activations, clip, lengths nor layout",
    "LSTM": "reads neither activations, clip, lengths nor layout",
    "RNN": "reads neither clip, lengths nor layout",
    "Unique": "orders what is not to be sorted otherwise",
    "LpNormalization": "forgets the absolute value when p = 1",
}
"""Why onnx.reference is no oracle for an op."""


class Fate(enum.Enum):
    """`DISPUTED`: ONNX Runtime computes something else than onnx.reference, and ppuc agrees with the latter."""

    AGREES = "agrees"
    DISPUTED = "disputed"
    REFUSED = "refused"
    NO_ORACLE = "no oracle"
    DIFFERS = "differs"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Outcome:
    fate: Fate
    why: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.fate in (Fate.DIFFERS, Fate.FAULT)


Answer = list[np.ndarray] | str
"""What an oracle computes, or why it computes nothing."""


def declared(node: Node) -> list[tuple[np.dtype | None, tuple[int, ...] | None]]:
    """Element type and shape of each output by ONNX's own inference; None for what it does not find out."""
    inferred = onnx.shape_inference.infer_shapes(node.model, data_prop=True)
    found = []
    for output in inferred.graph.output:
        type = output.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in type.shape.dim)
        static = type.HasField("shape") and -1 not in dims
        dtype = onnx.helper.tensor_dtype_to_np_dtype(type.elem_type) if type.elem_type else None
        found.append((dtype, dims if static else None))
    return found


def _undeclared(node: Node, arrays: list[np.ndarray], of_shape: bool) -> str:
    """Which of the outputs is not of the type that the schema gives it; "" when all are."""
    for array, (dtype, dims) in zip(arrays, declared(node), strict=True):
        if dtype not in (None, array.dtype) or (of_shape and dims not in (None, array.shape)):
            return f"{array.dtype}{list(array.shape)} is not what the schema says: {dtype}{dims}"
    return ""


def by_onnxruntime(node: Node) -> Answer:
    """The outputs, or why there are none. A version of an op that ONNX Runtime does not know, or not for these types,
    is tried as the version before it."""
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"
    refusal = ""
    for model in (*_older(node.model), equivalent(node.model)):
        if model is None:
            continue
        try:
            found = Session.exact(model, "node").run(node.feeds)
        except Exception as error:  # PpucError, and what the binding says of types that it does not know
            refusal = refusal or f"ONNX Runtime: {error}"
            continue
        return [_typed(x, dtype) for x, (dtype, _) in zip(found, declared(node), strict=True)]
    return refusal


def _typed(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """ONNX Runtime returns 8-bit floats as their bits."""
    is_bits = dtype is not None and array.dtype == np.uint8 and dtype.itemsize == 1 and dtype.kind not in "iub"
    return array.view(dtype) if is_bits else np.asarray(array)


def _older(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """The model at opsets that ONNX Runtime may know, at which its node means the same, or nearly so."""
    node, opset = model.graph.node[0], model.opset_import[0].version
    opsets = [min(opset, _newest_of_onnxruntime())]
    if not node.domain and onnx.defs.has(node.op_type):
        before = onnx.defs.get_schema(node.op_type, opset).since_version - 1
        opsets += [before] if OLDEST <= before < opsets[0] else []
    models = []
    for version in opsets:
        models.append(onnx.ModelProto())
        models[-1].CopyFrom(model)
        models[-1].opset_import[0].version = version
    return models


def by_wider(node: Node) -> Answer:
    """What ONNX Runtime computes in f32 of a node on narrower floats, which it often has no kernels for."""
    graph = node.model.graph
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    narrow = [n for n, x in {**node.feeds, **weights}.items() if x.dtype in NARROW]
    if not narrow or graph.node[0].op_type in CONVERTING:
        return "ONNX Runtime: not narrower than f32"
    model = onnx.ModelProto()
    model.CopyFrom(node.model)
    for info in model.graph.input:
        if info.name in narrow:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.name in narrow:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    feeds = {n: x.astype(np.float32) if n in narrow else x for n, x in node.feeds.items()}
    return by_onnxruntime(Node(model, feeds))


@functools.cache
def _newest_of_onnxruntime() -> int:
    """The newest opset that ONNX Runtime knows. What came after it changed types, seldom meanings, of older ops."""
    return max(s.since_version for s in ort.get_all_operator_schema() if s.domain == "")


def by_reference(node: Node) -> Answer:
    """The outputs, or why there are none."""
    op = node.model.graph.node[0].op_type
    if op in INCOMPLETE:
        return f"onnx.reference: {INCOMPLETE[op]}"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            model = equivalent(node.model) if node.model.graph.node[0].domain else None
            results = ReferenceEvaluator(model or node.model).run(None, node.feeds)
    except Exception as error:  # whatever its numpy code raises
        return f"onnx.reference: {type(error).__name__}: {error}"
    arrays = [np.asarray(r) for r in results]
    broken = _undeclared(node, arrays, of_shape=True)
    return f"onnx.reference: {broken}" if broken else arrays


def outcome_of(node: Node, target: str, host: bool = False) -> Outcome:
    """Compile, simulate and compare. Only compiling may refuse: what was promised has to run."""
    try:
        program = ppuc.compile(node.model, target, host=host)
    except PpucError as error:
        return Outcome(Fate.REFUSED, str(error))
    except Exception:
        return Outcome(Fate.FAULT, traceback.format_exc())
    try:
        result = program.run(node.feeds)
    except Exception:  # PpucError too
        return Outcome(Fate.FAULT, traceback.format_exc())
    if result.profile.hazards:
        return Outcome(Fate.FAULT, f"hazards: {result.profile.hazards[0]}")
    names = [o.name for o in node.model.graph.output]
    return judged(node, [result.outputs[name] for name in names])


def judged(node: Node, got: list[np.ndarray]) -> Outcome:
    """`got` against both oracles, the second only when the first does not agree."""
    broken = _undeclared(node, got, of_shape=False)
    if broken:
        return Outcome(Fate.DIFFERS, broken)
    try:
        imported = load_model(node.model)
    except PpucError as error:
        return Outcome(Fate.REFUSED, str(error))
    judge = Judge(imported.graph, "model", {v.name: node.feeds[n] for n, v in imported.inputs})
    op = node.model.graph.node[0].op_type
    names = [o.name for o in node.model.graph.output]
    open_outputs = {i for i, name in enumerate(names) if name not in node.undefined}
    complaints, refusals = [], []
    for oracle in (by_onnxruntime, by_wider, by_reference):
        want = oracle(node)
        if isinstance(want, str):
            refusals.append(want)
            continue
        for i in sorted(open_outputs):
            expected = want[i].astype(got[i].dtype) if oracle is by_wider else want[i]
            found = _complaint(judge, imported.graph, imported.outputs[i][1].name, got[i], expected, op)
            if found:
                complaints.append(f"{oracle.__name__.removeprefix('by_')}: output {i}: {found}")
            else:
                open_outputs.remove(i)
        if not open_outputs:
            disputed = oracle is by_reference and complaints
            return Outcome(Fate.DISPUTED if disputed else Fate.AGREES, "; ".join(complaints))
    if not complaints:
        return Outcome(Fate.NO_ORACLE, "; ".join(refusals))
    return Outcome(Fate.DIFFERS, "; ".join((*complaints, *refusals)))


def _complaint(judge: Judge, graph: Graph, value: str, got: np.ndarray, want: np.ndarray, op: str) -> str:
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
    if not DType.of(got.dtype).is_float:
        if op in ROUNDED and int(np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0)) <= 1:
            return ""
        return judge.compare("y", value, got, want).reason
    if not graph.params:
        return compare("y", got, want, Tolerance(relative=FOLDED)).reason
    if op in GATED and compare("y", got, want, Tolerance(0.0, absolute=GATED_ERROR)).ok:
        return ""
    kinds = [kind for kind in (OPS[o.name].kind for o in graph.ops) if kind not in MOVING]
    if not kinds:
        return _exactly(got, want)
    if kinds == [Kind.ELEMENTWISE]:
        return _relative(got, want, ULPS)
    large = np.isfinite(want.astype(np.float64)) & (np.abs(want.astype(np.float64)) > LARGE)
    if large.any() and not large.all():
        rest = [np.where(large, np.zeros((), a.dtype), a) for a in (got, want)]
        alone = [np.where(large, a, np.zeros((), a.dtype)) for a in (got, want)]
        return _within(judge, value, *rest) or _within(judge, value, *alone)
    return _within(judge, value, got, want)


def _within(judge: Judge, value: str, got: np.ndarray, want: np.ndarray) -> str:
    """What the tolerance rule says, which one element in twenty may break: with four times its allowance."""
    found = judge.compare("y", value, got, want)
    if found.ok:
        return ""
    wide = compare("y", got, want, Tolerance(relative=SLACK * found.tolerance))
    return wide.reason or judge.compare("y", value, _without_worst(got, want), want).reason


def _without_worst(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """`got` with the worst of its elements, one in twenty, as they should be."""
    mended, count = got.copy(), int(got.size * OFFENDERS)
    errors = np.abs(got.astype(np.float64) - want.astype(np.float64)).reshape(-1)
    worst = np.argsort(np.nan_to_num(errors, nan=0.0))[errors.size - count :]
    mended.reshape(-1)[worst] = want.reshape(-1)[worst]
    return mended


def _exactly(got: np.ndarray, want: np.ndarray) -> str:
    """Moved elements: the sign of a zero counts, what a NaN carries does not."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) & (np.signbit(a) == np.signbit(b)) | np.isnan(a) & np.isnan(b)
    return "" if same.all() else f"{int((~same).sum())} of {a.size} elements are not the ones moved"


def _relative(got: np.ndarray, want: np.ndarray, ulps: float) -> str:
    """Every element within `ulps` units in the last place of itself."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    special = compare("y", np.where(np.isfinite(b), 0, a), np.where(np.isfinite(b), 0, b), Tolerance(relative=0.0))
    if not special.ok or bool((np.isfinite(a) != np.isfinite(b)).any()):
        return f"NaN or infinities differ: {special.reason}"
    info = ml_dtypes.finfo(got.dtype)
    unit, least = float(info.eps), float(info.smallest_subnormal)
    steps = ulps if got.dtype.itemsize >= 4 else 1.01
    with np.errstate(all="ignore"):
        error = np.where(np.isfinite(b), np.abs(a - b), 0.0)
        limit = steps * np.maximum(unit * np.abs(b), least)
    bad = error > np.where(np.isfinite(b), limit, 0)
    if not bad.any():
        return ""
    at = np.unravel_index(int(np.argmax(bad)), bad.shape) if bad.ndim else ()
    return f"element {[int(i) for i in at]} is {a[at]:.9g}, expected {b[at]:.9g}"

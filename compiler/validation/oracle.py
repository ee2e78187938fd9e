"""ONNX Runtime as the oracle for a model's tensors.

Invariant: the oracle sees the ONNX file itself, never anything that ppuc made of it (but for bf16, which it computes as
f32 that is rounded after each node, and for 8-bit products on CPUs that saturate them). It computes on one thread, so
that its answers do not depend on the host's cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnxruntime

from ppuc.compiler.frontend.expose import model_copy, of_known_version, serialised, with_outputs
from ppuc.compiler.frontend.unsigned_weights import saturates, with_unsigned_weights
from ppuc.compiler.frontend.widened import widened
from ppuc.ir.errors import Diagnostic, ModelError
from ppuc.ir.types import DType

if TYPE_CHECKING:
    import numpy as np
    import onnx

_FATAL_ONLY = 4
_DISABLED = ["ConvMulFusion", "DivMulFusion", "QDQPropagationTransformer"]
"""Rewrites of ONNX Runtime that multiply constants to an overflow, divide by a value that the model inverts, or abort
where the body of a loop or branch reads a dequantized tensor behind a reshape."""
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class Oracle:
    """An ONNX Runtime session over `source`, a path or a ModelProto. `tensors` names inner tensors to return as well;
    `change` makes another model of a copy of it."""

    def __init__(
        self,
        source: str | Path | onnx.ModelProto,
        tensors: Sequence[str] = (),
        change: Callable[[onnx.ModelProto], object] | None = None,
    ) -> None:
        self.where = str(source) if isinstance(source, str | Path) else source.graph.name or "model"
        self._narrow: frozenset[str] = frozenset()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if isinstance(source, str | Path):
            if not Path(source).is_file():
                raise ModelError.of(self.where, "there is no such file")
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(Path(source).resolve().parent))
        if change is not None:
            source = model_copy(source)
            change(source)
        source = exact_products(source)
        model: str | bytes
        if tensors:
            model = with_outputs(source, tuple(tensors))
        else:
            model = str(source) if isinstance(source, str | Path) else serialised(source)
        try:
            self._session = self._loaded(model, options)
        except ModelError as refusal:
            self._session = self._mended(source, tensors, options, refusal)
        if any("bfloat16" in i.type for i in (*self._session.get_inputs(), *self._session.get_outputs())):
            self._session = self._mended(source, tensors, options, None)
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def _mended(
        self, source: str | Path | onnx.ModelProto, tensors: Sequence[str], options: Any, refusal: ModelError | None
    ) -> Any:
        """A session over the model in a form that ONNX Runtime takes: of an IR version that it knows (`with_outputs`
        has seen to that), or with bf16 as f32 that is rounded, because neither its kernels nor numpy have bf16. Raises
        `refusal` when there is none."""
        older = of_known_version(source) if not tensors and refusal is not None else None
        if older is not None:
            with suppress(ModelError):
                return self._loaded(older, options)
        found = widened(source, tensors)
        if found is None:
            raise refusal or ModelError.of(self.where, "ONNX Runtime gives numpy no bf16")
        model, self._narrow = found
        return self._loaded(model, options)

    def _loaded(self, model: str | bytes, options: Any) -> Any:
        try:
            return onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED
            )
        except Exception as error:  # the binding raises its own unexported kinds
            raise _refusal(self.where, "ONNX Runtime cannot load the model", error) from error

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs (and the inner tensors asked for) by ONNX name: arrays, and lists for sequences. Raises ModelError
        when ONNX Runtime refuses."""
        session = self._session
        known = {i.name for i in (*session.get_inputs(), *session.get_overridable_initializers())}
        try:
            values = session.run(None, {n: self._array(n, a) for n, a in inputs.items() if n in known})
        except Exception as error:  # as above
            raise _refusal(self.where, "ONNX Runtime cannot run the model", error) from error
        return {n: self._result(n, value) for n, value in zip(self.outputs, values, strict=True)}

    def _array(self, name: str, value: Any) -> Any:
        """An input for the session: numpy scalars as arrays, bf16 of a widened model as f32."""
        array = np.asarray(value) if isinstance(value, np.generic) else value
        return array.astype(np.float32) if name in self._narrow and isinstance(array, np.ndarray) else array

    def _result(self, name: str, value: Any) -> Any:
        """An output in the model's type."""
        return value.astype(DType.BF16.numpy) if name in self._narrow and isinstance(value, np.ndarray) else value


class Session:
    """A serialised model that ONNX Runtime runs node by node as it is, without rewriting it; inputs by name, outputs in
    the model's order. Raises ModelError when ONNX Runtime refuses it."""

    def __init__(self, model: bytes, where: str) -> None:
        self.where = where
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise _refusal(where, "ONNX Runtime cannot load the graph", error) from error
        self._inputs = {i.name for i in self._session.get_inputs()}

    @classmethod
    def exact(cls, model: onnx.ModelProto, where: str) -> Session:
        """A session whose 8-bit products do not saturate on any CPU."""
        return cls(serialised(exact_products(model)), where)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs. Raises ModelError when ONNX Runtime refuses."""
        try:
            arrays = {n: np.asarray(a) for n, a in feeds.items() if n in self._inputs}  # numpy scalars it does not take
            return list(self._session.run(None, arrays))
        except Exception as error:  # as above
            raise _refusal(self.where, "ONNX Runtime cannot run the graph", error) from error


S = TypeVar("S", bound="str | Path | onnx.ModelProto")


def exact_products(source: S) -> S | onnx.ModelProto:
    """`source`, or where this CPU would saturate its products of u8 and s8, a copy that is computed exactly."""
    if not saturates(_only_output):
        return source
    return with_unsigned_weights(source) or source


def _only_output(model: bytes, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    (result,) = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return np.asarray(result)


def _refusal(where: str, what: str, error: Exception) -> ModelError:
    text = " ".join(str(error).split())[:400]
    return ModelError(Diagnostic(where, what, text, hint="`ppuc run` works without the oracle"))

"""Reference outputs in files: written from ONNX Runtime's answers, or brought from elsewhere.

A file holds outputs, and it may hold inputs, all by their names in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.program.compiled import CompiledProgram


def read_reference(path: Path, model: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `model` in a file; inputs in it are added to `arrays`, unless they are given already. Raises
    InputError for arrays that are neither, and for a file without outputs."""
    from ppuc.compiler.frontend.source import read_source
    from ppuc.compiler.inputs import read_npz
    from ppuc.ir.errors import InputError

    graph = read_source(model).model.graph
    inputs, outputs = {i.name for i in graph.input}, {o.name for o in graph.output}
    found = read_npz(path)
    unknown = [name for name in found if name not in inputs | outputs]
    if unknown or not outputs & set(found):
        what = f"'{unknown[0]}' is not an input or output of the model" if unknown else "holds no output of the model"
        raise InputError.of(str(path), what, expected=", ".join(sorted(outputs)))
    for name in inputs & set(found):
        arrays.setdefault(name, found[name])
    return {name: found[name] for name in found if name in outputs}


def write_reference(path: Path, program: CompiledProgram, feeds: Mapping[str, Any]) -> None:
    """Write the inputs `feeds` of the program's model and ONNX Runtime's outputs. Raises InputError when the file
    cannot be written."""
    from ppuc.compiler.inputs import write_npz
    from ppuc.compiler.validation.oracle import Oracle

    assert program.source is not None
    arrays = {**program.defaults, **program.fixed, **feeds}
    write_npz(path, {**arrays, **Oracle(program.source).run(arrays)})

"""Checks a model against the rules of ONNX once, before it is imported.

Invariant: a model that passes has no findings. With `lenient`, violations are replaced by their most likely meaning
where it is known, and each finding is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import onnx

from ppuc.compiler.frontend.conformance.findings import Finding, node_sites
from ppuc.compiler.frontend.conformance.inference import inference
from ppuc.compiler.frontend.conformance.known_shapes import shaped_nodes
from ppuc.compiler.frontend.conformance.model_rules import model_findings
from ppuc.compiler.frontend.conformance.node_rules import Signature, attribute_kinds, node_findings
from ppuc.compiler.frontend.conformance.scope_rules import scope_findings
from ppuc.compiler.frontend.conformance.shape_rules import shape_findings
from ppuc.compiler.frontend.conformance.stored import check_contents
from ppuc.compiler.frontend.source import ModelSource, Source, normal_domain, read_source
from ppuc.ir.errors import Diagnostic, ModelError

SHOWN = 20
"""Findings that one error names."""
HINT = "fix the file, or accept it with --lenient"


def findings(model: onnx.ModelProto) -> list[Finding]:
    """Violations of the rules of ONNX, in rule order. Inference runs only without other violations, and shapes are
    checked only if it finds no contradiction."""
    sites = list(node_sites(model))
    functions: dict[tuple[str, str], Signature] = {}
    for f in model.functions:  # overloads have one name
        inputs, outputs, kinds = functions.get(key := (normal_domain(f.domain), f.name), (0, 0, {}))
        functions[key] = max(inputs, len(f.input)), max(outputs, len(f.output)), {**kinds, **attribute_kinds(f)}
    found = [*model_findings(model), *scope_findings(model)]
    found += [finding for site in sites for finding in node_findings(site, functions)]
    if found:
        return found
    inferred, contradictions = inference(model, sites)
    return contradictions or [finding for node in shaped_nodes(inferred, sites) for finding in shape_findings(node)]


def conforming(source: ModelSource, lenient: bool = False, warn: Callable[[str], object] | None = None) -> Source:
    """`source`, read. Raises ModelError naming the violations, or a node or tensor that cannot be read at all. With
    `lenient`, each finding goes to `warn` instead (None: Python's warnings), and the model is fixed where possible."""
    read = read_source(source)
    found = findings(read.model)
    diagnostics = [_diagnostic(read, finding) for finding in found[:SHOWN]]
    if found and not lenient:
        raise ModelError(diagnostics)
    for diagnostic in diagnostics:
        (warn or warnings.warn)(str(replace(diagnostic, hint=None)))
    for finding in found:
        if finding.mend is not None:
            finding.mend()
    check_contents(read)
    return read


def _diagnostic(source: Source, finding: Finding) -> Diagnostic:
    where = f"{source.where}: {finding.place}" if finding.place else source.where
    return Diagnostic(where, finding.what, finding.got, finding.expected, HINT, finding.about)

"""Generates the reference documents in docs/ from the records: `make docs`, or `python -m tools.generate_docs`.

Invariant: documents depend only on the repository, so that tests/repository/test_docs.py can compare bytes.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import click

from ppuc.compiler.cli import cli
from ppuc.compiler.frontend.registry import IMPORTERS, importable_ops
from ppuc.compiler.metrics.base import parameters, summary
from ppuc.compiler.metrics.boxes import FORMS
from ppuc.compiler.metrics.choose import METRICS
from ppuc.compiler.metrics.detections import Boxes
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.pipeline import default as pipeline
from ppuc.compiler.pipeline.pass_options import describe_options, spec_of
from ppuc.compiler.pipeline.registry import OWN
from ppuc.ir import verify
from ppuc.ir.ops import OPS, Kind, OpDef
from ppuc.targets import isa
from ppuc.targets.description import builtin_targets, default_target, load_target, validation_targets
from ppuc.targets.schema import MARKS, Leaf, Target
from tests.support import text_samples

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Written by `make docs`; edit the records instead. -->"


def main() -> None:
    """Write every document whose text changed."""
    for name, make in DOCUMENTS.items():
        path, text = ROOT / "docs" / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"docs/{name} written")


def document(title: str, *parts: str) -> str:
    """A markdown document."""
    return "\n\n".join([f"# {title}", NOTICE, *parts]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; cells are escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def code(text: object) -> str:
    """`text` as inline code; "" for an empty text."""
    return f"`{text}`" if str(text) else ""


def paragraphs(docstring: str | None) -> list[str]:
    """A docstring's paragraphs; indented paragraphs and rewrites become code blocks."""
    found = []
    for part in inspect.cleandoc(docstring or "").split("\n\n"):
        drawn = "->" in part or part.startswith(" ") or "\n  " in part
        found.append(f"```\n{part}\n```" if drawn else " ".join(part.split()))
    return found


def ops_document() -> str:
    """docs/ops.md."""
    parts = [
        "What a graph is made of. Shapes are known numbers by the time an op exists; operands broadcast as in numpy. "
        "The formula is the definition; `reference` in the record is its executable form. `?` marks an optional "
        "operand, `...` any number of them. *Tiled* says how an op becomes a kernel: by its access pattern, by what it "
        "decomposes into, or by a pass of its own.",
    ]
    for kind in Kind:
        rows = [_op_row(record) for record in OPS.values() if record.kind is kind]
        if rows:
            parts += [f"## {kind.value}", table(("op", "operands", "attributes", "formula", "tiled"), rows)]
    parts += [
        "## ONNX ops that are imported",
        "By importer module in `compiler/frontend/`. Any other ONNX op is expanded by its own ONNX definition when it "
        "has one, and a model's own functions always are; `ppuc check MODEL.onnx` says which node is which.",
        table(("importer", "ONNX ops"), _importers()),
        "## ONNX's own tests, op by op",
        "Of the tests of the official suite that have a single node: how many pass, and how many of these without a "
        "host step (`python -m benchmarks.backend_suite --write docs/backend.md`; [backend.md](backend.md) has the "
        "others, and the reasons).",
        table(("ONNX op", "tests", "pass", "on the PPU", "share on the PPU"), _suite()),
    ]
    return document("Ops of the graph level", *parts)


def _suite() -> list[tuple[object, ...]]:
    """Rows of the table of the last backend suite run."""
    shares = json.loads((ROOT / "docs" / "backend.json").read_text(encoding="utf-8"))
    return [(op, tests, passed, own, f"{own / tests:.0%}") for op, (tests, passed, own) in sorted(shares.items())]


def _op_row(record: OpDef) -> tuple[str, ...]:
    attributes = ", ".join(f"`{f.name}: {_type(f.type)}`" for f in fields(record.attrs))
    tiled = "by decomposition" if record.decompose else "by access pattern" if record.indexing else "by its own pass"
    if record.kind in (Kind.CONSTANT, Kind.STRUCTURE):
        tiled = "-"
    elif record.kind is Kind.VIEW:
        tiled = "never: readers follow it"
    return code(record.name), record.operands, attributes, code(record.formula), tiled


def _type(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _importers() -> list[tuple[str, str]]:
    importable_ops()  # registers every importer
    families: dict[str, list[str]] = {}
    for (domain, op), function in IMPORTERS.items():
        family = function.__module__.rpartition(".")[2]
        families.setdefault(family, []).append(f"{domain}:{op}" if domain else op)
    return [(code(family), ", ".join(sorted(ops))) for family, ops in sorted(families.items())]


def passes_document() -> str:
    """docs/passes.md."""
    parts = [
        "The default pipeline, in order, and why each pass stands where it does (`compiler/pipeline/default.py`). The "
        "verifier runs after every pass; `ppuc compile --dump DIR` writes the module after each one, and `ppuc opt` "
        "goes on from there. `--disable-pass NAME` leaves out any pass that is not required.",
        _steps("PIPELINE", pipeline.PIPELINE),
        "`--pipeline none`, the shortest that runs: only what is required, and without the optional parts of those.",
        _steps("NONE", pipeline.NONE),
        "`--pipeline` also takes a list of passes as `ppuc opt -p` does, options in braces: `fold,tile{tries=8}`. "
        "Packages add passes and pipelines through entry points; `ppuc passes` lists what is installed, and "
        "[examples/plugin](../examples/plugin/README.md) is such a package.",
    ]
    for name, kind in OWN.items():
        parts += [f"## {name}", *_pass(kind)]
    return document("Passes", *parts)


def _steps(name: str, passes: Sequence[Pass]) -> str:
    """The steps of the pipeline defined by the constant `name`, with the comment of each."""
    rows = [
        (i, f"[`{spec_of(p)}`](#{p.name})", why)
        for i, (p, why) in enumerate(zip(passes, _reasons(name), strict=True), 1)
    ]
    return table(("", "pass", "why here"), rows)


def _reasons(name: str) -> list[str]:
    """The trailing comments of a pipeline's lines."""
    source = inspect.getsource(pipeline).partition(f"\n{name}: ")[2].partition("\n)")[0]
    return [m[1] for line in source.splitlines() if (m := re.fullmatch(r"    \w+\(.*\),  # (.*)", line))]


def _pass(kind: type[Pass]) -> list[str]:
    module = sys.modules[kind.__module__]
    parts = [*paragraphs(kind.__doc__), *paragraphs(module.__doc__)]
    for key, contracts in (("Requires", kind.requires), ("Ensures", kind.ensures)):
        if contracts:
            parts.append(f"{key}: " + "; ".join(f"`{c.name}` ({c.rule})" for c in contracts) + ".")
    if kind.required:
        parts.append(f"Required: {kind.required}.")
    options = describe_options(kind)
    if options:
        rows = [(code(o["name"]), code(o["type"]), code(o["default"])) for o in options]
        parts.append(table(("option", "type", "default"), rows))
    parts.append(f"Source: `{kind.__module__.removeprefix('ppuc.').replace('.', '/')}.py`.")
    return parts


def targets_document() -> str:
    """docs/targets.md."""
    machines = [load_target(name) for name in builtin_targets()]
    others = [load_target(name) for name in validation_targets()]
    columns = ("target", "CUs", "MHz", "TOPS by format", "l2 MiB", "hbm GB/s", "description")
    marks = table(("mark", "meaning"), [(code(mark), meaning) for mark, meaning in MARKS.items()])
    parts = [
        "The machines that come with ppuc. Each is a model of a device class, made of published numbers, measurements "
        "and estimates; every number says which it is. `--target FILE.toml` describes another machine, `--set "
        "KEY=VALUE` changes one number.",
        table(columns, map(_machine, machines)),
        f"The default is `{default_target()}`. Peaks follow from lanes, fragment, initiation interval and clock. Keys "
        "with a * are informational: they describe the machine, but no program, time or energy depends on them.",
        "Other accelerators, in the same terms, whose published measurements the timing is compared with "
        "([benchmarks/validation](../benchmarks/validation/README.md)); `ppuc targets NAME` prints their numbers.",
        table(columns, map(_machine, others)),
        'A file may begin with `like = "h100-class"` (a name, or the path of a .toml file from the folder of this one) '
        "and then states only the numbers in which its machine differs.",
        "## Marks",
        marks,
    ]
    for target in machines:
        parts += [
            f"## {target.name}",
            target.description,
            table(("key", "value", "unit", "mark", "source"), map(_leaf, target.leaves())),
        ]
    return document("Targets", *parts)


def _machine(target: Target) -> tuple[object, ...]:
    peaks = ", ".join(f"{dtype} {target.peak_tops(dtype):.4g}" for dtype in target.tensor.ii_clk)
    size, rate = f"{target.l2.bytes / 2**20:g}", f"{target.hbm.gbs:g}"
    return code(target.name), target.cu, f"{target.clock.max_mhz:g}", peaks, size, rate, target.description


def _leaf(leaf: Leaf) -> tuple[object, ...]:
    return code(leaf.path) + " *" * leaf.informational, leaf.value, leaf.unit, leaf.mark, leaf.source


def isa_document() -> str:
    """docs/isa.md."""
    word = [(code(name), *_slot(name)) for name in isa.WORD.names or ()]
    rows = [(code(i.mnemonic), f"0x{i.opcode:02x}", i.queue or "every queue", code(i.semantics)) for i in isa.ISA]
    parts = [
        *paragraphs(isa.__doc__),
        "## The word",
        f"{isa.WORD.itemsize} bytes, little-endian.",
        table(("slot", "type", "byte"), word),
        "## Instructions",
        table(("instruction", "opcode", "queue", "meaning"), rows),
    ]
    for entry in isa.ISA:
        parts += [
            f"### {entry.mnemonic}",
            f"```\n{entry.form}\n```",
            f"Meaning: `{entry.semantics}`.",
            f"Cost: {entry.cost}.",
        ]
        if entry.fields:
            slots = [(code(f.slot), code(f.attribute), f.meaning) for f in entry.fields]
            parts.append(table(("slot", "field", "meaning"), slots))
    return document("Instructions", *parts)


def _slot(name: str) -> tuple[str, int]:
    """Type and byte offset of a slot of the instruction word."""
    dtype, offset = dict(isa.WORD.fields or {})[name][:2]
    return str(dtype), offset


def cli_document() -> str:
    """docs/cli.md."""
    parts = [
        *paragraphs(cli.help),
        "Results go to stdout, progress and notes to stderr. Exit codes: 0 good, 1 the check failed, 2 the input or "
        "the call was wrong, 3 ppuc itself failed.",
        table(
            ("command", "what it does"), [(f"[`{n}`](#ppuc-{n})", c.short_help or "") for n, c in cli.commands.items()]
        ),
    ]
    for name, command in cli.commands.items():
        parts += _command(name, command)
    return document("Commands", *parts)


def _command(name: str, command: click.Command) -> list[str]:
    arguments = [p.metavar or p.name or "" for p in command.params if isinstance(p, click.Argument)]
    rows = [_option(p) for p in command.params if isinstance(p, click.Option)]
    parts = [
        f"## ppuc {name}",
        "```\n" + " ".join(["ppuc", name, "[OPTIONS]", *arguments]) + "\n```",
        *paragraphs(command.help),
        table(("option", "value", "meaning"), rows),
    ]
    if command.epilog:
        lines = [line.strip() for line in command.epilog.splitlines() if line.strip()]
        parts.append("```\n" + "\n".join(line for line in lines if line.startswith("ppuc")) + "\n```")
    return parts


def _option(option: click.Option) -> tuple[str, str, str]:
    value = option.metavar or ""
    if isinstance(option.type, click.Choice):
        value = ", ".join(str(c) for c in option.type.choices)
    elif not value and not option.is_flag:
        value = option.type.name.upper()
    return ", ".join(code(o) for o in option.opts), code(value), option.help or ""


def ir_document() -> str:
    """docs/ir.md."""
    levels, unchecked = invariants()
    parts = [
        "A module holds up to three levels: a graph of tensors, kernels of tile loops, a program of instruction "
        "streams. All are verified after every pass, can be executed, and have a text form that parses back to an "
        "equal object. The sample is one module with everything at every level; tests parse, verify and print it.",
        "## Text",
        *(f"### {title}\n\n```\n{text.rstrip()}\n```" for title, text in _SAMPLES),
        "The grammar of every line is `ir/text/grammar.lark`.",
        "## Invariants",
    ]
    for title, rows in levels:
        parts += [f"### {title}", table(("", "invariant"), rows)]
    return document("The three levels: text and invariants", *parts, unchecked)


_SAMPLES = (
    ("Module header", text_samples.HEADER),
    ("Level 1: graph", text_samples.GRAPH),
    ("Level 2: kernel", text_samples.KERNEL),
    ("Vector program", text_samples.VECTOR),
    ("Placement", text_samples.PLACEMENT),
    ("Level 3: program", text_samples.PROGRAM),
)


_LEVELS = {
    "Module": verify.module,
    "Graph (a group's body is a graph of its own)": verify.graph,
    "Kernel": verify.kernel,
    "Vector program": verify.vector,
    "Program": verify.program,
}


def invariants() -> tuple[list[tuple[str, list[tuple[str, str]]]], str]:
    """The numbered rules of each level, from its verifier's docstring, and what is not checked."""
    levels = []
    for title, module in _LEVELS.items():
        rules = re.findall(r"^([A-Z]\d+) +(.*(?:\n {4,}.*)*)", inspect.cleandoc(module.__doc__ or ""), re.M)
        levels.append((title, [(number, " ".join(text.split())) for number, text in rules]))
    *_, unchecked = inspect.cleandoc(verify.__doc__ or "").split("\n\n")
    return levels, " ".join(unchecked.split())


METRIC_FILE = """```toml
# fastestdet.toml: ppuc evaluate net.onnx --data pictures --metric fastestdet.toml
metric = "ap"
measure = "AP50"

[boxes]
outputs = ["preds"]              # [N, 1 + 4 + classes, rows, columns]
form = "fastestdet"
strides = [16]
size = [352, 352]
objectness_column = 0
box_columns = [1, 5]
class_columns = [5, 85]
objectness_power = 0.6
class_power = 0.4
nms = 0.45
```"""


def metrics_document() -> str:
    """docs/metrics.md."""
    parts = [
        "`--metric` of `ppuc quantize` and `ppuc evaluate` takes a metric's name, with parameters if need be "
        "(`--metric top-k,k=5`), a TOML file with a key `metric` and a key for each parameter, or a Python file with "
        "a function `metric(outputs, inputs) -> float` (both lists of dicts of arrays, one per sample). Larger is "
        "better. Labels are arrays in the data that are not inputs; where a metric names none, the model's outputs in "
        "f32 are the truth, and the figure says what a format changes.",
    ]
    for name, kind in sorted(METRICS.items()):
        parts += [f"## {name}", summary(kind), _parameters(kind)]
    parts += [
        "## boxes",
        "The table `boxes` of `ap`. " + summary(Boxes),
        _parameters(Boxes),
        "Forms of a box's numbers, where the point of a cell is (column + `centre`, row + `centre`) times the stride:",
        table(("form", "meaning"), [(code(name), text) for name, (text, _) in FORMS.items()]),
        METRIC_FILE,
    ]
    return document("Task metrics", *parts)


def _parameters(kind: type) -> str:
    rows = [(code(p.name), p.type, code(p.default) or "must be given") for p in parameters(kind)]
    return table(("parameter", "value", "default"), rows)


DOCUMENTS: dict[str, Callable[[], str]] = {
    "cli.md": cli_document,
    "ir.md": ir_document,
    "isa.md": isa_document,
    "metrics.md": metrics_document,
    "ops.md": ops_document,
    "passes.md": passes_document,
    "targets.md": targets_document,
}


if __name__ == "__main__":
    main()

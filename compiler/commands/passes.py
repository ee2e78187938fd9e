"""ppuc passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ppuc.compiler.commands.common import emit, json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command("passes", short_help="List pipelines and their passes.")
@json_option
def passes_command(as_json: bool) -> None:
    """List the passes of the default pipeline in order with what each does, the other pipelines (--pipeline NAME), the
    options of passes (`ppuc opt -p PASS{NAME=VALUE}`) and the passes that --disable-pass cannot disable."""
    from ppuc.compiler.pipeline.chosen import named_pipeline
    from ppuc.compiler.pipeline.pass_options import describe_options, options_text, spec_of
    from ppuc.compiler.pipeline.registry import PASSES, PIPELINES

    kinds = PASSES.complete()
    rows = [
        {"number": i, "pass": step.name, "help": _help(type(step)), "options": options_text(step)}
        for i, step in enumerate(named_pipeline("default"), 1)
    ]
    record = {
        "pipeline": rows,
        "pipelines": {name: [spec_of(step) for step in named_pipeline(name)] for name in PIPELINES.complete()},
        "options": {name: describe_options(kind) for name, kind in kinds.items()},
        "passes": [
            {
                "pass": name,
                "help": _help(kind),
                "required": kind.required or None,
                "requires": [contract.name for contract in kind.requires],
                "ensures": [contract.name for contract in kind.ensures],
                "package": PASSES.packages.get(name),
            }
            for name, kind in kinds.items()
        ],
    }
    emit("passes", record, as_json, _show)


def _help(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _show(out: Console, record: dict[str, Any]) -> None:
    from ppuc.compiler.report.tables import table

    known = {p["pass"]: p for p in record["passes"]}
    rows = [(r["number"], r["pass"], r["options"], r["help"] + _source(known[r["pass"]])) for r in record["pipeline"]]
    table(out, "pipeline default", ("", "pass", "options", "what it does"), rows, left=(1, 2, 3))
    for name, specs in record["pipelines"].items():
        if name != "default":
            out.print(f"\npipeline {name}\n  {', '.join(specs)}", highlight=False)
    used = {spec.partition("{")[0] for specs in record["pipelines"].values() for spec in specs}
    apart = [(p["pass"], p["help"] + _source(p)) for p in record["passes"] if p["pass"] not in used]
    _section(out, "passes outside all pipelines", apart)
    named = [(f"{name}{{{o['name']}=...}}", _about(o)) for name, listed in record["options"].items() for o in listed]
    _section(out, "options", named)
    held = [(p["pass"], _contracts(p)) for p in record["passes"] if p["requires"] or p["ensures"]]
    _section(out, "contracts", held)
    _section(out, "required", [(p["pass"], p["required"]) for p in record["passes"] if p["required"]])


def _section(out: Console, title: str, rows: list[tuple[str, str]]) -> None:
    from ppuc.compiler.report.tables import table

    if rows:
        out.print()
        table(out, title, ("", ""), rows, left=(0, 1), header=False)


def _about(option: dict[str, Any]) -> str:
    default = f"default {option['default']}" if option["default"] is not None else "to be given"
    return f"{option['type']}, {default}"


def _contracts(row: dict[str, Any]) -> str:
    return "; ".join(f"{key} {', '.join(row[key])}" for key in ("requires", "ensures") if row[key])


def _source(row: dict[str, Any]) -> str:
    return f" (package {row['package']})" if row["package"] else ""

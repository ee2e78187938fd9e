"""Builds the page: template, style, scripts, libraries and the record, in one HTML file.

Invariants: the page loads nothing, which its content security policy enforces; nothing that comes from the model is
parsed as HTML or script (the record is base64, and the scripts set text only); the same record gives the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from ppuc.ir.strict_json import plain

SCRIPTS = (
    "dom",
    "format",
    "run",
    "colours",
    "advice",
    "table",
    "chart",
    "links",
    "sections",
    "summary",
    "time",
    "roofline",
    "kernels",
    "blocks",
    "graph_layout",
    "graph_colours",
    "graph",
    "panel",
    "diff",
    "passes",
    "memory",
    "timeline",
    "quantization",
    "main",
)
"""Modules of `js/` in the order of their imports. They become one script, so a name is declared in one of them only."""

LIBRARIES = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js", "dagre.min.js")
"""Files of `vendor/`, in the order in which they need each other."""

_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class)\b)", re.MULTILINE)


def page(record: Mapping[str, Any]) -> str:
    """The page of a record (see `compiler/recording/record.py`) as the text of an HTML file, to be written as UTF-8.
    Sections that the record has nothing for say which command gives it. Raises nothing for a complete record."""
    model = record["model"]["name"] or record["model"]["file"]
    title = f"{model} on {record['target']['name']}"
    values = {
        "policy": _policy(),
        "title": html.escape(title),
        "style": _asset("style.css") + _asset("graph.css"),
        "libraries": "\n".join(f"<script>{text}</script>" for text in _libraries()),
        "licences": html.escape(_asset("vendor/LICENSES.txt")),
        "record": base64.b64encode(_compressed(record)).decode("ascii"),
        "script": script(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _asset("template.html"))


@cache
def script() -> str:
    """The page's own scripts as one: modules without imports and exports, in a scope of their own."""
    modules = (_EXPORT.sub("", _IMPORT.sub("", _asset(f"js/{name}.js"))) for name in SCRIPTS)
    return '(() => {\n"use strict";\n' + "\n".join(modules) + "})();"


def _compressed(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(plain(record), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode("utf-8", "surrogatepass"), 9, mtime=0)


@cache
def _policy() -> str:
    """A content security policy that lets run the page's scripts alone, by their hashes, and load nothing. Vega
    compiles expressions of charts, which name fields of the page and no text of the model: hence unsafe-eval."""
    hashes = (hashlib.sha256(text.encode()).digest() for text in (*_libraries(), script()))
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def _libraries() -> tuple[str, ...]:
    return tuple(_asset(f"vendor/{name}") for name in LIBRARIES)


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

"""The page in headless Chromium: every section is drawn, links by fragment work, hostile names stay text."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ppuc.compiler.report.page.page import page
from tests.support.browser import CHROMIUM, Shown, shown
from tests.support.recorded import HOSTILE, hostile_record, mlp_record

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def show(record: dict[str, Any], fragment: str, folder: Path) -> Shown:
    """The page of a record at a fragment; its scripts made no error and wrote nothing on the console."""
    (folder / "page.html").write_text(page(record), encoding="utf-8")
    found = shown(folder / "page.html", fragment, folder / "browser")
    assert 'data-ready="yes"' in found.dom
    assert "data-errors" not in found.dom
    assert found.console == ()
    return found


def section(found: Shown, name: str) -> str:
    """The HTML of a section."""
    part = re.search(
        rf'<details class="section" id="{name}".*?(?=<details class="section"|</main>)', found.dom, re.DOTALL
    )
    assert part is not None, name
    return part[0]


def tags(document: str) -> list[str]:
    """All tags of a document that begin an element."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append(tag)  # type: ignore[method-assign]
    parser.feed(document)
    return found


def test_every_section_is_drawn(tmp_path: Path) -> None:
    record = mlp_record()
    found = show(record, "all&kernel=" + next(iter(record["kernels"])), tmp_path)
    assert "largest loss" in section(found, "summary")
    for name, marks in (("time", 5), ("roofline", 2), ("memory", 3), ("timeline", 2)):
        assert section(found, name).count("<path") >= marks, name
    for kernel in record["kernels"]:
        assert kernel in section(found, "kernels")
    for node in record["graph"]["nodes"]:
        assert node["node"] in section(found, "graph")
    assert all(p["pass"] in section(found, "passes") for p in record["passes"])
    assert 'class="plus"' in section(found, "passes")
    assert "ppuc quantize MODEL.onnx" in section(found, "quantization")
    panel = found.dom[found.dom.index('<aside id="panel"') :]
    assert "Loop nest" in panel
    assert "Streams of instructions" in panel


def test_hazards_are_told_only_of_runs_that_looked_for_them(tmp_path: Path) -> None:
    record = mlp_record()
    for values, told in ((False, False), (True, True)):
        found = show(record | {"profile": {**record["profile"], "values": values}}, "all", tmp_path)
        assert ("Hazards: none" in section(found, "summary")) == told


def test_what_a_program_alone_does_not_hold_is_left_out(tmp_path: Path) -> None:
    record = mlp_record() | {"graph": None}
    del record["profile"]
    record["passes"] = [{k: p[k] for k in ("pass", "segment", "remarks")} for p in record["passes"] if p["remarks"]]
    found = show(record, "all&pass=0", tmp_path)
    assert "not in this record" in section(found, "graph")
    assert "holds neither the graph" in section(found, "graph")
    assert "ppuc profile measures it" in section(found, "timeline")
    assert "expected cycles" in section(found, "kernels")
    assert "a report of the .onnx has it" in section(found, "passes")


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    found = show(hostile_record(), "all", tmp_path)
    assert "data-stolen" not in found.dom
    assert "img" not in tags(found.dom)
    assert tags(found.dom).count("script") == tags(page(mlp_record())).count("script")
    for name in HOSTILE[:4]:
        assert html.escape(name, quote=False) in found.dom


def test_verified_and_quantized(tmp_path: Path) -> None:
    record = mlp_record()
    node = record["graph"]["nodes"][0]
    compared = {
        "name": node["writes"][0],
        "type": "f32[1]",
        "ok": True,
        "verdict": "ok",
        "max_abs": 1e-3,
        "cosine": 0.999,
        "sqnr_db": 31.25,
    }
    record["verify"] = {
        "verdict": "ok",
        "outputs": [compared],
        "layers": [compared],
        "hazards": [],
        "first_offender": None,
    }
    layer = {"layer": node["node"], "kind": "matmul", "macs": 10, "format": "e4m3", "scales": "static", "clipped": 0.0}
    record["quantize"] = {
        "policy": None,
        "accuracy": {"sqnr_db": 27.5, "agreement": 0.99},
        "metric": None,
        "share": 0.9,
        "time": {"bf16_seconds": 2e-6, "seconds": 1e-6, "speedup": 2.0},
        "layers": [
            layer | {"isolated_sqnr_db": 22.5, "accumulated_sqnr_db": 24.5, "cosine": 0.99, "saved_seconds": 1e-6}
        ],
        "pareto": [
            {
                "lifted": 1,
                "lifted_layers": [node["node"]],
                "share": 0.5,
                "sqnr_db": 33.0,
                "agreement": 1.0,
                "metric_drop": 0.0,
                "met": True,
            }
        ],
        "host": [],
        "goal": {"min_sqnr": 26.0, "min_agreement": None, "max_drop": None, "min_share": None},
        "goal_met": True,
    }
    found = show(record, f"all&node={node['node']}", tmp_path)
    assert "Accuracy: ok" in section(found, "summary")
    assert "31.3 dB" in section(found, "summary")
    assert "22.5 dB" in section(found, "quantization")
    assert "goal: 26.0 dB" in section(found, "quantization")
    assert section(found, "quantization").count("<path") >= 3
    assert "24.5 dB" in found.dom[found.dom.index('<aside id="panel"') :]

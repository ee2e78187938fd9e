"""The page of a record: one file that loads nothing, and whose names are data, never HTML or script."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ppuc.compiler.report.page import page as module
from ppuc.compiler.report.page.page import LIBRARIES, SCRIPTS, page, script
from tests.support.recorded import HOSTILE, hostile_record, mlp_record

ROOT = Path(module.__file__).parent


class Elements(HTMLParser):
    """The tags of a document with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and not self.scripts[-1][1]:
            self.scripts[-1] = (self.scripts[-1][0], data)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return mlp_record()


def embedded(text: str) -> dict[str, Any]:
    """The record in a page."""
    (data,) = [content for attributes, content in Elements(text).scripts if attributes.get("id") == "record"]
    found = json.loads(gzip.decompress(base64.b64decode(data, validate=True)))
    assert isinstance(found, dict)
    return found


class TestPage:
    def test_holds_the_record(self, record: dict[str, Any]) -> None:
        assert embedded(page(record)) == json.loads(json.dumps(record))

    def test_is_the_same_for_the_same_record(self, record: dict[str, Any]) -> None:
        assert page(record) == page(json.loads(json.dumps(record)))

    def test_loads_nothing(self, record: dict[str, Any]) -> None:
        found = Elements(page(record))
        loading = {"src", "href", "srcset", "data", "action"}
        assert not [(tag, attributes) for tag, attributes in found.tags if loading & attributes.keys()]
        (policy,) = [a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a]
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "'unsafe-inline'" not in policy.split("script-src", 1)[1].split(";", 1)[0]

    def test_allows_exactly_its_own_scripts(self, record: dict[str, Any]) -> None:
        found = Elements(page(record))
        run = [text for attributes, text in found.scripts if "type" not in attributes]
        (policy,) = [a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a]
        hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run}
        assert set(re.findall(r"'sha256-([^']+)'", str(policy))) == hashes
        assert len(run) == len(LIBRARIES) + 1

    def test_size(self, record: dict[str, Any]) -> None:
        """Libraries take 0.9 MB of the 5 MB that ResNet-50's page may have."""
        record = json.loads(json.dumps(record))
        record["passes"][0]["change"]["diff"] = "\n".join(f"+ line {i % 97}" for i in range(200_000))
        assert 900_000 < len(page(record).encode()) < 1_400_000

    def test_numbers_that_json_lacks_become_null(self, record: dict[str, Any]) -> None:
        changed = record | {"verify": {"outputs": [{"sqnr_db": float("inf")}]}}
        assert embedded(page(changed))["verify"]["outputs"] == [{"sqnr_db": None}]


class TestHostileNames:
    def test_stay_out_of_the_markup(self) -> None:
        record = hostile_record()
        text = page(record)
        assert embedded(text) == json.loads(json.dumps(record))
        plain = Elements(page(mlp_record()))
        assert [tag for tag, _ in Elements(text).tags] == [tag for tag, _ in plain.tags]
        assert not any(name in text for name in HOSTILE if re.search("[<>&\"']", name))

    def test_lone_surrogates_are_kept_from_breaking_the_page(self) -> None:
        record = mlp_record()
        record["model"] = record["model"] | {"name": "half \ud800 of a pair"}
        page(record).encode("utf-8", "surrogatepass")


class TestScripts:
    def test_are_all_listed(self) -> None:
        assert sorted(SCRIPTS) == sorted(f.stem for f in (ROOT / "js").glob("*.js"))
        assert sorted(LIBRARIES) == sorted(f.name for f in (ROOT / "vendor").glob("*.js"))

    def test_declare_every_name_once(self) -> None:
        """They share a scope: a second declaration would replace the first, or be an error."""
        declared = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script(), re.MULTILINE)
        assert len(declared) == len(set(declared)), sorted({n for n in declared if declared.count(n) > 1})

    def test_import_what_they_use(self) -> None:
        exported = {}
        for file in (ROOT / "js").glob("*.js"):
            for name in re.findall(r"^export (?:async )?(?:function|const) (\w+)", file.read_text(), re.MULTILINE):
                exported[name] = file.stem
        for file in (ROOT / "js").glob("*.js"):
            text = file.read_text()
            imports = re.findall(r'^import \{ (.*) \} from "\./(\w+)\.js";$', text, re.MULTILINE)
            taken = {name: origin for names, origin in imports for name in names.split(", ")}
            assert all(exported[name] == origin for name, origin in taken.items()), file.name
            body = re.sub(r"^import .*$|//.*$|/\*\*[\s\S]*?\*/", "", text, flags=re.MULTILINE)
            assert not [name for name in taken if not re.search(rf"\b{name}\b", body)], file.name

    def test_never_parse_text_as_markup(self) -> None:
        own = script()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment", own)
        assert not re.search(r"\beval\(|new Function|fetch\(|XMLHttpRequest|import\(", own)

    def test_do_not_end_their_element(self) -> None:
        for text in (script(), *((ROOT / "vendor" / name).read_text() for name in LIBRARIES)):
            assert not re.search(r"</script|<!--", text, re.IGNORECASE)

    def test_libraries_come_with_their_licences(self) -> None:
        licences = (ROOT / "vendor" / "LICENSES.txt").read_text()
        for name in ("vega 6", "vega-lite 6", "vega-embed 7", "@dagrejs/dagre 3", "d3-array"):
            assert name in licences

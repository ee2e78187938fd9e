"""Collects the cases of `.ppir` files: `pytest tests/filetests/fold`, `pytest tests/filetests/fold/constants.ppir`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.filetests.case import Case, CaseError, read_cases
from tests.filetests.run_case import run_case
from tests.filetests.texts import BLESS


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    return CaseFile.from_parent(parent, path=file_path) if file_path.suffix == ".ppir" else None


class CaseFile(pytest.File):
    """A file of cases."""

    def collect(self) -> Iterator[CaseItem]:
        for case in read_cases(self.path):
            yield CaseItem.from_parent(self, name=f"{case.first}: {case.title}", case=case)


class CaseItem(pytest.Item):
    """One case."""

    def __init__(self, *, case: Case, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case

    def runtest(self) -> None:
        run_case(self.case, bless=self.config.getoption(BLESS))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, CaseError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.case.first - 1, f"{self.path.name}:{self.case.first}"

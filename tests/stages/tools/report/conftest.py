"""A project with results, and the page that the report makes of them; made once for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.tools.report.page import build
from tests.support.projects.report import report_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with report_project(tmp_path_factory.mktemp("report") / "project") as root:
        yield root


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return build(project, project / "report.html").read_text(encoding="utf-8")

"""A folder with rows, videos and a mapping, read in one call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.formats import read_source
from tests.support.annotations.reading import ingest_params

#: Rows and rejects (place, reason, detail) of a mapping.
Read = tuple[list[Annotation], list[tuple[str, str, str]]]
Mapped = Callable[..., Read]


@pytest.fixture
def mapped(tmp_path: Path) -> Mapped:
    """Read rows by a mapping. ``rows``: text of the annotation file, or of a JSON document."""

    def read(mapping: str, rows: Any, videos: str = "a.mp4", name: str = "rows.json") -> Read:
        folder = tmp_path / "videos"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
        for video in videos.split():
            (folder / video).parent.mkdir(parents=True, exist_ok=True)
            (folder / video).touch()
        (tmp_path / "ours.yaml").write_text(mapping, encoding="utf-8")
        found = read_source(ingest_params(folder, str(tmp_path / "ours.yaml"), name))
        return found.rows, [(one.item, one.reason, one.detail) for one in found.rejects]

    return read

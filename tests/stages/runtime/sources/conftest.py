from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime.sources import remote
from stages.runtime.sources.store import SourceStore
from tests.support.servers.files import FileServer, file_server


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A web server of an empty folder. A request is tried once."""
    monkeypatch.setattr(remote, "TRIES", 1)
    folder = tmp_path / "web"
    folder.mkdir()
    with file_server(folder) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> SourceStore:
    return SourceStore(tmp_path / "cache", 10**9)

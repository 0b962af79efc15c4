"""The project that is served, its videos, its champion, and a server as a process of its own; made
once for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.projects.serving import as_the_project, loaded_champion, make_video_folder
from tests.support.servers.served import Server, make_large_videos, served


@pytest.fixture(scope="module")
def project(serving_root: Path) -> Iterator[Path]:
    with as_the_project(serving_root) as root:
        yield root


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def champion(project: Path, videos: Path) -> Iterator[Any]:
    with loaded_champion(project, videos) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def large_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_large_videos(tmp_path_factory.mktemp("large_videos"))


@pytest.fixture(scope="module")
def server(project: Path, large_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by the tests of a module; at its end it must leave nothing behind."""
    with served(project, large_videos, tmp_path_factory.mktemp("served")) as running:
        yield running

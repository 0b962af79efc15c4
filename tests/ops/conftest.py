"""Proofs on a team's servers and several hosts: `make test-ops`. Every test here has the mark
``ops``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.projects.smoke import make_project
from tests.support.servers import hosts, stack
from tests.support.servers.hosts import Host, make_hosts
from tests.support.servers.stack import Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("ops")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL, S3, MLflow with basic auth, Prefect and git, each a process of its own."""
    if why := stack.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("servers")
    # Pytest's own folder is closed to others, and PostgreSQL's user is one.
    tmp_path_factory.getbasetemp().chmod(0o755)
    with stack.running(folder) as started:
        yield started


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's files as a repository with the recipe `smoke`, on nobody's host."""
    return make_project(tmp_path_factory.mktemp("team") / "project")


@pytest.fixture
def two_hosts(servers: Stack, tmp_path: Path) -> list[Host]:
    """Hosts ``a`` and ``b``, which have the servers in their environment and nothing else in
    common."""
    if why := hosts.missing():
        pytest.skip(why)
    return make_hosts(tmp_path, servers.env(), "a", "b")

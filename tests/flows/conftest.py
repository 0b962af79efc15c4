"""Small projects: the real parameters and the shape of the real pipeline, with stages that take no
time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.processes.environment import QUIET
from tests.support.judges.fixtures import server as server
from tests.support.processes.once import made_once
from tests.support.projects.flow import make_small_project
from tests.support.servers.locked import Pages, served_pages
from tests.support.surroundings import forget


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate a test from the machine's configuration: no servers, no git identity of the user, no
    project around.
    """
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_", "PREFECT_", "GIT_", "DVC_")
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    for person in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{person}_NAME", "tester")
        monkeypatch.setenv(f"GIT_{person}_EMAIL", "tester@localhost")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Committed project in which nothing has run."""
    return make_small_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of the template as the working directory."""
    root = tmp_path / "project"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def done_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project in which `dvc repro` has run."""

    def repro(root: Path) -> None:
        shutil.copytree(template, root)
        env = {**os.environ, **QUIET, "VIDBRIDGE_PROJECT": str(root)}
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "summary"],
            cwd=root,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once(tmp_path_factory, "done-project", repro)


@pytest.fixture
def done(done_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of the project in which everything is up to date; its stages may run again."""
    root = tmp_path / "project"
    shutil.copytree(done_template, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def pages(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """Running pages, for all tests of a module."""
    with served_pages(template, tmp_path_factory.mktemp("locked") / "project") as shown:
        yield shown

"""A small real project: git, DVC with a local remote, stages that write model folders. Made
once, copied for each test (see `project`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from flows.processes.prefect_server import free_port
from stages.params import Params, load_params
from stages.tracking.gate.promote import promote
from stages.tracking.registry.register import register
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.processes.once import made_once
from tests.support.projects.repository import commit, git
from tests.support.projects.small import make
from tests.support.surroundings import forget
from tests.support.tracking.runs import into_one_file


@pytest.fixture(scope="session")
def dvc_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `dvc repro` and a commit. Do not change it: take the fixture `project`,
    a copy."""

    def run_and_commit(root: Path) -> None:
        root.mkdir()
        make(root)
        # A tracking database with its tables but without a run: making it takes longer than most
        # tests.
        with pytest.MonkeyPatch.context() as patch:
            forget(patch, "VIDBRIDGE_", "MLFLOW_")
            open_client(root)
        into_one_file(root)

    return made_once(tmp_path_factory, "tracked-project", run_and_commit)


@pytest.fixture
def project(dvc_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that a test may change, with an empty tracking store and nothing
    from the caller's environment."""
    for name in list(os.environ):
        if name.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_")) or name == "RANK":
            monkeypatch.delenv(name)
    root = tmp_path / "project"
    shutil.copytree(dvc_project, root)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    # No git identity: production must not need one.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    return root


@pytest.fixture(scope="session")
def template(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 7, an empty cache: everything comes from the remote. Do not change it, nor its
    content."""

    def registered(root: Path) -> None:
        shutil.copytree(dvc_project, root)
        with pytest.MonkeyPatch.context() as patch:
            forget(patch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
            register(Session(root))
        into_one_file(root)
        for folder in (".dvc/cache", "models"):
            shutil.rmtree(root / folder)

    return made_once(tmp_path_factory, "registered-project", registered)


@pytest.fixture
def params(project: Path) -> Params:
    return load_params(project / "params.yaml")


@pytest.fixture
def repro() -> Callable[[Path], None]:
    """Run the pipeline again after a change."""
    from dvc.repo import Repo

    def again(root: Path) -> None:
        # DVC resolves some of its paths against the working directory.
        with chdir(root), Repo(str(root)) as repo:
            repo.reproduce(all_pipelines=True)

    return again


@pytest.fixture
def save() -> Callable[[Path, str], str]:
    """Commit what is not ignored."""
    return commit


@pytest.fixture
def git_output() -> Callable[..., str]:
    """Run git in a folder. Returns its output."""
    return git


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real tracking server on a free port of the loopback interface. Yields its URI."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("wb") as log:
        # Its job runner would be four more unused processes.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"mlflow server did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


@pytest.fixture(scope="session")
def champion_template(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose candidate is champion; take the fixture `here`, a copy."""

    def promoted(root: Path) -> None:
        shutil.copytree(dvc_project, root)
        with pytest.MonkeyPatch.context() as patch:
            forget(patch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
            patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
            patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
            register(Session(root))
            assert promote(Session(root), author="tester").moved
        into_one_file(root)

    return made_once(tmp_path_factory, "promoted-project", promoted)


@pytest.fixture
def here(champion_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project whose candidate is champion."""
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    root = tmp_path / "project"
    shutil.copytree(champion_template, root)
    return root

"""The project of :mod:`tests.support.projects.flow` with what deployments need, and commands and a
server in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.processes import environment, prefect_server
from tests.support.checkout import ROOT
from tests.support.projects.flow import make_small_project
from tests.support.projects.repository import commit


def make(root: Path) -> Path:
    """A committed project in which nothing has run, with what deployments need."""
    make_small_project(root)
    (root / "infra").mkdir()
    for name in ("infra/prefect.yaml", "infra/work-pool.json"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    commit(root, "deployments")
    return root


def environ(**changes: str) -> dict[str, str]:
    """Nothing of this machine's projects and servers."""
    ours = ("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "GIT_", "DVC_")
    people = {f"GIT_{who}_{what}": "tester@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **inherited,
        **environment.QUIET,
        **people,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **changes,
    }


def start(root: Path, *arguments: str, log: Path, **changes: str) -> subprocess.Popen[bytes]:
    """``vidbridge`` as it is installed."""
    with log.open("wb") as out:
        command = [sys.executable, "-m", "flows.cli.command", *arguments]
        return subprocess.Popen(
            command, cwd=root, env=environ(**changes), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


@contextmanager
def serving(root: Path) -> Iterator[tuple[dict[str, str], int]]:
    """Prefect's server with its schedules: the environment in which clients find it, and the
    process that is its guard."""
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(environment.state(root) / "prefect")
    try:
        with prefect_server.serving(root, 0) as running:
            yield {"PREFECT_API_URL": running.url(), "PREFECT_API_AUTH_STRING": running.key}, running.process.pid
    finally:
        os.environ.clear()
        os.environ.update(before)

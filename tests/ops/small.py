"""The small project of the tests of flows (real parameters, stages that take no time) for the proofs here, and commands in it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flows import project, server

TESTS = Path(__file__).resolve().parents[1]


def _flows() -> ModuleType:
    # By its path: pytest knows two files of that name.
    spec = importlib.util.spec_from_file_location("small_project_of_flows", TESTS / "flows/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(root: Path) -> Path:
    """A committed project in which nothing has run."""
    flows = _flows()
    (root / ".dvc").mkdir(parents=True)
    for name in ("params.yaml", ".gitignore", ".dvc/config", "infra/prefect.yaml", "infra/work-pool.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((TESTS.parent / name).read_bytes())
    (root / "work.py").write_text(flows.WORK)
    (root / "learning.py").write_text("rate = 1\n")
    (root / "dvc.yaml").write_text(flows.PIPELINE)
    flows.git(root, "init", "-q", "-b", "main")
    commit(root, "start")
    return root


def commit(root: Path, message: str) -> None:
    who = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    for arguments in (["add", "-A"], [*who, "commit", "-qm", message]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)


def knobs(root: Path, **table: dict[str, float]) -> None:
    (root / "knobs.json").write_text(json.dumps(table))


def environ(**changes: str) -> dict[str, str]:
    """Nothing of this machine's projects and servers."""
    ours = ("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "GIT_", "DVC_")
    people = {f"GIT_{who}_{what}": "tester@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **inherited,
        **project.QUIET,
        **people,
        "PATH": path,
        "PYTHONPATH": str(TESTS.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **changes,
    }


def start(root: Path, *arguments: str, log: Path, **changes: str) -> subprocess.Popen[bytes]:
    """``vidbridge`` as it is installed."""
    with log.open("wb") as out:
        command = [sys.executable, "-m", "flows.command", *arguments]
        return subprocess.Popen(command, cwd=root, env=environ(**changes), stdin=subprocess.DEVNULL, stdout=out, stderr=out)


@contextmanager
def serving(root: Path) -> Iterator[tuple[dict[str, str], int]]:
    """Prefect's server with its schedules: the environment in which clients find it, and the process that is its guard."""
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(project.state(root) / "prefect")
    try:
        with server.serving(root, 0) as running:
            yield {"PREFECT_API_URL": running.url(), "PREFECT_API_AUTH_STRING": running.key}, running.process.pid
    finally:
        os.environ.clear()
        os.environ.update(before)

"""Copies of the project that run the recipe `smoke` for real, for the end-to-end tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.checkout import RESULTS, ROOT
from tests.support.projects.repository import commit, git

BIN = Path(sys.executable).parent


def environment(project: Path, **changes: str) -> dict[str, str]:
    """What a stage of ``project`` needs: this interpreter first, the project's own code, its own
    servers' homes."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "GIT_"))}
    return {
        **inherited,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        **changes,
    }


def make_project(folder: Path) -> Path:
    """A git repository with this checkout's files (committed or not) and the recipe `smoke`."""
    folder.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        # What was run in the checkout stays there.
        if name not in RESULTS and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    shutil.copyfile(folder / "infra/recipes/smoke.yaml", folder / "params.yaml")
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "smoke")
    return folder


def call(project: Path, *command: str, timeout_s: float = 550, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment in the project, output captured."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=project,
        env=environment(project, **changes),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def succeed(project: Path, *command: str, timeout_s: float = 550, **changes: str) -> str:
    """The output of a command that must end with status 0."""
    done = call(project, *command, timeout_s=timeout_s, **changes)
    assert done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def belonging_to(project: Path) -> list[psutil.Process]:
    """Live processes that work in the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(project):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found

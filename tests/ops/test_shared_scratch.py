"""Two hosts with one VIDBRIDGE_SCRATCH train the same row at once, under plain `dvc repro`: one
result, whatever becomes of the first."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.projects import smoke
from tests.support.servers import hosts

ROW = "sft@cold-start"
OUT = "models/cold-start"
#: A name, a PID namespace and a process 1 of its own: nobody outside can be looked up.
HOST = ("unshare", "--user", "--map-root-user", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c")
WAIT_S = 600


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything before the row is made."""
    if why := hosts.missing():
        pytest.skip(why)
    root = smoke.make_project(tmp_path_factory.mktemp("prepared") / "project")
    dvc(root, "repro", "base").wait(WAIT_S)
    return root


def environment(root: Path, scratch: Path) -> dict[str, str]:
    env = smoke.environment(root, VIDBRIDGE_SCRATCH=str(scratch), VIDBRIDGE_LOST_AFTER_S="20", DVC_NO_ANALYTICS="1")
    return {**env, "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}


def dvc(root: Path, *arguments: str, host: str | None = None, scratch: Path | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dvc", *arguments]
    if host:
        command = [*HOST, f'hostname {host} && exec "$@"', "sh", *command]
    with (root / "said.log").open("wb") as log:
        env = environment(root, scratch or root / ".vidbridge/scratch")
        return subprocess.Popen(command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def said(root: Path) -> str:
    return (root / "said.log").read_text(errors="replace")


def locked(root: Path) -> Any:
    return yaml.safe_load((root / "dvc.lock").read_text())["stages"][ROW]


def content(root: Path) -> dict[str, str]:
    out = root / OUT
    return {
        str(path.relative_to(out)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        if process.poll() is None:
            tree = psutil.Process(process.pid).children(recursive=True)
            for one in [psutil.Process(process.pid), *tree]:
                if one.is_running():
                    one.kill()
        process.wait()


@pytest.mark.parametrize("killed", [False, True], ids=["both-live", "the-first-is-lost"])
def test_the_second_waits_and_comes_to_the_same(prepared: Path, tmp_path: Path, killed: bool) -> None:
    first, second = (shutil.copytree(prepared, tmp_path / name, symlinks=True) for name in ("a", "b"))
    scratch = tmp_path / "scratch"
    one = dvc(first, "repro", "--single-item", ROW, host="host-a", scratch=scratch)
    deadline = time.monotonic() + WAIT_S
    while not list(scratch.glob("*/*/saved/checkpoint-50.json")):
        assert one.poll() is None, said(first)
        assert time.monotonic() < deadline, said(first)
        time.sleep(0.05)
    if killed:
        end(one)
    other = dvc(second, "repro", "--single-item", ROW, host="host-b", scratch=scratch)
    try:
        if not killed:
            # It may end before the other one has made its imports; what that finds is whole either
            # way.
            assert one.wait(WAIT_S) == 0, said(first)
        assert other.wait(WAIT_S) == 0, said(second)
    finally:
        end(one, other)
    assert "checkpoint-50/model.safetensors" in content(second)
    assert "final/model.safetensors" in content(second)
    if killed:
        assert "is held by process" in said(second)
        assert "on host-a, whose sign of life stood still for" in said(second)
        assert "resumed from step 50" in said(second)
    else:
        assert content(first) == content(second)
        assert locked(first) == locked(second)
        assert "is gone from" not in said(first) + said(second)
    assert not list(scratch.glob("*/*/lease/*"))

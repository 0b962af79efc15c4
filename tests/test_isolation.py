"""No test depends on the folder it is started in, nor on what was run in the checkout before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stages.runtime.project import ProjectError, find_project, project_root
from tests.support.checkout import RESULTS, ROOT


def test_no_project_is_found_from_where_tests_run() -> None:
    assert find_project() is None
    with pytest.raises(ProjectError, match="is not inside a project"):
        project_root()
    # Nor by a process that a test starts and tells nothing.
    told = [sys.executable, "-m", "flows.cli.main", "plan"]
    done = subprocess.run(told, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "is not inside a project" in done.stderr


@pytest.mark.parametrize("name", RESULTS)
def test_what_was_run_in_the_checkout_is_out_of_reach(name: str) -> None:
    place = ROOT / name
    with pytest.raises(PermissionError, match="give it files of its own"):
        (place / "final" / "config.json").read_text()
    with pytest.raises(PermissionError, match="give it files of its own"):
        list(place.iterdir())


def test_all_that_runs_leave_behind_is_out_of_reach() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    tools = {".venv", ".tools", ".uv-cache", "__pycache__", "*.egg-info", "*.unfinished", "dvc.lock.broken"}
    caches = {name for name in ignored if name.endswith("_cache") or name == ".hypothesis"}
    # DVC's lock is no ignored file: people commit it.
    assert ignored - tools - caches == set(RESULTS) - {"dvc.lock"}


def test_no_process_of_a_test_is_started_in_the_checkout() -> None:
    started = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if "cwd=" + "ROOT" in line
    ]
    assert started == []

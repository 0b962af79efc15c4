"""A run's commit on a branch of its own, made without touching the user's work tree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.tracking.lineage.commits import holding_commit, record_commit
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.uri import TrackingError


def test_it_commits_the_lock_and_leaves_everything_else_alone(
    project: Path, repro: Callable[[Path], None], git_output: Callable[..., str]
) -> None:
    (project / "rates.json").write_text("2\n")
    (project / "staged.txt").write_text("staged by someone\n")
    git_output(project, "add", "staged.txt")
    repro(project)
    state = git_output(project, "status", "--porcelain")
    index = (project / ".git/index").read_bytes()
    out = read_lock(project)["grpo@general"].outs["models/general"]
    assert holding_commit(project, "grpo@general", out) is None

    commit = record_commit(project, "2026-11-20T12.00")
    assert (
        git_output(project, "rev-parse", "runs/2026-11-20T12.00", "runs/2026-11-20T12.00~1", "main").split()[0]
        == commit
    )
    assert git_output(project, "rev-parse", f"{commit}~1").strip() == git_output(project, "rev-parse", "main").strip()
    assert git_output(project, "diff", "--name-only", "main", commit).split() == ["dvc.lock"]
    assert git_output(project, "show", f"{commit}:dvc.lock") == (project / "dvc.lock").read_text().strip()
    assert git_output(project, "log", "-1", "--format=%an <%ae>", commit).strip() == "vidbridge <vidbridge@localhost>"
    assert git_output(project, "status", "--porcelain") == state
    assert (project / ".git/index").read_bytes() == index
    assert git_output(project, "symbolic-ref", "HEAD").strip() == "refs/heads/main"
    assert holding_commit(project, "grpo@general", out) == commit
    assert holding_commit(project, "grpo@bridge", out) is None
    # Nothing new: the same commit, no new branch.
    assert record_commit(project, "another") == commit
    assert git_output(project, "branch", "--list", "runs/*").split() == ["runs/2026-11-20T12.00"]


def test_head_that_holds_the_lock_is_enough(project: Path, git_output: Callable[..., str]) -> None:
    assert record_commit(project, "x") == git_output(project, "rev-parse", "HEAD").strip()
    assert git_output(project, "branch", "--list", "runs/*") == ""


def test_a_commit_is_found_after_its_lock_was_replaced(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str], git_output: Callable[..., str]
) -> None:
    first = git_output(project, "rev-parse", "HEAD").strip()
    out = read_lock(project)["grpo@general"].outs["models/general"]
    (project / "rates.json").write_text("2\n")
    repro(project)
    save(project, "second")
    assert holding_commit(project, "grpo@general", out) == first


def test_a_project_below_the_top_of_a_repository(project: Path, tmp_path: Path, git_output: Callable[..., str]) -> None:
    top = tmp_path / "top"
    git_output(tmp_path, "init", "-q", "-b", "main", str(top))
    shutil.copytree(project, top / "sub", ignore=shutil.ignore_patterns(".git", "cache"))
    git_output(top, "add", "-A")
    git_output(top, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")
    with (top / "sub/dvc.lock").open("a") as lock:
        lock.write("# changed\n")
    commit = record_commit(top / "sub", "r1")
    assert git_output(top, "diff", "--name-only", "main", commit).split() == ["sub/dvc.lock"]
    assert holding_commit(top / "sub", "base", read_lock(top / "sub")["base"].outs["models/base/final"])


def test_what_cannot_be_committed_is_named(project: Path, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="not a git repository"):
        record_commit(tmp_path, "x")
    with pytest.raises(TrackingError, match="letters, digits"):
        record_commit(project, "../main")
    (project / "dvc.lock").unlink()
    with pytest.raises(TrackingError, match="run the pipeline first"):
        record_commit(project, "x")
    shutil.rmtree(project / ".git")
    with pytest.raises(TrackingError, match="not a git repository"):
        record_commit(project, "x")

"""Which commit holds a result's ``dvc.lock``, and how a run leaves one behind without touching the work tree."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from stages.runtime.paths import LOCK_FILE, PARAMS_FILE
from stages.tracking.lineage.git import git, head, is_repository
from stages.tracking.lineage.lockfile import parse_lock
from stages.tracking.lineage.uri import TrackingError

RUN_BRANCHES = "refs/heads/runs/"
#: Those that were fetched from other hosts: a run that found all of their results makes no branch of its own.
_FETCHED_RUNS = "refs/remotes/*/runs/**"
#: Who commits when git knows nobody: the pipeline.
IDENTITY = {
    "GIT_AUTHOR_NAME": "vidbridge",
    "GIT_AUTHOR_EMAIL": "vidbridge@localhost",
    "GIT_COMMITTER_NAME": "vidbridge",
    "GIT_COMMITTER_EMAIL": "vidbridge@localhost",
}


def holding_commit(root: Path, stage: str, out: str) -> str | None:
    """A commit on any branch or tag whose ``dvc.lock`` says that ``stage`` produced content ``out``; None where there is none.

    The newest change that mentions the hash wins; an uncommitted ``dvc.lock`` counts for nothing.
    """
    if not is_repository(root) or head(root) is None:
        return None
    path = _in_repository(root, LOCK_FILE)
    # The pickaxe names commits that add or drop the hash; a drop no longer holds it.
    for commit in git(root, "log", "--all", "-m", "--format=%H", f"-S{out}", "--", f":/{path}").split():
        try:
            text = git(root, "cat-file", "blob", f"{commit}:{path}")
        except TrackingError:
            continue  # This commit deleted the file.
        try:
            record = parse_lock(text.encode(), f"{commit}:{path}").get(stage)
        except TrackingError:
            continue  # Committed with the marks of a merge in it: it says nothing.
        if record and out in record.outs.values():
            return commit
    return None


def stamped(name: str, *ending: str) -> str:
    """A name for :func:`record_commit`: what ran, when (UTC), and what tells it from another of that second."""
    return "-".join((name, time.strftime("%Y%m%d-%H%M%S", time.gmtime()), *ending))


def record_commit(root: Path, run_name: str) -> str:
    """Commit ``dvc.lock`` and ``params.yaml`` on the branch ``runs/<run_name>``, on top of HEAD; returns the commit.

    Work tree, index and current branch stay as they are, and no git identity is needed. Where HEAD or a ``runs/`` branch holds the
    same ``dvc.lock`` and ``params.yaml`` already, that commit is returned and nothing is written.

    Raises:
        TrackingError: no git repository, no commit to build on, no ``dvc.lock``, or a name that is none.
    """
    if not is_repository(root):
        raise TrackingError(
            f"{root}: no git repository, so no commit can hold dvc.lock; run git init and commit the project, or clone it"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_name) or ".." in run_name or run_name.endswith((".lock", ".")):
        raise TrackingError(f"run name {run_name!r}: letters, digits, '.', '_' and '-' only, it becomes the branch runs/<name>")
    base = head(root)
    if base is None:
        raise TrackingError(f"{root}: the repository has no commit yet; commit the project first")
    if not (root / LOCK_FILE).is_file():
        raise TrackingError(f"{root / LOCK_FILE}: no such file; run the pipeline first: vidbridge run")
    blobs = {
        _in_repository(root, name): git(root, "hash-object", "-w", "--no-filters", "--", str(root / name))
        for name in (LOCK_FILE, PARAMS_FILE)
        if (root / name).is_file()
    }
    for commit in (base, *git(root, "for-each-ref", "--format=%(objectname)", RUN_BRANCHES, _FETCHED_RUNS).split()):
        if all(blob_at(root, commit, path) == blob for path, blob in blobs.items()):
            return commit
    reference = f"{RUN_BRANCHES}{run_name}"
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", base, env=index)
        for path, blob in blobs.items():
            git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=index)
        tree = git(root, "write-tree", env=index)
    message = f"Run {run_name}: dvc.lock and params.yaml\n"
    commit = git(root, "commit-tree", tree, "-p", base, env=_identity(root), stdin=message.encode())
    # An existing branch of that name is never overwritten: the old value must be "none".
    git(root, "update-ref", reference, commit, "0" * 40)
    return commit


def _in_repository(root: Path, name: str) -> str:
    """The path of a project's file from the top of the repository (the project may be a folder inside it)."""
    return git(root, "rev-parse", "--show-prefix") + name


def blob_at(root: Path, commit: str, path: str) -> str | None:
    """The hash of a file as a commit or tree has it, ``path`` from the top of the repository; None: it has none."""
    # Not by `--format`, which git before 2.36 does not know.
    about = git(root, "ls-tree", "--full-tree", commit, "--", path).split()
    return about[2] if about else None


def _identity(root: Path) -> dict[str, str]:
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
    except TrackingError:
        return {name: os.environ.get(name) or value for name, value in IDENTITY.items()}
    return {}

"""Find the commit that holds a result's ``dvc.lock``, and commit a run's results without touching
the work tree."""

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
#: Branches fetched from other hosts: a run that finds all its results there makes no branch of its
#: own.
_FETCHED_RUNS = "refs/remotes/*/runs/**"
#: Identity of commits where git has none: the pipeline.
IDENTITY = {
    "GIT_AUTHOR_NAME": "vidbridge",
    "GIT_AUTHOR_EMAIL": "vidbridge@localhost",
    "GIT_COMMITTER_NAME": "vidbridge",
    "GIT_COMMITTER_EMAIL": "vidbridge@localhost",
}


def holding_commit(root: Path, stage: str, out: str) -> str | None:
    """Find a commit on any branch or tag whose ``dvc.lock`` says that ``stage`` produced content
    ``out``; None if there is none.

    The newest change that mentions the hash wins; an uncommitted ``dvc.lock`` does not count.
    """
    if not is_repository(root) or head(root) is None:
        return None
    path = _in_repository(root, LOCK_FILE)
    # The pickaxe finds commits that add or drop the hash; after a drop the commit no longer holds
    # it.
    for commit in git(root, "log", "--all", "-m", "--format=%H", f"-S{out}", "--", f":/{path}").split():
        try:
            text = git(root, "cat-file", "blob", f"{commit}:{path}")
        except TrackingError:
            continue  # This commit deleted the file.
        try:
            record = parse_lock(text.encode(), f"{commit}:{path}").get(stage)
        except TrackingError:
            continue  # Committed with conflict markers in it: unreadable.
        if record and out in record.outs.values():
            return commit
    return None


def stamped(name: str, *ending: str) -> str:
    """Build a name for :func:`record_commit`: the subject, the time (UTC), and a suffix that makes
    it unique within that second."""
    return "-".join((name, time.strftime("%Y%m%d-%H%M%S", time.gmtime()), *ending))


def record_commit(root: Path, run_name: str) -> str:
    """Commit ``dvc.lock`` and ``params.yaml`` on the branch ``runs/<run_name>``, on top of HEAD.
    Returns the commit.

    Work tree, index and current branch stay as they are, and no git identity is needed. If HEAD or
    a ``runs/`` branch already holds the same ``dvc.lock`` and ``params.yaml``, that commit is
    returned and nothing is written.

    Raises:
        TrackingError: there is no git repository, no commit to build on or no ``dvc.lock``, or the
            name is not valid.
    """
    if not is_repository(root):
        raise TrackingError(
            str(root),
            "not a git repository, so no commit can hold dvc.lock",
            "run git init and commit the project, or clone it",
        )
    if (
        not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_name)
        or ".." in run_name
        or run_name.endswith((".lock", "."))
    ):
        raise TrackingError(
            "run name",
            f"{run_name!r} cannot become the branch runs/<name>",
            "use letters, digits, '.', '_' and '-' only",
        )
    base = head(root)
    if base is None:
        raise TrackingError(str(root), "the repository has no commit yet", "commit the project first")
    if not (root / LOCK_FILE).is_file():
        raise TrackingError(f"{root / LOCK_FILE}", "no such file", "run the pipeline first: vidbridge run")
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
    # An existing branch of that name is never overwritten: its old value must be "none".
    git(root, "update-ref", reference, commit, "0" * 40)
    return commit


def _in_repository(root: Path, name: str) -> str:
    """Path of a project's file from the top of the repository (the project may be a folder inside
    it)."""
    return git(root, "rev-parse", "--show-prefix") + name


def blob_at(root: Path, commit: str, path: str) -> str | None:
    """Hash of a file in a commit or tree, ``path`` from the top of the repository; None if it is
    not there."""
    # Without `--format`, which needs git 2.36.
    about = git(root, "ls-tree", "--full-tree", commit, "--", path).split()
    return about[2] if about else None


def _identity(root: Path) -> dict[str, str]:
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
    except TrackingError:
        return {name: os.environ.get(name) or value for name, value in IDENTITY.items()}
    return {}

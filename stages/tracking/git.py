"""The few questions that tracking asks git, and the one thing it writes: a commit on a branch of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from stages.plain import redacted
from stages.tracking.uri import TrackingError


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes | None = None) -> str:
    """Run git in ``root`` and return what it prints.

    Raises:
        TrackingError: git is missing, or says no.
    """
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, input=stdin or b"", capture_output=True, env={**os.environ, **(env or {})}, check=False)
    except FileNotFoundError as error:
        raise TrackingError("git: not found; install it, the registry ties every model version to a commit") from error
    if done.returncode:
        raise TrackingError(f"git {arguments[0]} in {root}: {redacted(done.stderr.decode(errors='replace').strip())}")
    return done.stdout.decode(errors="replace").strip()


def is_repository(root: Path) -> bool:
    try:
        return git(root, "rev-parse", "--is-inside-work-tree") == "true"
    except TrackingError as error:
        if "not a git repository" in str(error):
            return False
        raise


def head(root: Path) -> str | None:
    """The commit that is checked out, None before the first one."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except TrackingError:
        return None


def is_dirty(root: Path) -> bool:
    """Whether tracked files differ from HEAD; ``dvc.lock`` does not count, a run in progress rewrites it."""
    return bool(git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock"))

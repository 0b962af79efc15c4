"""A project's git repository and files, changed as a person would, without anyone's git
configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@localhost")


def git(folder: Path, *arguments: str) -> str:
    """What git said; it must end well."""
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", *_IDENTITY, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"git {' '.join(arguments)} in {folder} ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    """Commit everything that is not ignored; the commit."""
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def edit(path: Path, old: str, new: str) -> None:
    """Put ``new`` in the place of the first ``old``, which must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")

"""Git as tracking uses it: read-only queries, and commits on branches of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.errors import Fault
from stages.runtime.paths import LOCK_FILE
from stages.runtime.plain import redacted
from stages.tracking.lineage.uri import TrackingError

#: Subcommands that contact another repository: only these wait for a network, and get a time limit.
_AFAR = frozenset({"clone", "fetch", "ls-remote", "push"})
TIMEOUT_VARIABLE, TIMEOUT_S = "VIDBRIDGE_GIT_TIMEOUT_S", 1800
#: Less than 1 kB/s for a minute counts as a dead connection.
_SLOW = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"


#: What makes a folder a repository with a first commit.
FIRST_COMMIT = "git init && git add -A && git commit -m start"


class NoRepository(TrackingError):
    """The folder does not lie in a git repository."""


@dataclass(frozen=True)
class Command:
    """A git command in a folder. ``timeout_s`` is None if it contacts no other repository."""

    words: tuple[str, ...]
    env: Mapping[str, str]
    timeout_s: int | None

    @property
    def late(self) -> Fault:
        """What is wrong where the command exceeds its time limit."""
        return Fault(
            f"no answer within {self.timeout_s} s",
            "see that the other repository can be reached from here, and try again; for one that is only slow, raise"
            f" {TIMEOUT_VARIABLE}",
        )


def command(folder: Path, arguments: tuple[str, ...], env: Mapping[str, str] | None = None) -> Command:
    """Build a git command with ``arguments`` in ``folder``, with a time limit if it contacts
    another repository: locks are held while it waits.

    Raises:
        TrackingError: the environment variable is not a number of seconds.
    """
    here = ("git", "-C", str(folder))
    # Some of its messages are recognised below: not in the language of whoever runs this.
    environ = {**os.environ, **(env or {}), "LC_ALL": "C.UTF-8"}
    if not arguments or arguments[0] not in _AFAR:
        return Command((*here, *arguments), environ, None)
    text = environ.get(TIMEOUT_VARIABLE, "").strip() or str(TIMEOUT_S)
    if not text.isdecimal() or int(text) < 1:
        raise TrackingError(
            TIMEOUT_VARIABLE, f"{text!r} is not a number of seconds", "set a whole number >= 1, or unset it"
        )
    # The variable overrides git's own setting, which may name a key; so set it only where neither
    # is set.
    if not environ.keys() & {"GIT_SSH_COMMAND", "GIT_SSH"} and not _is_set(here, environ, "core.sshCommand"):
        environ["GIT_SSH_COMMAND"] = _SSH
    return Command((*here, *_SLOW, *arguments), environ, int(text))


def _is_set(here: tuple[str, ...], environ: Mapping[str, str], name: str) -> bool:
    return (
        subprocess.run([*here, "config", "--get", name], capture_output=True, env=environ, check=False).returncode == 0
    )


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes | None = None) -> str:
    """Run git in ``root`` and return its output.

    Raises:
        TrackingError: git is missing or fails, or another repository does not answer.
    """
    call = command(root, arguments, env)
    try:
        done = subprocess.run(
            call.words, input=stdin or b"", capture_output=True, env=call.env, timeout=call.timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrackingError(f"git {arguments[0]} in {root}", *call.late) from error
    except FileNotFoundError as error:
        raise TrackingError(
            "git", "not found", "install it, every run and every model version is tied to a commit"
        ) from error
    if done.returncode:
        message = redacted(done.stderr.decode(errors="replace").strip())
        if "not a git repository" in message:
            raise NoRepository(str(root), "is not a git repository", f"type: {FIRST_COMMIT}")
        if "dubious ownership" in message:
            raise TrackingError(
                str(root),
                "belongs to another user of this machine, and git reads no such repository until you say that you trust"
                " it",
                f"type: git config --global --add safe.directory {root}",
            )
        raise TrackingError(f"git {arguments[0]} in {root}", message, "")
    return done.stdout.decode(errors="replace").strip()


def is_repository(root: Path) -> bool:
    """Return whether ``root`` lies in a repository's work tree.

    Raises:
        TrackingError: git cannot tell, or refuses a repository of another user.
    """
    try:
        return git(root, "rev-parse", "--is-inside-work-tree") == "true"
    except NoRepository:
        return False


def head(root: Path) -> str | None:
    """The commit that is checked out; None before the first one."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except TrackingError:
        return None


def is_dirty(root: Path) -> bool:
    """Return whether tracked files differ from HEAD. ``dvc.lock`` does not count: a run in progress
    rewrites it."""
    return bool(git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){LOCK_FILE}"))

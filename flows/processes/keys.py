"""The key of a project's own servers: created once, readable for its owner only, never in a command
line and never in a log.

Loopback is not a boundary: every user of a machine, and every page in a browser on it, can open a
connection to 127.0.0.1. So each server that we start (Prefect's, MLflow's) asks for this key. It is
of the form ``user:password``, as HTTP Basic and Prefect want it, and lies in ``PREFECT_HOME``
beside what names the running server.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from pathlib import Path

from flows.errors import FlowError

FILE = "server.key"
USER = "vidbridge"
_FORM = re.compile(rf"{USER}:[A-Za-z0-9_-]{{43}}")
#: Bytes of randomness; 43 letters of base64.
_BYTES = 32
#: A key that another process has just created is written within this time.
_WRITTEN_WITHIN_S = 1.0


def key_file(home: Path) -> Path:
    return home / FILE


def private_folder(folder: Path) -> Path:
    """Create ``folder`` if it is missing, accessible to its owner only; an existing one keeps its
    mode.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def own_key(home: Path) -> str:
    """Return the key in ``home``, created if missing. ``home`` must exist.

    Raises:
        FlowError: the file there is not a key, or others may read or have written it.
    """
    path = key_file(home)
    try:
        # The mode counts from the first moment; a umask can only take from it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return read_key(home)
    except OSError as error:
        raise FlowError(str(path), f"cannot be written ({error.strerror})", f"make {home} writable") from error
    key = f"{USER}:{secrets.token_urlsafe(_BYTES)}"
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, 0o600)
        file.write(key + "\n")
    return key


def read_key(home: Path) -> str:
    """Return the key in ``home``.

    Raises:
        FlowError: there is none, it is not a key, or others may read or have written it.
    """
    path = key_file(home)
    remedy = f"delete it (a new one is made): rm {path}; then end the servers of this project and start them again"
    deadline = time.monotonic() + _WRITTEN_WITHIN_S
    while not (text := _private_text(path, remedy)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not _FORM.fullmatch(text):
        raise FlowError(str(path), "holds no key of ours", remedy)
    return text


def _private_text(path: Path, remedy: str) -> str:
    try:
        # Follows no link, and does not wait for a writer if it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FlowError(str(path), f"cannot be read ({error.strerror})", remedy) from error
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FlowError(str(path), "is not a file", remedy)
        if found.st_uid != os.geteuid():
            raise FlowError(str(path), f"belongs to user {found.st_uid}, not to you ({os.geteuid()})", remedy)
        if found.st_mode & 0o077:
            raise FlowError(
                str(path), f"mode {stat.S_IMODE(found.st_mode):04o} opens the key to other users", f"{remedy}"
            )
        return file.read(200).strip()

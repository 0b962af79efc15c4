"""Locks between processes: a file that its holder locks and signs, so that a refused process
reports the holder and the remedy.

The kernel lets go of the lock when its holder dies, however it dies. It holds between all processes
of one host, also of several containers. Between hosts it holds as far as their shared file system
carries ``flock`` over (NFS from version 4 on does, unless it is mounted with ``local_lock``; Lustre
with ``-o flock``): where it does not, give each worker a ``VIDBRIDGE_WORK`` of its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from flows.errors import FlowError
from flows.processes.environment import state
from stages.runtime.paths import STATE

#: Lock of the active run; inside the project's state.
RUN_LOCK = "run.lock"
#: Someone may only have looked whether it is free.
LOOK_S = 0.3
_POLL_S = 0.05
#: Locks that this process holds: a promotion that scores a model again may be part of the run that
#: holds the project.
_ours: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def hold(path: Path, what: str, doing: str, wait_s: float = LOOK_S) -> Iterator[None]:
    """Hold ``path`` for this block; waits for it up to ``wait_s`` seconds. A lock that this process
    holds already is kept.

    ``what`` and ``doing`` are for the message: "run: process 12 is running this project already;
    …".

    Raises:
        FlowError: another process holds it.
    """
    path = path.absolute()
    with _guard:
        ours = path in _ours
    if ours:
        yield
        return
    if (state := next((folder for folder in path.parents if folder.name == STATE.name), None)) is not None:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)  # its owner's, whichever command comes first
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        _acquire(file, what, doing, time.monotonic() + wait_s)
        with _guard:
            _ours.add(path)
        try:
            _sign(file, f"{os.getpid()} {socket.gethostname()} {_process_numbers()}")
            yield
        finally:
            _sign(file, "")
            with _guard:
                _ours.discard(path)


def only_run(root: Path) -> AbstractContextManager[None]:
    """Hold the project for one run at a time: two would write the same outputs. Commands that
    change or read its state in several steps take it first, and read the state afterwards.

    Raises:
        FlowError: another process holds it (what is guaranteed between hosts: see above).
    """
    return hold(state(root) / RUN_LOCK, "run", "is running this project already")


def _acquire(file: IO[str], what: str, doing: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            who, end = _holder(file)
            raise FlowError(what, f"{who} {doing}", f"wait for it, or end it: {end}") from error
        return


def _sign(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _holder(file: IO[str]) -> tuple[str, str]:
    """Signature of the holder, and how to end it from here: a process number means nothing on
    another host or in another container.
    """
    file.seek(0)
    number, host, numbers = (*file.read().split(), "", "", "")[:3]
    if not number.isdigit():
        return "another process", f"fuser {file.name} names it"
    if (host, numbers) == (socket.gethostname(), _process_numbers()):
        return f"process {number}", f"kill {number}"
    where = host if host != socket.gethostname() else f"another container of {host}"
    return f"process {number} of {where}", f"kill {number} there"


def _process_numbers() -> str:
    """Name of the set of process numbers that this process sees: containers have several on one
    host.
    """
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "-"

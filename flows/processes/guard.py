"""Guard of one command: nothing of it outlives the process that started it.

``python guard.py FD[,FD…] COMMAND …``: the first FD is the reading end of a pipe whose writing end
only the starting process holds; the others are passed on to the command (the socket on which it
listens). When that process ends, in whatever way (``kill -9`` included), the kernel closes that
end, and every descendant of the command is ended. A parent-death signal alone would not do: it
reaches direct children only, and DVC puts a shell between itself and the training process.

The guard declares itself the reaper of orphans (Linux), so that a grandchild whose parent died is
still its descendant. Nothing but the standard library and psutil is imported: this stands in front
of every stage.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

_SET_CHILD_SUBREAPER = 36
#: Seconds between the request to end and the kill.
GRACE_S = 5.0


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies. Elsewhere than on
    Linux this does nothing.
    """
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) was refused")


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)


def _living(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_descendants(reap: Callable[[], object], grace_s: float = GRACE_S) -> None:
    """End all descendants of this process: first those that compute, then those that wait for them,
    then whatever is left by force.

    DVC gets time to notice that its command ended, and to release its locks; it is terminated
    last.
    """
    me = psutil.Process()
    children = me.children()
    deeper = [process for process in me.children(recursive=True) if process not in children]
    _send(deeper or children, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    asked_all = not deeper
    while time.monotonic() < deadline:
        reap()
        left = [process for process in me.children(recursive=True) if _living(process)]
        if not left:
            return
        if not asked_all and time.monotonic() > deadline - grace_s / 2:
            _send(left, signal.SIGTERM)
            asked_all = True
        time.sleep(0.02)
    # A process may fork while it is being killed, so look again until nothing is found.
    while left := [process for process in me.children(recursive=True) if _living(process)]:
        _send(left, signal.SIGKILL)
        time.sleep(0.02)
        reap()


def run(lifeline: int, command: list[str], handed_on: Sequence[int] = ()) -> int:
    """Run ``command`` until it ends or the lifeline breaks; returns its status as a shell would
    (128 + signal).
    """
    adopt_orphans()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    asked_to_end = False

    def on_end(_number: int, _frame: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = subprocess.Popen(command, pass_fds=handed_on)
    for descriptor in handed_on:
        os.close(descriptor)  # a socket that the guard held open would look alive when its server is dead
    status: int | None = None

    def reap() -> None:
        """Collect every ended child: the command, and orphans that were adopted."""
        nonlocal status
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, raw = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == child.pid:
                    status = os.waitstatus_to_exitcode(raw)

    while status is None and not asked_to_end:
        readable, _, _ = select.select([lifeline, woken], [], [], 1.0)
        if lifeline in readable:
            # The starting process never writes: readable means that it is gone.
            asked_to_end = True
        if woken in readable:
            os.read(woken, 512)
        reap()
    end_descendants(reap)
    reap()
    # Popen must not wait for a child that was reaped here.
    child.returncode = -signal.SIGKILL if status is None else status
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    descriptors = [int(number) for number in sys.argv[1].split(",")]
    sys.exit(run(descriptors[0], sys.argv[2:], descriptors[1:]))

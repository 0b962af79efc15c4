"""Ranks of a CPU training as forks of one process that has imported the libraries.

`torch.distributed.run` starts each rank from nothing: on a CPU the imports of the launcher and of
each rank cost as much as a hundred steps of a tiny model. A fork has them already.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

#: Time that ranks have to end after a signal. Less than a warm process and a guard give this one.
GRACE_S = 2.5
_TICK_S = 0.05


def can_fork() -> bool:
    """Return whether this process may be forked: on Linux, and before it has Python threads of its
    own. (The idle threads of numerical libraries and allocators are left behind by their own
    handlers.)"""
    return sys.platform == "linux" and threading.active_count() == 1


def fork_ranks(count: int, port: int, extra: Mapping[str, str]) -> int | None:
    """Fork ``count`` ranks of this process, and wait for them.

    If one fails, or this process is told to end, all are ended; if this process is killed, the
    kernel ends them.

    Args:
        port: free port of this machine, where the ranks meet.
        extra: further environment variables of the ranks.

    Returns:
        In each rank: None. In this process: 0, or the exit status of the first rank that failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    ranks: list[int] = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            # A signal to the group of this process is passed on, once: a second one would end a
            # rank while it records that it was ended.
            os.setpgid(0, 0)
            die_with(parent)
            os.environ.update(
                {
                    **extra,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            )
            return None
        ranks.append(pid)
    return _wait(ranks)


def die_with(parent: int) -> None:
    """End this process when its parent ends, however that does."""
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request
        sys.exit(1)


def _wait(ranks: Sequence[int]) -> int:
    """Wait for all; the status of the first that failed, or of the signal that ended this
    process."""
    living = set(ranks)
    failed = told = 0
    kill_at: float | None = None

    def end(number: int, _frame: object) -> None:
        nonlocal told
        told = number

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        while living:
            for pid in sorted(living):
                ended, raw = os.waitpid(pid, os.WNOHANG)
                if ended:
                    living.remove(pid)
                    status = os.waitstatus_to_exitcode(raw)
                    failed = failed or (status if status >= 0 else 128 - status)
            if kill_at is None and (failed or told):
                # A rank that lost another would wait for it, or fail with a message that hides the
                # cause.
                _signal(living, told or signal.SIGTERM)
                kill_at = time.monotonic() + GRACE_S
            elif kill_at is not None and time.monotonic() > kill_at:
                _signal(living, signal.SIGKILL)
            time.sleep(_TICK_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + told if told else failed


def _signal(processes: set[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

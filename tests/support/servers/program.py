"""A program of somebody else that serves HTTP, run for a test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

_END_S = 20


@contextmanager
def running(
    command: Sequence[str],
    health: str,
    log: Path,
    *,
    env: Mapping[str, str],
    start_s: float,
    folder: Path | None = None,
) -> Iterator[Callable[[], None]]:
    """Run a server, and end it with all its processes. Yields what waits until ``health`` answers
    200.

    Args:
        log: for what it prints.
        folder: to run in; None: the present one.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait() -> None:
        until = time.monotonic() + start_s
        with httpx.Client(trust_env=False, timeout=5) as client:
            while server.poll() is None and time.monotonic() < until:
                with suppress(httpx.TransportError):
                    if client.get(health).status_code == 200:
                        return
                time.sleep(0.1)
        said = log.read_text(errors="replace")[-4000:]
        raise AssertionError(f"{command[0]} does not answer (exit status {server.poll()}): {said}")

    try:
        yield wait
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_END_S)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(_END_S)

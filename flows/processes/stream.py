"""Supervised commands: their output line by line, an end on demand, nothing left behind (see
:mod:`flows.processes.guard`).
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flows.processes import guard

#: A progress bar rewrites its line many times a second; a log wants it now and then.
PROGRESS_EVERY_S = 5.0
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Cancelled(Exception):
    """The command was ended because its ``cancelled`` event was set."""


class TimedOut(Exception):
    """The command was ended because it ran longer than its time limit."""


class Lines:
    """Splitter of a byte stream into lines; of a line that is rewritten in place, keeps one in
    ``every_s`` seconds and the last.
    """

    def __init__(self, log: Callable[[str], None], every_s: float = PROGRESS_EVERY_S) -> None:
        self._log, self._every_s = log, every_s
        self._rest = b""
        self._progress = ""
        self._shown_at = -float("inf")
        self._shown = ""

    def feed(self, data: bytes) -> None:
        self._rest += data
        # "\r\n" is one line end; a "\r" at the very end may be its first half, so it waits.
        while found := re.search(rb"\r\n|\n|\r(?!$)", self._rest):
            text, end = self._rest[: found.start()], found.group()
            self._rest = self._rest[found.end() :]
            self._take(text, rewritten=end == b"\r")

    def close(self) -> None:
        self._take(self._rest.rstrip(b"\r"), rewritten=False)
        self._rest = b""

    def _take(self, raw: bytes, rewritten: bool) -> None:
        text = _ANSI.sub("", raw.decode("utf-8", errors="replace")).rstrip()
        if rewritten:
            if text.strip():
                self._progress = text
                if time.monotonic() - self._shown_at >= self._every_s:
                    self._show(text)
            return
        # The end of a line: what the bar showed last is logged, unless it just was.
        if not text.strip():
            text = self._progress
        self._progress = ""
        if text.strip() and text != self._shown:
            self._log(text)
        self._shown = ""

    def _show(self, text: str) -> None:
        self._shown_at, self._shown = time.monotonic(), text
        self._log(text)


@contextmanager
def guarded(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    stdout: int | IO[bytes] = subprocess.PIPE,
    *,
    handed_on: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``command`` in its own session; when the block is left, or this process dies, all its
    descendants are ended.

    It inherits the descriptors ``handed_on`` under their numbers; this process still has to close
    its own.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", guard.__file__, ",".join(map(str, (reading, *handed_on))), *command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            pass_fds=(reading, *handed_on),
            start_new_session=True,
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        yield process
    finally:
        os.close(writing)
        try:
            process.wait(guard.GRACE_S * 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode < 0:
            # The guard itself was killed: its session is all that is known of its descendants.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()


def stream(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    log: Callable[[str], None],
    *,
    cancelled: threading.Event | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run ``command`` to its end and pass each line of its output to ``log``; returns its exit
    status.

    Raises:
        Cancelled: ``cancelled`` was set; the command and its descendants have ended.
        TimedOut: it ran longer than ``timeout_s`` seconds; likewise.
    """
    lines = Lines(log)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with guarded(command, cwd, env) as process:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        while True:
            readable, _, _ = select.select([descriptor], [], [], 0.2)
            if readable:
                data = os.read(descriptor, 65536)
                if not data:
                    break
                lines.feed(data)
            if cancelled is not None and cancelled.is_set():
                lines.close()
                raise Cancelled
            if deadline is not None and time.monotonic() > deadline:
                lines.close()
                raise TimedOut
        lines.close()
        return process.wait()

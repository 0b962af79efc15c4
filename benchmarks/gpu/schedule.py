"""Parts one after the other in another process, within a budget of seconds.

A part that the budget has no room for is left out, one that overruns it is ended, and one that
fails or takes its process with it is a line of the page; the others go on in the same process, or
in a new one.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu.parts import Part

#: Starts a process that measures.
COMMAND = (sys.executable, "-m", "benchmarks.gpu.worker")
#: Seconds that a process is given to end by itself.
_GRACE_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        rows: of its table: first cell, and the numbers by their columns; empty if it was not
            measured.
        why: it was not; empty if it was.
        failed: it was begun, and neither measured nor cut off by the budget.
        seconds: that it took.
    """

    part: Part
    rows: Sequence[tuple[str, dict[str, float]]] = ()
    why: str = ""
    failed: bool = False
    seconds: float = 0.0


class Workers:
    """Processes that measure: one for all parts but those that need one of their own. One that has
    ended is replaced when the next part needs it.

    Args:
        log: file that the processes' own output is appended to.
        command: starts such a process.
    """

    def __init__(self, log: Path, *, dry: bool, command: Sequence[str] = COMMAND) -> None:
        self._log, self._dry = log, dry
        self._command = [*command, *(["--dry"] if dry else [])]
        self._shared: _Worker | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shared is not None:
            self._shared.end()

    def machine(self) -> dict[str, str | None]:
        """Name of the card, None if there is none, and the CUDA of torch."""
        if self._shared is None:
            self._shared = _Worker(self._command, self._log)
        return self._shared.machine

    def outcomes(self, parts: Sequence[Part], end: float) -> Iterator[Outcome]:
        """Measure parts in order until ``end``, in seconds of the monotonic clock; yield each
        outcome as it is known."""
        for part in parts:
            left, needed = end - time.monotonic(), 1 if self._dry else part.estimate_s
            if lacking := part.lacks():
                yield Outcome(part, why=f"lacks {', '.join(lacking)}")
            elif left < needed:
                yield Outcome(part, why=f"no room: foreseen {needed} s, {max(0, left):.0f} s of the budget left")
            else:
                yield self._measured(part, end)

    def _measured(self, part: Part, end: float) -> Outcome:
        worker = self._shared if self._shared is not None and not part.alone else _Worker(self._command, self._log)
        if not part.alone:
            self._shared = worker
        outcome = worker.measure(part, end)
        if part.alone:
            worker.end()
        elif worker.over:
            self._shared = None
        return outcome


class _Worker:
    """A process that measures."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._answers.put), daemon=True)
        self._reader.start()
        self.over = False
        if (line := self._answers.get()) is None:
            self.end()
            raise SystemExit(f"error: {' '.join(command)}: ended before it measured; {log} says why")
        self.machine: dict[str, str | None] = json.loads(line)

    def measure(self, part: Part, end: float) -> Outcome:
        began = time.monotonic()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(part.name + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=max(0.0, end - began))
        except queue.Empty:
            self.end(kill=True)
            return Outcome(part, why=f"cut off when the budget ended, after {time.monotonic() - began:.0f} s")
        except BrokenPipeError:  # it ended between two parts
            line = None
        if line is None:
            self.end()
            return Outcome(part, why=f"its process ended with status {self._process.returncode}", failed=True)
        answer = json.loads(line)
        if "failed" in answer:
            return Outcome(part, why=answer["failed"], failed=True, seconds=answer["seconds"])
        return Outcome(part, [(what, values) for what, values in answer["rows"]], seconds=answer["seconds"])

    def end(self, *, kill: bool = False) -> None:
        self.over = True
        if kill:
            self._process.kill()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a name that it did not read
            self._process.stdin.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_GRACE_S)


def _read(lines: IO[str], put: Callable[[str | None], None]) -> None:
    with lines:
        for line in lines:
            put(line)
    put(None)

"""The log of a server: its output, with bounded lines and size, readable for its owner only."""

from __future__ import annotations

import logging
import os
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

from stages.runtime.plain import one_line

#: A file, and how many older ones are kept beside it.
FILE_BYTES, KEPT = 4 << 20, 2
LINE_CHARACTERS = 2000


class ServerLog:
    """Log that takes a process's output and keeps its last lines.

    Control characters become visible: a line may hold what a stranger sent, and a terminal acts on
    some.
    """

    def __init__(self, path: Path, output: IO[bytes]) -> None:
        self._file = _PrivateFile(path, maxBytes=FILE_BYTES, backupCount=KEPT, encoding="utf-8", errors="replace")
        # There may be one of an earlier server.
        if path.stat().st_size:
            self._file.doRollover()
        self._thread = threading.Thread(target=self._follow, args=[output], daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the last output."""
        self._thread.join(5)
        self._file.close()

    def _follow(self, output: IO[bytes]) -> None:
        # A line without an end is cut, and what is behind the cut left out.
        within = False
        while raw := output.readline(LINE_CHARACTERS):
            if not within:
                text = one_line(raw.decode(errors="replace").rstrip("\r\n"))
                self._file.emit(logging.makeLogRecord({"msg": text}))
            within = not raw.endswith(b"\n")


class _PrivateFile(RotatingFileHandler):
    def _open(self) -> Any:
        def private(path: str, flags: int) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
            os.fchmod(descriptor, 0o600)
            return descriptor

        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=private)
